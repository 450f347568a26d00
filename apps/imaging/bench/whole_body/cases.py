"""Cases of whole-body models of TotalSegmentator's shapes: time at 3 mm, the set of five at 1.5 mm, and a tile's speed.

The series are a real CT tiled to 512 x 512 pixels of 0.8 mm with noise, slices 1.5 mm apart. Weights are random: only
memory, time and equality are measured. Seconds are judged by what this machine multiplies in the same run
(``apps.imaging.bench.whole_body.machine``).
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from apps.imaging.bench.headline_infer import make_volume
from apps.imaging.bench.large import make_series
from apps.imaging.bench.volumes import read_whole
from apps.imaging.bench.whole_body.networks import FAST, FULL, PATCHES, data_sets, make_results, multiplications
from apps.imaging.inference.phases import INFER
from apps.imaging.models.label_map import read_entries, shipped_map
from common import datasets
from common.bench.harness import Bound, Suite
from common.errors import EXIT_DOES_NOT_FIT
from common.memory.process.budget import GIB, MIB

MODULE = "apps.imaging.bench.whole_body.cases"
PIXEL, SPACING = 0.8, 1.5
"""Millimetres of a pixel and from slice to slice: 411 x 411 x 900 mm for 600 slices."""
SHORT, LONG = 60, 600
TILES_FAST = 16
"""Of the long series at 3 mm: 137 x 137 x 300 voxels."""
EDGE, TILES = 256, 27
"""Voxels of the volume of 3 x 3 x 3 tiles of 128 at half overlap, on which a tile's speed is read."""
REFUSED = "200MiB"
BOUNDS: Mapping[str, Sequence[Bound]] = MappingProxyType(
    {
        "fast": (Bound("result.share_of_peak", at_least=0.6), Bound("result.rest_seconds", at_most=25)),
        "total": (
            Bound("result.different", at_most=0),
            Bound("result.smallest_mib", at_most=1.8 * 1024),
            Bound("result.classes", at_least=117),
            Bound("result.peak_over_ceiling", at_most=1.0),
        ),
        "long": (Bound("result.peak_over_ceiling", at_most=1.0),),
        "tile": (Bound("result.share_of_peak", at_least=0.6), Bound("result.other_share", at_most=0.05)),
    }
)


def add_cases(suite: Suite, work: Path) -> None:
    """Declare the cases; each makes the models and series that it needs."""
    for name, bounds in BOUNDS.items():
        suite.case(f"whole-body-{name}", ["-m", MODULE, name, work], bounds=bounds)


def machine() -> dict[str, float]:
    """Measure the machine in a process of its own."""
    script = "import json, os; from apps.imaging.bench.whole_body.machine import multiplications as m; "
    script += "print(json.dumps(m(len(os.sched_getaffinity(0)))))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return dict(json.loads(done.stdout))


def infer(source: Path, out: Path, *options: object) -> dict[str, Any]:
    """Run ``imaging infer`` anew and return its record; a refusal has one too."""
    words = ["infer", source, "-o", out, "--json", "-q", *options]
    shutil.rmtree(out, ignore_errors=True)
    command = [sys.executable, "-m", "apps.imaging", *map(str, words)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode not in (0, EXIT_DOES_NOT_FIT):
        raise SystemExit(done.returncode)
    record: dict[str, Any] = json.loads(done.stdout)
    return record


def series(work: Path, slices: int) -> Path:
    """Make a series of so many slices."""
    sample = datasets.find("ct-sample")
    source = sample / "example_ct.nii.gz" if sample is not None else None
    return make_series(work / f"body-{slices}", slices, source, pixel=PIXEL, spacing=SPACING)


def fast(work: Path) -> dict[str, Any]:
    """The network for 3 mm on the long series, from DICOM to a DICOM segmentation.

    Returns
    -------
    dict
        ``network_seconds``; ``rest_seconds``, all else from the start of the process to its end; ``first_seconds`` of
        the run before, which converts the model; ``peak_gmacs`` of this machine, the larger of before and after;
        ``share_of_peak`` that the network reaches; ``peak_mib``.
    """
    source, out = series(work, LONG), work / "out-fast"
    options = ("-m", make_results(work / "fast", FAST), "--task", "total", "--fast", "--output-type", "dicom-seg")
    first = infer(series(work, SHORT), work / "out-fast-short", *options)
    before = machine()
    record = infer(source, out, *options)
    return timed(record, before, TILES_FAST * multiplications(FAST, PATCHES[FAST])) | {
        "first_seconds": first["seconds"]
    }


def timed(record: Mapping[str, Any], before: Mapping[str, float], work: int) -> dict[str, Any]:
    """Figures of a run whose network multiplied and added ``work`` times.

    ``other_share`` is what tiling, blending and labelling add to the network's time, ``rest_seconds`` all else.
    """
    network, seconds = record["results"]["network_seconds"], record["seconds"]
    inferring = next(phase["seconds"] for phase in record["measured"]["phases"] if phase["name"] == INFER)
    peak = max(before["peak"], machine()["peak"])
    return {
        "network_seconds": network,
        "rest_seconds": seconds - network,
        "other_share": inferring / network - 1,
        "peak_gmacs": peak,
        "share_of_peak": work / network / 1e9 / peak,
        "peak_mib": record["measured"]["peak_bytes"] / MIB,
        "recalled": record["results"].get("constant_tiles", 0),
    }


def total(work: Path) -> dict[str, Any]:
    """Five networks, one label map, under the smallest ceiling that the refusal names; the last one under 2 GiB too.

    Returns
    -------
    dict
        ``smallest_mib``; ``different`` voxels of the last network's classes, which stay where several meet; ``classes``
        found; ``peak_over_ceiling``, the larger of both; ``seconds``, ``network_seconds`` and ``peaks_mib`` of each.
    """
    source, model = series(work, SHORT), make_results(work / "five", FULL)
    options = ("-m", model, "--task", "total")
    infer(source, work / "out-total-planned", *options, "--dry-run", "--memory", 8 * GIB)  # which converts the models
    refused = infer(source, work / "out-total-refused", *options, "--memory", REFUSED)
    smallest = int(refused["smallest_feasible_bytes"])
    last = [entry for entry in read_entries(shipped_map(FULL)) if entry["from"]["model"] == [*data_sets(FULL)][-1]]
    alone = ("--roi-subset", ",".join(entry["name"] for entry in last))
    runs, labels = [], []
    for name, ceiling, more in (("small", smallest, ()), ("large", 2 * GIB, alone)):
        out = work / f"out-total-{name}"
        runs.append(infer(source, out, *options, "--memory", ceiling, *more))
        (path,) = out.glob("*.nii.gz")
        labels.append(read_whole(path)[0])
    of_last = np.where(np.isin(labels[0], [entry["value"] for entry in last]), labels[0], 0)
    return {
        "smallest_mib": smallest / MIB,
        "different": int((of_last != labels[1]).sum()),
        "classes": len(np.unique(labels[0])) - 1,
        "peak_over_ceiling": max(run["measured"]["peak_bytes"] / run["budget"]["host_bytes"] for run in runs),
        "peaks_mib": [run["measured"]["peak_bytes"] / MIB for run in runs],
        "seconds": [run["seconds"] for run in runs],
        "network_seconds": [run["results"]["network_seconds"] for run in runs],
    }


def long(work: Path) -> dict[str, Any]:
    """The first of the five networks on the long series under 1.9 GiB."""
    model = next((make_results(work / "five", FULL) / f"{next(iter(data_sets(FULL)))}_random").iterdir())
    record = infer(series(work, LONG), work / "out-long", "-m", model, "--memory", "1.9GiB")
    return {
        "peak_over_ceiling": record["measured"]["peak_bytes"] / record["budget"]["host_bytes"],
        "peak_mib": record["measured"]["peak_bytes"] / MIB,
        "seconds": record["seconds"],
        "network_seconds": record["results"]["network_seconds"],
    }


def tile(work: Path, *options: object) -> dict[str, Any]:
    """Tiles of 128x128x128 through one network."""
    model = next((make_results(work / "five", FULL) / f"{next(iter(data_sets(FULL)))}_random").iterdir())
    image = make_volume(work / f"tiles-{EDGE}.nii.gz", (EDGE,) * 3, None, spacing=SPACING)
    before = machine()
    record = infer(image, work / "out-tiles", "-m", model, *options)
    return timed(record, before, TILES * multiplications(FULL, PATCHES[FULL]))


if __name__ == "__main__":
    chosen = {"fast": fast, "total": total, "long": long, "tile": tile}[sys.argv[1]]
    sys.stdout.write(json.dumps(chosen(Path(sys.argv[2]))) + "\n")
