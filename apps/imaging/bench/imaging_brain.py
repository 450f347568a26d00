"""The suite ``imaging-brain``: a whole-brain model that was trained on label maps alone, read on real images.

The model is the folder that ``PEAKLINE_BRAIN`` names, else the installed ``brain``. ``brain-t1`` compares it with
FreeSurfer's labels of one T1, which no training sees. ``brain-mni`` compares grey and white matter with the maps of the
MNI152 average at 0.5, both from the files of PyPI's ``nilearn``. If ``PEAKLINE_MESHNET`` names a checkout of
neuroneural/brainchop-models, MeshNet's two networks of the same structures read the same images beside it.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from apps.imaging.bench.peers.meshnet import MESHNET, NETWORKS, TABLE
from apps.imaging.training.data.label_table import read_table
from common import datasets
from common.bench.harness import Bound, Suite
from common.resources import data_folder

WORK = Path("bench/work/imaging-brain")
CEILING = "400MiB"
LIA = ((-1, 0, 0, 79.5), (0, 0, 1, -111.5), (0, -1, 0, 95.5), (0, 0, 0, 1))
"""Affine of the T1, which has none: its axes run left, down and forward, as the places of its labels show."""
NOT_COMPARED = ("cerebrospinal fluid",)
"""The maps have all fluid around the brain, FreeSurfer's label only what is near the ventricles."""
GREY = (
    *("cerebral cortex", "cerebellar cortex", "thalamus", "caudate", "putamen"),
    *("hippocampus", "amygdala", "accumbens"),
)
"""Structures that are summed as grey matter."""
WHITE = ("cerebral white matter", "cerebellar white matter", "brainstem", "ventral diencephalon", "pallidum")
"""Structures that are summed as white matter."""
T1_DICE = Bound("result.mean_dice", at_least=0.85)
TISSUES = (Bound("result.grey", at_least=0.80), Bound("result.white", at_least=0.80))
NOT_BELOW = 1.0
"""The brain model's Dice over that of MeshNet's smaller network, on the same structures."""
WHOLE_HEAD = {"t1": "1"}
"""What MeshNet takes for the highest intensity, so that the image's are as bright as in a head with its skull. The T1
stores FreeSurfer's intensities of 0 to 255 as 0 to 1; the median of white matter is 103, the 0.999 quantile 150."""

Labels = npt.NDArray[np.integer]
Reader = Callable[[Path], tuple[Labels, dict[str, float]]]
"""Labels of an image as the class table numbers them, with the seconds and the peak of the process that found them."""


def suite() -> Suite:
    """Declare the cases whose model and data are on this machine."""
    brain = Suite("imaging-brain")
    model = Path(os.environ.get("PEAKLINE_BRAIN") or data_folder() / "models" / "brain")
    if not model.is_dir():
        sys.stderr.write(f"imaging-brain: no model {model}; PEAKLINE_BRAIN=FOLDER names one\n")
        return brain
    here = "apps.imaging.bench.imaging_brain"
    images = {
        "t1": (datasets.find("brain-t1") is not None, (T1_DICE,)),
        "mni": (find_spec("nilearn") is not None, TISSUES),
    }
    for image, (present, bounds) in images.items():
        if not present:
            continue
        brain.case(f"brain-{image}", ["-m", here, image, "peakline", model], group=image, bounds=bounds)
        if not (MESHNET / "meshnet").is_dir() or Path() == MESHNET:
            sys.stderr.write(
                f"imaging-brain: brain-{image} without MeshNet; PEAKLINE_MESHNET names no checkout of it\n"
            )
            continue
        for name, folder in NETWORKS.items():
            brain.case(f"brain-{image}-{name}", ["-m", here, image, "meshnet", MESHNET / folder], group=image)
        peers = ["meshnet"]
        if highest := WHOLE_HEAD.get(image):
            peers.append("meshnet-head")
            words = ["-m", here, image, "meshnet", MESHNET / NETWORKS["meshnet"], highest]
            brain.case(f"brain-{image}-meshnet-head", words, group=image)
        # The aim is the T1. On MNI152 this model is ahead by .04 at grey matter, and MeshNet by .001 at white.
        for bound, peer in product(bounds if image == "t1" else (), peers):
            over = Bound(bound.metric, at_least=NOT_BELOW)
            brain.ratio(f"{bound.metric} against MeshNet's", f"brain-{image}", f"brain-{image}-{peer}", over)
    return brain


def of_t1(read: Reader) -> dict[str, Any]:
    """Dice of each structure on the T1 with FreeSurfer's labels."""
    import nibabel as nib

    folder, table = datasets.find("brain-t1"), read_table(TABLE)
    if folder is None:
        raise SystemExit("imaging-brain: data set brain-t1 not found (PEAKLINE_DATA)")
    with np.load(folder / "test_scan.npz") as scan:
        image, stored = scan["vol"].astype(np.float32), scan["seg"].astype(np.int32)
    WORK.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(image, np.array(LIA, float)), WORK / "t1.nii.gz")
    stored[np.isin(stored, table.missing(map(int, np.unique(stored))))] = 0
    truth = table.class_of[table.tissues(stored)]
    found, cost = read(WORK / "t1.nii.gz")
    per_class = {
        name: round(dice(found == value, truth == index), 4)
        for index, (value, name) in enumerate(table.labels.items())
        if index and name not in NOT_COMPARED
    }
    return {"mean_dice": round(float(np.mean(list(per_class.values()))), 4), "per_class": per_class} | cost


def of_mni(read: Reader) -> dict[str, float]:
    """Dice of grey and white matter on the MNI152 average."""
    import nibabel as nib

    spec, table = find_spec("nilearn"), read_table(TABLE)
    assert spec is not None and spec.submodule_search_locations
    folder = Path(spec.submodule_search_locations[0]) / "datasets" / "data"
    t1, grey, white = (folder / f"mni_icbm152_{kind}_tal_nlin_sym_09a_converted.nii.gz" for kind in ("t1", "gm", "wm"))
    found, cost = read(t1)
    values = {name: value for value, name in table.labels.items()}
    answer = {}
    for tissue, path, names in (("grey", grey, GREY), ("white", white, WHITE)):
        share = np.asanyarray(nib.load(path).dataobj)  # type: ignore[attr-defined]  # stored from 0 to 255
        answer[tissue] = round(dice(np.isin(found, [values[name] for name in names]), share > 127), 4)
    return answer | cost


def dice(one: npt.NDArray[np.bool_], two: npt.NDArray[np.bool_]) -> float:
    """Dice of two masks; NaN if both are empty."""
    size = int(one.sum()) + int(two.sum())
    return 2 * int((one & two).sum()) / size if size else float("nan")


def by_peakline(model: Path, image: Path) -> tuple[Labels, dict[str, float]]:
    """Labels of ``imaging infer`` under the ceiling."""
    out = WORK / f"labels-{image.name.partition('.')[0]}"
    words = ("infer", image, "-m", model, "-o", out, "--memory", CEILING, "--preview", "-q", "--json")
    record, seconds = _run(["-m", "apps.imaging", *map(str, words)])
    (path,) = out.glob("*.nii.gz")
    return _labels(path), {"seconds": seconds, "peak_mib": record["measured"]["peak_bytes"] >> 20}


def by_meshnet(folder: Path, image: Path, *, more: Sequence[str] = ()) -> tuple[Labels, dict[str, float]]:
    """Labels of a network of MeshNet, the highest intensity given or taken from the image."""
    WORK.mkdir(parents=True, exist_ok=True)
    out = WORK / f"{folder.name}-{image.name}"
    record, seconds = _run(["-m", "apps.imaging.bench.peers.meshnet", *map(str, (folder, image, out)), *more])
    return _labels(out), {"seconds": seconds, "peak_mib": record["peak_bytes"] >> 20}


def _run(words: list[str]) -> tuple[dict[str, Any], float]:
    """Run a module; return the JSON object that it prints, and its seconds from start to end."""
    began = time.monotonic()
    done = subprocess.run([sys.executable, *words], check=True, stdout=subprocess.PIPE)
    return json.loads(done.stdout), round(time.monotonic() - began, 1)


def _labels(path: Path) -> Labels:
    import nibabel as nib

    labels: Labels = np.asanyarray(nib.load(path).dataobj)  # type: ignore[attr-defined]
    return labels


if __name__ == "__main__":
    if len(sys.argv) >= 4 and sys.argv[1] in ("t1", "mni"):
        image, engine, folder, *more = sys.argv[1:]
        run = partial(by_meshnet, more=more) if engine == "meshnet" else by_peakline
        compare: Callable[[Reader], dict[str, Any]] = {"t1": of_t1, "mni": of_mni}[image]
        sys.stdout.write(json.dumps(compare(partial(run, Path(folder)))) + "\n")
        sys.exit(0)
    sys.exit(suite().main())
