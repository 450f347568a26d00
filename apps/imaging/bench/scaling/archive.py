"""The suite ``scaling``: an archive of 200 studies, segmented in parts.

``archive-killed`` runs four parts. Each is killed five times at random instants and then started once more; the suite
compares what ``imaging merge`` makes of them with one process's outputs. ``archive-time`` takes the time of one process
with one thread and with two, and of two parts at once with one thread each. The studies are the Decathlon's hippocampi,
the model is the shipped one.
"""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from apps.imaging.inference.running.parts import FILE
from apps.imaging.inference.studies import TABLE
from common import datasets
from common.bench.harness import Bound, Suite
from common.bench.kill_chain import digests, run_and_kill, start
from common.memory.process.budget import MIB
from common.parts import Part

WORK = Path("bench/work/scaling")
STUDIES, PARTS, KILLS = 200, 4, 20
NO_FAULTS = Bound("result.faults", at_most=0)
OF_A_PART = Bound("result.largest_peak_bytes", at_most=400 * MIB)
TWO_PARTS = (Bound("result.over_one_thread", at_most=0.6), Bound("result.over_two_threads", at_most=1.0))


def suite() -> Suite:
    """Declare the cases."""
    scaling = Suite("scaling")
    if datasets.find("msd-hippocampus") is None:
        sys.stderr.write("scaling: data set msd-hippocampus not found\n")
        return scaling
    module = ["-m", "apps.imaging.bench.scaling.archive"]
    scaling.case("archive-killed", [*module, "killed"], bounds=(NO_FAULTS, OF_A_PART))
    scaling.case("archive-time", [*module, "timed"], bounds=TWO_PARTS)
    return scaling


def archive(folder: Path, count: int) -> Path:
    """Make a folder of links to so many studies."""
    hippocampus = datasets.find("msd-hippocampus")
    assert hippocampus is not None
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for image in sorted((hippocampus / "imagesTr").glob("*.nii.gz"))[:count]:
        (folder / image.name).symlink_to(image.resolve())
    return folder


def command(source: Path, out: Path, *options: object) -> list[str]:
    """The command line of ``imaging infer``."""
    words = ["infer", source, "-m", "hippocampus", "-o", out, "--statistics", "-q", *options]
    return [sys.executable, "-m", "apps.imaging", *map(str, words)]


def killed(work: Path, *, studies: int = STUDIES, parts: int = PARTS, kills: int = KILLS) -> dict[str, Any]:
    """Segment an archive in one process, and in parts that are killed; compare.

    Returns
    -------
    dict
        ``faults``: files of one process that differ or are missing after the merge, and files more. ``kills``;
        ``largest_peak_bytes`` of the parts' last runs.
    """
    source, one, out = archive(work / "in", studies), work / "one", work / "parts"
    for folder in (one, out):
        shutil.rmtree(folder, ignore_errors=True)
    began = time.monotonic()
    subprocess.run(command(source, one), check=True)
    seconds, random = (time.monotonic() - began) / parts, np.random.default_rng(0)
    all_parts = [Part(number, parts) for number in range(1, parts + 1)]
    for part in all_parts:
        words, done = command(source, out, "--part", f"{part.number}/{part.of}"), 0
        while done < kills // parts:
            was_killed, code = run_and_kill(words, random, seconds)
            done += was_killed
            if code == 0:  # it ended before that
                shutil.rmtree(part.folder(out))
        subprocess.run(words, check=True)
    merging = [sys.executable, "-m", "apps.imaging", "merge", str(out)]
    subprocess.run(merging, check=True, stdout=subprocess.DEVNULL)
    records = [json.loads((part.folder(out) / "run.json").read_text("utf-8")) for part in all_parts]
    peaks = [record["measured"]["peak_bytes"] for record in records]
    whole, merged = _outputs(one), _outputs(out)
    different = [name for name in whole.keys() | merged.keys() if whole.get(name) != merged.get(name)]
    return {"faults": len(different), "files": len(whole), "kills": kills, "largest_peak_bytes": max(peaks)}


def _outputs(folder: Path) -> dict[str, str]:
    """Digests of the files directly in a folder: the table and the outputs, not the record of a run."""
    found = {Path(name).name: digest for name, digest in digests(folder).items() if len(Path(name).parts) == 2}
    return {name: digest for name, digest in found.items() if name not in ("run.json", FILE)}


def timed(work: Path, *, studies: int = STUDIES) -> dict[str, Any]:
    """Take the time of an archive: one process with one thread and with two, and two parts with one thread each."""
    source = archive(work / "in", studies)
    ways: dict[str, Sequence[Sequence[object]]] = {
        "one_thread": [("--threads", 1)],
        "two_threads": [("--threads", 2)],
        "two_parts": [("--threads", 1, "--part", "1/2"), ("--threads", 1, "--part", "2/2")],
    }
    subprocess.run(command(source, work / "first", "--dry-run"), check=True, stdout=subprocess.DEVNULL)
    seconds = {}
    for name, processes in ways.items():
        out = work / name
        shutil.rmtree(out, ignore_errors=True)
        began = time.monotonic()
        running = [start(command(source, out, *options)) for options in processes]
        codes = [each.wait() for each in running]
        assert not any(codes), codes
        assert (out / TABLE).is_file() or name == "two_parts"
        seconds[name] = time.monotonic() - began
    over = {f"over_{name}": seconds["two_parts"] / seconds[name] for name in ("one_thread", "two_threads")}
    return {**over, "seconds": seconds}


if __name__ == "__main__":
    if sys.argv[1:] in (["killed"], ["timed"]):
        found = (killed if sys.argv[1] == "killed" else timed)(WORK)
        sys.stdout.write(json.dumps(found) + "\n")
        sys.exit(0)
    sys.exit(suite().main())
