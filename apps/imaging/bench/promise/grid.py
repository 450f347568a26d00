"""Check the promise for ``imaging``: its commands on real images at every ceiling.

``make bench-promise``; it needs ``msd-hippocampus`` and ``ct-sample`` in ``PEAKLINE_DATA``. The CT's network has random
weights; only memory is measured on it.
"""

import json
import shutil
import sys
from pathlib import Path

from apps.imaging.bench import headline_infer, headline_train
from common import datasets
from common.bench import promise
from common.bench.harness import Suite
from common.memory.process.budget import GIB, MIB

WORK = Path("bench/work/promise-imaging")
SHIPPED = Path("data/models/hippocampus")
CT_SPACING = 3.0
"""Voxel size of the CT in mm, so that the CT is not resampled; the DICOM series is."""
CASES, TRAINING_CASES = 3, 12
"""Numbers of hippocampus volumes for inference and training; few, because every command runs at every ceiling."""
TRAIN = (
    ("segresnet", "--steps 8"),
    ("segresnet-float32", "--steps 8 --amp off --set batch=4"),
    ("dynunet", "--steps 8 --network dynunet --patch 48,64,48"),
    ("basicunet", "--steps 8 --network basicunet --amp off"),
    ("unet", "--steps 8 --network unet"),
)
"""Names and options. The bounded heap measures its working set in two steps, and is full after some more."""
TRAIN_CEILINGS = tuple(ceiling for ceiling in promise.CEILINGS if ceiling >= 512 * MIB)
FEW_CEILINGS = (1 * GIB, 512 * MIB)
"""Ceilings of all but the first ``train``: training takes about ten times as long as other commands of the grid."""


def prepare(work: Path, data: Path) -> None:
    """Make the inputs below ``work``; existing models and predictions are kept."""
    work.mkdir(parents=True, exist_ok=True)
    headline_infer.make_model(work / "ct-model", spacing=CT_SPACING)
    for source, name in (("imagesTr", "images"), ("labelsTr", "labels")):
        for folder, cases in ((work / name, CASES), (work / "hippocampus" / source, TRAINING_CASES)):
            folder.mkdir(parents=True, exist_ok=True)
            for path in sorted((data / "msd-hippocampus" / source).glob("*.nii.gz"))[:cases]:
                shutil.copyfile(path, folder / path.name)
    (work / "hippocampus" / "dataset.json").write_text(json.dumps(headline_train.DESCRIPTION))
    shutil.copyfile(data / "ct-sample" / "example_seg_fast_force_split.nii.gz", work / "reference.nii.gz")
    _move(work / "reference.nii.gz", work / "prediction.nii.gz")
    if not (work / "predictions" / "run.json").is_file():
        import subprocess

        command = [sys.executable, "-m", "apps.imaging", "infer", work / "images", "-m", SHIPPED]
        subprocess.run([*map(str, command), "-o", str(work / "predictions"), "-q"], check=True)


def _move(labels: Path, out: Path) -> None:
    """Write the segmentation shifted by one voxel."""
    import nibabel
    import numpy as np

    image = nibabel.Nifti1Image.from_filename(labels)
    moved = np.roll(np.asarray(image.dataobj), 1, axis=0)
    nibabel.save(nibabel.Nifti1Image(moved, image.affine, image.header), out)


def suite() -> Suite:
    """Make the inputs and declare the cases."""
    hippocampus, ct = (datasets.find(name) for name in ("msd-hippocampus", "ct-sample"))
    if hippocampus is None or ct is None:
        raise SystemExit("data sets msd-hippocampus and ct-sample not found: set PEAKLINE_DATA")
    grid = Suite("promise")
    prepare(WORK, ct.parent)
    for number, (name, options) in enumerate(TRAIN):
        out = WORK / f"out-{name}"
        argv = ["apps.imaging", "train", WORK / "hippocampus", "-o", out, "--fold", "0/4", *options.split(), "-q"]
        ceilings = FEW_CEILINGS if number else TRAIN_CEILINGS
        promise.add_command(grid, f"imaging-train-{name}", argv, ceilings=ceilings, fresh=out)
    for name, inputs, model, options in (
        ("hippocampus", WORK / "images", SHIPPED, "--preview"),
        ("ct", ct / "example_ct.nii.gz", WORK / "ct-model", "--tile 64 --overlap 0"),
        ("dicom", ct / "example_ct_dicom", WORK / "ct-model", "--tile 64 --overlap 0"),
    ):
        out = WORK / f"out-{name}"
        argv = ["apps.imaging", "infer", inputs, "-m", model, "-o", out, *options.split(), "-q"]
        promise.add_command(grid, f"imaging-infer-{name}", argv, fresh=out)
    for label, pair in (
        ("hippocampus", ("predictions", "labels")),
        ("61-classes", ("prediction.nii.gz", "reference.nii.gz")),
    ):
        argv = ["apps.imaging", "evaluate", *(WORK / name for name in pair), "-q"]
        promise.add_command(grid, f"imaging-evaluate-{label}", argv)
    return grid


if __name__ == "__main__":
    sys.exit(suite().main())
