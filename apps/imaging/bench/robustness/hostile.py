"""Read 10,000 damaged files: each has to be read whole or refused in one line, in time and under a ceiling.

``python -m apps.imaging.bench.robustness.hostile read [FILES]`` reads header and pixels of each file as ``imaging
infer`` does, with a time limit. ``... infer WORK [FILES]`` runs the command itself on all of them, in folders of
``FOLDER`` studies, and checks that no patient's name gets into an output.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from apps.imaging.bench.robustness import mutations
from common.errors import BadInput
from common.memory.process import guard, meter
from common.memory.process.budget import MIB

FILES = 10_000
FOLDER = 500
"""Number of studies per command."""
SEG_FOLDERS = 20
"""DICOM SEG is written for one folder in this many; it takes an extra process per study."""
HANG = 5
"""Seconds a file may take."""
CEILING = 256 * MIB
"""Memory limit of a reading process."""
COMMAND_CEILING = "400MiB"
ACCEPTED = "accepted"
_NAME = mutations.PLANTED.split("^")[0].encode()


def read_one(path: Path) -> str:
    """Read header and all planes; returns ``ACCEPTED`` or the reason of the refusal."""
    from apps.imaging.inference.discovery import open_volume
    from apps.imaging.volumes.volume import blocks

    try:
        volume = open_volume(path)
        volume.describe()
        volume.identity()
        if volume.reader_bytes + 8 * volume.shape[0] * volume.shape[1] > CEILING // 2:
            return "does not fit"  # the planner refuses such a size before anything is allocated
        for _ in blocks(volume):
            pass
    except BadInput as error:
        return error.public
    return ACCEPTED


@contextmanager
def _alarm() -> Iterator[None]:
    """Let SIGALRM kill the process if it hangs."""
    signal.alarm(HANG)
    try:
        yield
    finally:
        signal.alarm(0)


def read_some(first: int, stop: int) -> None:
    """Read the files with these numbers; print one JSON line per file, so that a crash shows which file caused it."""
    import apps.imaging.dicom.series
    from apps.imaging import warm_up

    warm_up._images()
    del apps
    guard.soft_wall(CEILING, threads=1)
    with tempfile.TemporaryDirectory() as directory:
        for number in range(first, stop):
            path = mutations.write_case(Path(directory), number)
            began = time.monotonic()
            with _alarm():
                try:
                    outcome = read_one(path)
                except Exception as error:  # untyped exceptions are what this benchmark looks for
                    outcome = f"! {type(error).__name__}: {str(error)[:80]}"
            result = {"file": number, "outcome": outcome, "seconds": time.monotonic() - began}
            sys.stdout.write(json.dumps(result | {"peak": meter.lifetime_peak()}) + "\n")
            sys.stdout.flush()


def read(files: int) -> dict[str, Any]:
    """Read all files in child processes.

    A child that ends badly has crashed or hung at the file after its last line.
    """
    results: list[dict[str, Any]] = []
    crashes: list[int] = []
    number = 0
    while number < files:
        stop = min(number + FOLDER, files)
        child = subprocess.run(
            [sys.executable, "-m", "apps.imaging.bench.robustness.hostile", "some", str(number), str(stop)],
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        )
        done = [json.loads(line) for line in child.stdout.splitlines()]
        results += done
        number += len(done)
        if child.returncode or number < stop:
            crashes.append(number)
            number += 1
    outcomes = Counter(result["outcome"] for result in results)
    untyped = [result for result in results if result["outcome"].startswith("!")]
    return {
        "files": len(results) + len(crashes),
        "crashes": len(crashes),
        "untyped": len(untyped),
        "slowest_seconds": round(max(result["seconds"] for result in results), 3),
        "peak_mib": round(max(result["peak"] for result in results) / MIB, 1),
        "accepted": outcomes[ACCEPTED],
        "outcomes": dict(outcomes.most_common(40)),
        "worst": crashes[:10] + [{**result} for result in untyped[:10]],
    }


def infer(work: Path, files: int, *, seg: bool = False) -> dict[str, Any]:
    """Run the command itself; returns exit codes, peaks against the ceiling, and files that contain the planted name.

    Parameters
    ----------
    seg
        Write DICOM SEG for every folder instead of every ``SEG_FOLDERS``-th.
    """
    from apps.imaging.bench.large import make_model

    model = make_model(work / "model-tiny", classes=3, filters=8, tile=16)
    codes: Counter[str] = Counter()
    states: Counter[str] = Counter()
    above = leaks = named = 0
    peaks, errors = [], []
    for index, first in enumerate(range(0, files, FOLDER)):
        with tempfile.TemporaryDirectory(dir=work) as directory:
            source, out = Path(directory, "in"), Path(directory, "out")
            source.mkdir()
            for number in range(first, min(first + FOLDER, files)):
                mutations.write_case(source, number)
            types = "dicom-seg" if seg or index % SEG_FOLDERS == SEG_FOLDERS - 1 else "nifti"
            command = [sys.executable, "-m", "apps.imaging", "infer", source, "-m", model, "-o", out, "--json",
                       "--memory", COMMAND_CEILING, "--statistics", "--preview", "--report", "--output-type", types,
                       "--threads", "1", "--overlap", "0"]  # fmt: skip
            done = subprocess.run([*map(str, command)], capture_output=True, text=True)
            record = json.loads(done.stdout)
            codes[f"exit {done.returncode}"] += 1
            if "measured" in record:
                states.update(row["status"] for row in record["results"].get("studies", ()))
                peaks.append(record["measured"]["peak_bytes"])
            else:  # the command was killed and the supervisor wrote the record
                errors.append(record["error"])
            above += not record.get("within_budget", False)
            leaks += leaking(out, done.stdout + done.stderr)
            named += sum(_NAME in path.read_bytes() for path in out.glob("*.seg.dcm"))
    return {
        "files": files,
        "codes": dict(codes),
        "studies": dict(states),
        "wrong_endings": sum(count for code, count in codes.items() if code not in ("exit 0", "exit 4")),
        "above_ceiling": above,
        "peak_mib": round(max(peaks) / MIB, 1),
        "leaks": leaks,
        "named_segs": named,
        "errors": errors[:10],
    }


def leaking(out: Path, printed: str) -> int:
    """Count the files other than SEG objects that contain the planted name, plus one if the printed text does."""
    files = [path for path in out.rglob("*") if path.is_file() and not path.name.endswith(".seg.dcm")]
    return sum(_NAME in path.read_bytes() for path in files) + (_NAME in printed.encode())


def main(argv: list[str]) -> int:
    """Run ``read [FILES]``, ``infer WORK [FILES]`` or, in a child, ``some FIRST STOP``."""
    if argv[0] == "some":
        read_some(int(argv[1]), int(argv[2]))
        return 0
    if argv[0] == "read":
        answer = read(int(argv[1]) if len(argv) > 1 else FILES)
    else:
        answer = infer(Path(argv[1]), int(argv[2]) if len(argv) > 2 else FILES)
    sys.stdout.write(json.dumps(answer) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
