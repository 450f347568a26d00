"""The suite ``codecs``: what the shipped model loses on images that were stored in smaller forms.

Each form stores the held-out images of the Decathlon's hippocampus, and ``imaging infer`` segments what is read back.
``make bench-codecs``.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from apps.imaging.bench import imaging_int8
from apps.imaging.bench.codecs.forms import FORMS
from common import datasets
from common.bench.harness import Bound, Suite

WORK = Path("bench/work/codecs")
MODEL = "hippocampus"
EXACT = Bound("result.drop", at_most=0.0005)
"""Largest drop of the mean Dice of forms that are meant to lose nothing."""
LOSSLESS = ("float16", "uint16", "png-16", "jpeg2000-lossless", "jpegls-0")


def suite() -> Suite:
    """Declare a case for each form."""
    codecs = Suite("codecs")
    if datasets.find("msd-hippocampus") is None:
        sys.stderr.write("codecs: data set msd-hippocampus not found\n")
        return codecs
    for name in FORMS:
        bounds = (EXACT,) if name in LOSSLESS else ()
        codecs.case(f"codec-{name}", ["-m", "apps.imaging.bench.codecs.suite", name], bounds=bounds)
    return codecs


def measure(name: str) -> dict[str, Any]:
    """Bits of a voxel, seconds for a million voxels both ways, and Dice with its drop from float32's."""
    folder = datasets.find("msd-hippocampus")
    if folder is None:
        raise SystemExit("codecs: data set msd-hippocampus not found (PEAKLINE_DATA)")
    imaging_int8.links(folder)
    held_out = sorted((imaging_int8.WORK / "held-out").glob("*.nii.gz"))
    images, found = WORK / name / "images", WORK / name / "found"
    images.mkdir(parents=True, exist_ok=True)
    size = voxels = 0
    seconds = 0.0
    for path in held_out:
        image: Any = nib.load(path)
        values = image.get_fdata(dtype=np.float32)
        began = time.process_time()
        stored, back = FORMS[name](values)
        seconds += time.process_time() - began
        size, voxels = size + stored, voxels + values.size
        nib.save(nib.Nifti1Image(back, image.affine), images / path.name)
    imaging_int8.run_imaging("infer", images, "-m", MODEL, "-o", found)
    dice = imaging_int8.run_imaging("evaluate", found, imaging_int8.WORK / "labels")["results"]["mean_dice"]
    whole = dice if name == "float32" else json.loads((WORK / "float32.json").read_text())["mean_dice"]
    answer = {
        "bits_per_voxel": round(8 * size / voxels, 3),
        "seconds_per_million_voxels": round(1e6 * seconds / voxels, 4),
        "mean_dice": dice,
        "drop": round(whole - dice, 5),
        "cases": len(held_out),
    }
    (WORK / f"{name}.json").write_text(json.dumps(answer))
    return answer


if __name__ == "__main__":
    if len(sys.argv) > 1 and not sys.argv[1].startswith("-"):
        sys.stdout.write(json.dumps(measure(sys.argv[1])) + "\n")
        sys.exit(0)
    sys.exit(suite().main())
