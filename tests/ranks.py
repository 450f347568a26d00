"""Several processes that form a group over gloo, and commands over the ranks of ``torchrun``, for tests."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.conftest import ROOT
from tests.machine import patience

BEGIN = """
import os, sys
import torch
import torch.distributed as dist
from common.training.distributed.group import ALONE, Group
from common.training.distributed.world import World

torch.set_num_threads(1)
rank, size, folder = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=size)
group = Group(World(rank, size, size))
"""
SECONDS = 100
"""For ranks that wait for each other for ever; the tests take up to ten."""
LAUNCHED_SECONDS = 240
"""For a command over ranks."""
END = """
sys.stdout.flush()
os._exit(0)
"""


def over_ranks(code: str, ranks: int, folder: Path) -> list[str]:
    """Run ``code`` in ``ranks`` processes, with ``group`` and ``rank`` set; returns what each printed."""
    command = [sys.executable, "-c", BEGIN + code + END]
    processes = [
        subprocess.Popen(
            [*command, str(rank), str(ranks), str(folder)],
            cwd=ROOT,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(ranks)
    ]
    try:
        ended = [process.communicate(timeout=SECONDS) for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, (_, errors) in zip(processes, ended, strict=True):
        assert process.returncode == 0, errors
    return [output for output, _ in ended]


def launch(
    ranks: int,
    module: str,
    arguments: Sequence[object],
    *launcher: str,
    rendezvous: Sequence[str] = ("--standalone",),
    before: Sequence[str] = (),
    interface: str = "lo",
) -> "subprocess.Popen[str]":
    """Start ``torchrun`` of so many ranks on this node.

    Parameters
    ----------
    launcher, rendezvous
        Its options.
    before
        Words before the command, as ``ip netns exec NAME``.
    interface
        Network interface over which ranks talk.
    """
    command = [sys.executable, "-m", "torch.distributed.run", *rendezvous, "--nproc-per-node", str(ranks), *launcher]
    variables = {"PYTHONSAFEPATH": "1", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*before, *command, "-m", module, *map(str, arguments)],
        env=os.environ | variables | {"GLOO_SOCKET_IFNAME": interface},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def ended(launched: "subprocess.Popen[str]") -> tuple[int, str]:
    """Wait for the launcher; returns its exit code and the last lines of our commands."""
    try:
        _, err = launched.communicate(timeout=patience(LAUNCHED_SECONDS))
    finally:
        if launched.poll() is None:
            os.killpg(launched.pid, signal.SIGKILL)
    ours = ("imaging train", "recsys train")
    return launched.returncode, "\n".join(line for line in err.splitlines() if line.startswith(ours))


def children(out: Path) -> Iterator[tuple[str, int]]:
    """Yield the ranks of the training that writes into ``out``, with the pids of the processes that compute."""
    for place in Path("/proc").iterdir():
        try:
            words = (place / "cmdline").read_bytes().split(b"\0")
            if str(out).encode() in words and b"-P" in words:
                variables = (place / "environ").read_bytes().split(b"\0")
                yield next(value.decode()[5:] for value in variables if value.startswith(b"RANK=")), int(place.name)
        except (OSError, StopIteration):
            continue
