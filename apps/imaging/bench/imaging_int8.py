"""The suite ``imaging-int8``: Dice and memory of a network quantised to 8-bit integers.

The model is the shipped one of the hippocampus. It is calibrated on cases that it was trained on, and Dice is measured
on the 42 cases that were held out. The suite needs the Decathlon's hippocampus data.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from apps.imaging.bench.headline_infer import make_volume
from common import datasets
from common.bench.harness import Bound, Suite
from common.memory.process.budget import MIB

WORK = Path("bench/work/imaging-int8")
MODEL = Path("data/models/hippocampus")
FOLDS = 5
"""Every fifth case was held out from the model's training."""
SHAPE = (256, 256, 256)
FEW = ("--overlap", "0.25")
"""A small overlap: memory does not depend on it, time does."""

SMALLEST = Bound("peak", at_most=300 * MIB)
DICE_DROP = Bound("result.drop", at_most=0.003)
"""Largest drop of the held-out cases' mean Dice from float32 to int8."""
NEVER_UNDER = Bound("predicted_over_measured", 1.0, 1.15)


def suite() -> Suite:
    """Declare the cases; later ones use the outputs of earlier ones."""
    int8 = Suite("imaging-int8")
    hippocampus, sample = datasets.find("msd-hippocampus"), datasets.find("ct-sample")
    if hippocampus is None:
        sys.stderr.write("imaging-int8: data set msd-hippocampus not found\n")
        return int8
    links(hippocampus)
    quantised = WORK / "model"
    command = ["-m", "apps.imaging", "compress", MODEL, "-o", quantised, "--int8", "--calibration", WORK / "training"]
    int8.case("int8-compress", [*command, "--memory", "600MiB", "--json"], bounds=(NEVER_UNDER,))
    int8.case("int8-dice", ["-m", "apps.imaging.bench.imaging_int8", quantised], bounds=(DICE_DROP,))
    volume = make_volume(WORK / "volume.nii.gz", SHAPE, sample / "example_ct.nii.gz" if sample else None)
    for precision in ("int8", "float32"):
        out = WORK / f"out-{precision}"
        infer = ["-m", "apps.imaging", "infer", volume, "-m", quantised, "-o", out, "--precision", precision, *FEW]
        bounds = (SMALLEST, NEVER_UNDER) if precision == "int8" else (NEVER_UNDER,)
        int8.case(f"int8-smallest-{precision}", [*infer, "--memory", "300MiB", "--json"], fresh=out, bounds=bounds)
    return int8


def links(hippocampus: Path) -> None:
    """Make folders of links: training images, held-out images, and the labels of the latter."""
    for number, image in enumerate(sorted((hippocampus / "imagesTr").glob("*.nii.gz"))):
        held_out = number % FOLDS == 0
        targets = (
            {"held-out": image, "labels": hippocampus / "labelsTr" / image.name} if held_out else {"training": image}
        )
        for folder, target in targets.items():
            link = WORK / folder / image.name
            link.parent.mkdir(parents=True, exist_ok=True)
            if not link.is_symlink():
                link.symlink_to(target.resolve())


def dice(model: Path) -> dict[str, Any]:
    """Return the held-out cases' mean Dice in both precisions, from ``imaging infer`` and ``imaging evaluate``."""
    answer: dict[str, Any] = {}
    for precision in ("float32", "int8"):
        out = WORK / f"labels-{precision}"
        run_imaging("infer", WORK / "held-out", "-m", model, "-o", out, "--precision", precision)
        results = run_imaging("evaluate", out, WORK / "labels")["results"]
        answer |= {precision: results["mean_dice"], "cases": results["cases"]}
    return answer | {"drop": answer["float32"] - answer["int8"]}


def run_imaging(*arguments: object) -> Any:
    """Run ``imaging`` with these arguments; returns its record."""
    command = [sys.executable, "-m", "apps.imaging", *map(str, arguments), "--json"]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)


if __name__ == "__main__":
    if len(sys.argv) > 1 and not sys.argv[1].startswith("-"):
        sys.stdout.write(json.dumps(dice(Path(sys.argv[1]))) + "\n")
        sys.exit(0)
    sys.exit(suite().main())
