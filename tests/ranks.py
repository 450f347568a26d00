"""Several processes that form a group over gloo, for tests."""

import os
import subprocess
import sys
from pathlib import Path

from tests.conftest import ROOT

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
