"""A run killed at random moments, as the suite ``imaging`` does it 20 times with 12 series; here a small part."""

import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from apps.imaging.bench.robustness import kills
from tests.apps.imaging.helpers import random_model, write_nifti


def test_nothing_is_lost_repeated_or_partial(tmp_path: Path) -> None:
    random_model(tmp_path / "model")
    inputs, out = tmp_path / "in", tmp_path / "out"
    inputs.mkdir()
    random = np.random.default_rng(0)
    for number in range(4):
        write_nifti(inputs / f"{number}.nii.gz", random.integers(0, 500, (48, 48, 48)).astype(np.int16))
    command = [sys.executable, "-m", "apps.imaging", "infer", *map(str, (inputs, "-m", tmp_path / "model", "-o", out))]
    command += ["--statistics", "-q"]
    subprocess.run(command, check=True)
    expected = kills.digests(out)
    assert len(expected) == 4 * 3
    kills.shutil.rmtree(out)
    began = time.monotonic()
    subprocess.run(command, check=True)
    seconds = time.monotonic() - began
    kills.shutil.rmtree(out)
    found = kills.disturb(command, out, 3, seconds, expected)
    assert found["kills"] == 3
    assert [found[name] for name in ("lost", "repeated", "partial", "left_over")] == [0, 0, 0, 0], found


def test_a_lost_and_a_partial_output_would_be_seen(tmp_path: Path) -> None:
    """The counting itself, on a command that leaves half a file and never ends."""
    out = tmp_path / "out"
    script = f"import pathlib, time; p = pathlib.Path({str(out)!r}); p.mkdir(exist_ok=True)\n"
    script += "flag = p.parent / 'flag'\n"
    script += "if not flag.exists(): flag.touch(); (p / 'study-0001.nii.gz').write_bytes(b'half'); time.sleep(60)\n"
    found = kills.disturb([sys.executable, "-c", script], out, 1, 1.0, {"study-0001.nii.gz": "whole"})
    assert found["kills"] == 1 and found["partial"] >= 1
