"""Jobs for clusters ask for what the plan needs, and their command is one that a shell and the parser take."""

import argparse
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from apps.imaging import cli
from common.cli import job_scripts, ranks
from common.errors import UsageError
from common.memory.footprint import Footprint, Term
from common.memory.plan.plan import Plan
from common.parts import Part
from tests.messages import refused

LINE = [
    "infer",
    "a b",
    "-m",
    "model",
    "-o",
    "it's $(A)$$",
    "--dry-run",
    "--for",
    "slurm",
    "--mem=2GiB",
    "--part",
    "1/16",
    "-q",
]


@pytest.fixture
def args(monkeypatch: pytest.MonkeyPatch) -> argparse.Namespace:
    """A command line, parsed."""
    monkeypatch.setattr("sys.argv", ["imaging", *LINE])
    parsed = cli.parser().parse_args(LINE)
    parsed.world = ranks.place(parsed)
    return parsed


def plan(size: int) -> Plan:
    """A plan that needs about so many bytes."""
    made = Plan("imaging infer", (), Footprint.of([Term("all", size, "analytic", ("infer",))]))
    return replace(made, footprint=Footprint.of([Term("all", 2 * size - made.needed_bytes, "analytic", ("infer",))]))


def arguments(line: str) -> argparse.Namespace:
    """Options of a job's command, as a shell hands them over and the parser reads them."""
    told = f"set -- {line.removeprefix('exec imaging ')}; printf '%s\\n' \"$@\""
    environment = {"SLURM_ARRAY_TASK_ID": "7", "JOB_COMPLETION_INDEX": "6"}
    out = subprocess.run(["/bin/sh", "-c", told], env=environment, capture_output=True, text=True, check=True).stdout
    return cli.parser().parse_args(out.splitlines())


def test_a_slurm_job_asks_for_the_plan_and_a_margin(args: argparse.Namespace) -> None:
    args.threads = 3
    lines = job_scripts.dry_run_text(args, plan(200 << 20), 2 << 30).splitlines()
    assert {"#SBATCH --array=1-16", "#SBATCH --cpus-per-task=3", "#SBATCH --mem=210M"} <= {*lines}
    job = arguments(lines[-1])
    assert job.memory == "210MiB" and job.part == Part(7, 16) and job.threads == 3
    assert (job.input, str(job.output), job.quiet, job.dry_run) == ([Path("a b")], "it's $(A)$$", True, False)


def test_a_kubernetes_job_has_an_index_for_each_part(args: argparse.Namespace) -> None:
    args.format, args.threads = "kubernetes", 2
    job = yaml.safe_load(job_scripts.dry_run_text(args, plan(100 << 20), 2 << 30))
    assert job["spec"]["completions"] == job["spec"]["parallelism"] == 16
    (container,) = job["spec"]["template"]["spec"]["containers"]
    assert container["resources"]["limits"] == {"memory": "105Mi"}
    assert container["resources"]["requests"] == {"cpu": 2, "memory": "105Mi"}
    assert "$" not in container["args"][0].replace("$$", "").replace("$((JOB_COMPLETION_INDEX + 1))", "")
    found = arguments(container["args"][0].replace("$$", "$"))  # as Kubernetes does
    assert found.part == Part(7, 16) and found.memory == "105MiB" and str(found.output) == "it's $(A)$$"


@pytest.mark.parametrize("form", job_scripts.FORMATS)
def test_a_job_without_parts_is_one(args: argparse.Namespace, form: str) -> None:
    args.format, args.part = form, None
    text = job_scripts.dry_run_text(args, plan(100 << 20), 2 << 30)
    assert "--part" not in text and "--array" not in text


def test_without_a_format_the_plan_is_printed(args: argparse.Namespace) -> None:
    args.format = None
    assert job_scripts.dry_run_text(args, plan(100 << 20), 2 << 30).startswith("plan for imaging infer")


def test_a_job_is_printed_by_a_dry_run_alone() -> None:
    job_scripts.check("slurm", dry_run=True, as_json=False)
    job_scripts.check(None, dry_run=False, as_json=True)
    for dry_run, as_json in ((False, False), (True, True)):
        with refused(UsageError, "--format slurm", "--dry-run", "--json"):
            job_scripts.check("slurm", dry_run=dry_run, as_json=as_json)


def test_a_job_s_costs_are_measured_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    directory = job_scripts.fresh_costs().directory
    assert not [*directory.iterdir()] and not directory.is_relative_to(tmp_path)


def test_other_options_of_a_line_stay() -> None:
    words = ["infer", "--overlap", "0.25", "--model", "m", "-o", "--out=1", "--threads=4", "x", "--memory", "1GiB"]
    assert job_scripts.kept_words(words) == ["infer", "--overlap", "0.25", "--model", "m", "-o", "--out=1", "x"]
