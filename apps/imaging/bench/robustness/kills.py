"""Kill a run of several studies at random moments, resume it, and count results that are lost, repeated or partial.

``python -m apps.imaging.bench.robustness.kills WORK [KILLS]``. The run is done once undisturbed, for its duration and
its outputs. Then it is started and killed at a random moment of that duration, with SIGKILL for all its processes or
only for the worker. Its outputs are checked, and it is started again with the same command until the number of kills is
reached. A run that ends before its kill is removed and started from the beginning.
"""

import hashlib
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from apps.imaging.inference.studies import TABLE, Study, read_table
from common.bench.kill_chain import run_and_kill

STUDIES = 12
KILLS = 20
SLICES, EDGE = 24, 96


def make_studies(folder: Path, count: int) -> Path:
    """Write DICOM series, each with its own voxels and UIDs."""
    from apps.imaging.bench.large import make_series

    for number in range(count):
        make_series(folder / f"{number:02d}", SLICES, None, seed=number, edge=EDGE)
    return folder


def digests(out: Path) -> dict[str, str]:
    """Return the SHA-256 of every study's outputs, by file name."""
    files = [path for path in out.glob("[!.]*") if path.name not in {TABLE, "run.json"}]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def finished(out: Path) -> dict[str, Study]:
    """Return the studies that the table lists as done or skipped, by name."""
    return {row.study: row for row in read_table(out) if row.status in ("done", "skipped")}


def disturb(command: Sequence[str], out: Path, kills: int, seconds: float, expected: dict[str, str]) -> dict[str, Any]:
    """Kill and resume; returns the counts of lost, repeated, partial and left-over outputs."""
    random = np.random.default_rng(0)
    lost = repeated = partial = done_kills = complete = 0
    after: list[int] = []
    while done_kills < kills:
        before = finished(out)
        times = {name: (out / name).stat().st_mtime_ns for row in before.values() for name in row.outputs}
        killed, code = run_and_kill(command, random, seconds)
        done_kills += killed
        now = finished(out)
        after.append(len(now))
        lost += len(before.keys() - now.keys())
        repeated += sum(
            (out / name).exists() and (out / name).stat().st_mtime_ns != when for name, when in times.items()
        )
        lost += sum(not (out / name).exists() for name in times)
        present = digests(out) if out.is_dir() else {}
        partial += sum(expected.get(name) != digest for name, digest in present.items())
        lost += sum(name not in present for row in now.values() for name in row.outputs)
        if code == 0:
            complete += 1
            shutil.rmtree(out)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    final = digests(out)
    left = [path.name for path in out.iterdir() if path.name not in {*expected, TABLE, "run.json"}]
    return {
        "kills": done_kills,
        "finished_after_each": after,
        "runs_that_ended": complete,
        "lost": lost + len(expected.keys() - final.keys()),
        "repeated": repeated,
        "partial": partial + sum(final.get(name) != digest for name, digest in expected.items()),
        "left_over": len(left),
    }


def main(argv: Sequence[str]) -> int:
    """Run ``WORK [KILLS]`` and print the result as JSON."""
    from apps.imaging.bench.large import make_model

    work, kills = Path(argv[0]), int(argv[1]) if len(argv) > 1 else KILLS
    model = make_model(work / "model-tiny", classes=3, filters=8, tile=16)
    source, out = make_studies(work / "twelve", STUDIES), work / "out-twelve"
    shutil.rmtree(out, ignore_errors=True)
    command = [sys.executable, "-m", "apps.imaging", "infer", str(source), "-m", str(model), "-o", str(out), "--tile",
               "32", "--output-type", "nifti,dicom-seg", "--statistics", "--preview", "-q"]  # fmt: skip
    subprocess.run(command, check=True)  # measures the costs, which are cached then
    shutil.rmtree(out)
    began = time.monotonic()
    subprocess.run(command, check=True)
    seconds, expected = time.monotonic() - began, digests(out)
    shutil.rmtree(out)
    sys.stdout.write(json.dumps(disturb(command, out, kills, seconds, expected)) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
