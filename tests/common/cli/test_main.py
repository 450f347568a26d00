"""The four endings, on the smallest command that has them all."""

import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from common.cli import main
from common.errors import UsageError
from common.memory.costs import store
from common.memory.costs.probes import Probe
from common.memory.process import guard
from common.memory.process.budget import MIB, format_size, memory_cgroups
from tests.machine import patience, wait_until
from tests.messages import says
from tests.schemas import read_record

FILL = "common.bench.demo_allocation"


def test_it_fits(run: Callable[..., Any], tmp_path: Path) -> None:
    ended = run(FILL, "--bytes", "100MiB", "--memory", "250MiB", "--json", "--output", tmp_path / "run.json")
    assert ended.code == 0
    record = ended.record
    assert record["results"] == {"written": 100 * MIB}
    assert record["plan"]["knobs"] == {"blocks": 1}
    assert record["within_budget"] and record["measured"]["peak_bytes"] <= 250 * MIB
    predicted, measured = record["plan"]["predicted_peak_bytes"], record["measured"]["peak_bytes"]
    assert measured <= predicted <= 1.15 * measured
    assert [phase["name"] for phase in record["measured"]["phases"]][-2:] == ["start", "fill"]
    assert sum(phase["seconds"] for phase in record["measured"]["phases"]) <= record["seconds"] < 300
    assert read_record(tmp_path / "run.json") == record
    says(ended.err.splitlines()[-1], "memory", "250.0 MiB", *map(format_size, (predicted, measured)))


def test_less_memory_means_smaller_blocks(run: Callable[..., Any]) -> None:
    record = run(FILL, "--bytes", "100MiB", "--memory", "100MiB", "--json").record
    assert record["plan"]["knobs"]["blocks"] > 1
    assert record["within_budget"]


def test_refusal_names_a_ceiling_that_then_works(run: Callable[..., Any]) -> None:
    refused = run(FILL, "--bytes", "400MiB", "--memory", "60MiB", "--json")
    assert refused.code == 3
    smallest = refused.record["smallest_feasible_bytes"]
    assert len(refused.err.splitlines()) == 2
    says(refused.err, "60.0 MiB", f"1. --memory {smallest / MIB:.10g}MiB")
    accepted = run(FILL, "--bytes", "400MiB", "--memory", smallest, "--json")
    assert accepted.code == 0 and accepted.record["within_budget"]
    assert run(FILL, "--bytes", "400MiB", "--memory", smallest - 2 * MIB).code == 3


def test_a_ceiling_below_the_interpreter_is_refused_with_a_number(run: Callable[..., Any], tmp_path: Path) -> None:
    env = {"XDG_CACHE_HOME": str(tmp_path)}  # nothing is known yet, and nothing can be measured under 10 MiB
    refused = run(FILL, "--bytes", "8MiB", "--memory", "10MiB", "--json", env=env)
    assert refused.code == 3, refused.err
    smallest = refused.record["smallest_feasible_bytes"]
    assert 40 * MIB < smallest < 80 * MIB
    assert run(FILL, "--bytes", "8MiB", "--memory", smallest, env=env).code == 0
    # A child and this process together take more than this process will: the ceiling would do, if that were known.
    unknown = {"XDG_CACHE_HOME": str(tmp_path / "empty")}
    enough = smallest + MIB  # the interpreter is measured again, and a quarter of a MiB is within its noise
    refused = run(FILL, "--bytes", "8MiB", "--memory", enough, "--json", env=unknown)
    assert refused.code == 3 and refused.record["smallest_feasible_bytes"] <= enough
    says(refused.err, format_size(enough), format_size(refused.record["smallest_feasible_bytes"]), "again")
    assert run(FILL, "--bytes", "8MiB", "--memory", enough, env=unknown).code == 0


def test_a_broken_plan_meets_the_soft_wall(run: Callable[..., Any]) -> None:
    ended = run(FILL, "--bytes", "200MiB", "--memory", "300MiB", "--hostile", "--json")
    assert ended.code == 1
    assert ended.record["error"]["kind"] == "out of memory"
    assert ended.record["measured"]["peak_bytes"] <= 300 * MIB
    says(ended.err, "traceback")


@pytest.fixture
def read_before(tmp_path: Path) -> Path:
    """64 MiB in the page cache on this process's account."""
    path = tmp_path / "read-before"
    path.write_bytes(os.urandom(64 * MIB))
    return path


def test_a_run_above_its_ceiling_does_not_end_well(run: Callable[..., Any], tmp_path: Path, read_before: Path) -> None:
    output = tmp_path / "run.json"
    command = (FILL, "--bytes", "60MiB", "--memory", "130MiB", "--json", "--output", output)
    assert run(*command).code == 0
    ended = run(*command, "--map", read_before)
    assert ended.code == 1
    record = ended.record
    peak, planned = record["measured"]["peak_bytes"], record["plan"]["predicted_peak_bytes"]
    assert not record["within_budget"] and peak > 130 * MIB
    assert record["error"]["kind"] == "above the ceiling"
    assert record["results"]["written"] > 60 * MIB  # its work is done
    assert read_record(output) == record  # the output that was there is replaced
    assert ended.err.count("\n") == 1
    says(ended.err, "fill", *map(format_size, (peak, 130 * MIB, peak - 130 * MIB, planned)), "block (60.0 MiB)", "kept")
    assert ended.err.startswith(f"bench demo-allocation: {record['error']['message']}")


def test_the_hard_wall_stands_at_a_small_ceiling_too(run: Callable[..., Any], container: Path) -> None:
    """It stood at 128 MiB at least, and did not count what others had read of the libraries."""
    ended = run(FILL, "--bytes", "50MiB", "--memory", "96MiB", "--hostile", "3", "--json")
    assert ended.code == 1
    record = json.loads(ended.out)
    says(ended.err, "96.0 MiB")
    assert record["error"]["kind"] == "killed"
    at = float(ended.err.partition(" at ")[2].split()[0])
    assert at <= 96


def test_a_cgroup_does_not_swap(container: Path) -> None:
    """Pages in swap are none of the resident ones that are measured, and the kernel would not kill."""
    swap = container / "memory.swap.max"
    assert (swap if swap.exists() else container / "memory.swappiness").read_text().strip() == "0"


def test_libraries_that_have_grown_since_they_were_measured(run: Callable[..., Any], tmp_path: Path) -> None:
    env = {"XDG_CACHE_HOME": str(tmp_path)}
    command = (FILL, "--bytes", "1MiB", "--memory")
    assert run(*command, "100MiB", env=env).code == 0
    (cost,) = (path for path in tmp_path.rglob("*.json") if "baseline:measure" in path.read_text())
    content = json.loads(cost.read_text())
    smaller = {name: max(1, size - 16 * MIB) for name, size in content["costs"].items()}
    probe = Probe(content["function"], content["arguments"])
    cost.write_text(json.dumps(content | {"costs": smaller, "check": store.checksum(probe, smaller)}))
    planned = run(*command, "100MiB", "--dry-run", "--json", env=env).record["plan"]["predicted_peak_bytes"]
    ended = run(*command, planned + 4 * MIB, "--json", env=env)
    assert ended.code == 3
    assert ended.record["smallest_feasible_bytes"] > planned + 8 * MIB
    assert run(*command, ended.record["smallest_feasible_bytes"], env=env).code == 0


def test_a_failure_leaves_the_record_of_what_is_still_there(run: Callable[..., Any], tmp_path: Path) -> None:
    output = ("--output", tmp_path / "run.json")
    assert run(FILL, "--bytes", "900MiB", "--memory", "60MiB", *output).code == 3
    assert read_record(tmp_path / "run.json")["exit_code"] == 3
    assert run(FILL, "--bytes", "10MiB", "--memory", "200MiB", *output).code == 0
    good = (tmp_path / "run.json").read_text()
    assert run(FILL, "--bytes", "900MiB", "--memory", "60MiB", *output).code == 3
    assert (tmp_path / "run.json").read_text() == good


def test_a_plan_can_be_printed_edited_and_fed_back(run: Callable[..., Any], tmp_path: Path) -> None:
    shown = run(FILL, "--bytes", "100MiB", "--memory", "250MiB", "--dry-run", "--json")
    assert shown.code == 0 and shown.record["results"] == {}
    edited = shown.record["plan"]
    edited["knobs"]["blocks"] = 5
    (tmp_path / "plan.json").write_text(json.dumps(edited))
    fed = run(FILL, "--bytes", "100MiB", "--memory", "250MiB", "--plan", tmp_path / "plan.json", "--json")
    assert fed.code == 0 and fed.record["plan"]["knobs"] == {"blocks": 5}
    edited["knobs"]["wings"] = 2
    (tmp_path / "plan.json").write_text(json.dumps(edited))
    assert run(FILL, "--plan", tmp_path / "plan.json").code == 2
    assert run(FILL, "--plan", tmp_path / "absent.json").code == 2


@pytest.mark.parametrize("size", ["3XB", "0", "-1", "1.5"])
def test_a_ceiling_that_does_not_parse(run: Callable[..., Any], size: str) -> None:
    ended = run(FILL, f"--memory={size}", "--json")
    assert (ended.code, len(ended.err.splitlines())) == (2, 1)
    assert ended.record["error"]["kind"] == "usage"


def test_more_than_the_machine_has_is_a_warning(run: Callable[..., Any]) -> None:
    ended = run(FILL, "--memory", "100TiB", "--bytes", "1MiB")
    assert ended.code == 0
    says(ended.err, "--memory", "machine")


def _start(*arguments: str, group: int | None = None) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", FILL, "--bytes", "4GiB", "--memory", "2GiB", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        process_group=group,
        # A shell's background jobs ignore interrupts, and what they start inherits that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


def _child_of(pid: int) -> int:
    """The child of the process that has become the supervisor."""

    def children() -> list[str]:
        return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()

    wait_until(lambda: b"-I" in Path(f"/proc/{pid}/cmdline").read_bytes() and bool(children()), seconds=20)
    return int(children()[0])


def _resident(pid: int) -> int:
    """Bytes in memory, from ``/proc``."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_a_kernel_kill_is_explained() -> None:
    with _start("--json") as parent:
        subprocess.run(["kill", "-9", str(_child_of(parent.pid))], check=True)
        out, err = parent.communicate(timeout=patience(30))
    assert parent.returncode == 1
    says(err, "killed", "2048.0 MiB")
    assert json.loads(out)["error"]["kind"] == "killed"


def test_a_kernel_kill_leaves_a_record(tmp_path: Path) -> None:
    with _start("--output", str(tmp_path / "run.json")) as parent:
        subprocess.run(["kill", "-9", str(_child_of(parent.pid))], check=True)
        parent.communicate(timeout=patience(30))
    record = read_record(tmp_path / "run.json")
    assert (record["exit_code"], record["error"]["kind"]) == (1, "killed")


def test_a_killed_supervisor_takes_its_child_along() -> None:
    with _start() as parent:
        child = _child_of(parent.pid)
        parent.kill()
        parent.communicate(timeout=patience(30))
    wait_until(lambda: not Path(f"/proc/{child}").exists(), seconds=10)


@pytest.fixture
def container() -> Iterator[Path]:
    """A memory cgroup of 300 MiB, as a container has."""
    place = guard.hard_wall(300 * MIB)
    if place is None:
        pytest.skip("no memory cgroup can be written here")
    yield place
    place.rmdir()


def _inside(place: Path, *arguments: str) -> dict[str, Any]:
    command = [sys.executable, "-m", FILL, *arguments, "--json"]
    enter = lambda: (place / "cgroup.procs").write_text(str(os.getpid()))  # noqa: E731
    done = subprocess.run(command, preexec_fn=enter, capture_output=True, text=True, check=False)
    assert done.stdout, done.stderr
    return json.loads(done.stdout)


def test_auto_inside_a_container_is_what_its_limit_leaves(container: Path) -> None:
    record = _inside(container, "--bytes", "400MiB")
    assert record["budget"]["source"] == "auto"
    assert 250 * MIB < record["budget"]["host_bytes"] <= 300 * MIB
    assert record["exit_code"] == 0 and record["within_budget"]
    assert record["plan"]["knobs"]["blocks"] == 2  # 200 MiB as well as the interpreter
    half = _inside(container, "--bytes", "100MiB", "--memory", "50%")
    assert half["budget"]["host_bytes"] == 150 * MIB and half["exit_code"] == 0


def test_a_read_only_cgroup_is_said_and_the_run_goes_on(tmp_path: Path) -> None:
    output = tmp_path / "run.json"
    nested = next(memory_cgroups(), None)
    if nested is None:
        pytest.skip("no memory cgroup")
    script = f'mount --bind {nested} {nested} && mount -o remount,ro,bind {nested} && exec "$@"'
    command = [sys.executable, "-m", FILL, "--bytes", "50MiB", "--memory", "200MiB", "--output", str(output)]
    done = subprocess.run(["unshare", "-m", "sh", "-c", script, "sh", *command], capture_output=True, text=True)
    if "Operation not permitted" in done.stderr or "permission denied" in done.stderr:
        pytest.skip("no right to mount here")
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[-1].endswith(f"; {guard.NO_HARD_WALL}")
    assert json.loads(output.read_text())["missing_walls"] == [guard.NO_HARD_WALL]


def test_a_low_limit_from_outside_is_said(tmp_path: Path) -> None:
    command = [sys.executable, "-m", FILL, "--bytes", "20MiB", "--memory", "4GiB", "--json"]
    low = lambda: resource.setrlimit(resource.RLIMIT_DATA, (512 * MIB, 512 * MIB))  # noqa: E731
    done = subprocess.run(command, preexec_fn=low, capture_output=True, text=True, check=True)
    assert "ulimit -d" in json.loads(done.stdout)["missing_walls"][-1]


@pytest.mark.parametrize("send", [os.kill, os.killpg])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_is_130(number: signal.Signals, send: Callable[[int, int], None]) -> None:
    """To the command alone, or to its process group: so Ctrl-C arrives in a terminal."""
    with _start("--bytes", "12GiB", group=0) as parent:
        child = _child_of(parent.pid)
        # It is running, and not still starting: an interpreter alone holds 10 MiB.
        wait_until(lambda: _resident(child) > 64 * MIB)
        send(parent.pid, number)
        _, err = parent.communicate(timeout=patience(30))
    assert parent.returncode == 130, err
    assert err == "bench demo-allocation: interrupted\n"


def test_settings_take_the_type_of_their_default() -> None:
    defaults = {"alpha": 1.0, "iterations": 15, "loss": "bce"}
    assert main.parse_settings(["alpha=2", "iterations=3"], defaults) == {"alpha": 2.0, "iterations": 3, "loss": "bce"}
    for wrong in ("beta=1", "alpha", "iterations=1.5", "alpha=x"):
        with pytest.raises(UsageError, match="--set"):
            main.parse_settings([wrong], defaults)


@pytest.mark.parametrize(
    ("options", "facts"),
    [
        (("--device", "gpu"), ("--device gpu", "cpu", "cuda", "cuda:N", "auto")),
        (("--gpu-memory", "4GiB"), ("--gpu-memory 4GiB", "--device cuda")),
        (("--device", "cuda:7"), ("--device cuda:7",)),
    ],
)
def test_a_device_that_is_not_there(
    run: Callable[..., Any], tmp_path: Path, options: tuple[str, ...], facts: tuple[str, ...]
) -> None:
    done = run("apps.imaging", "train", tmp_path, "-o", tmp_path / "out", "--json", *options)
    assert done.code == 2
    assert done.err.count("\n") == 1
    says(done.err, *facts)
    assert done.record["error"]["kind"] == "usage" and done.record["budget"]["device_bytes"] is None
    assert not (tmp_path / "out").exists()
