"""Cases of ``imaging train`` for the headline suite: quality and time against a plain script, and predictions.

Both train the same network on the same fold for 2,000 steps of 2 patches, with the same augmentation and precision.
"""

import json
import shutil
import sys
from pathlib import Path

from common.bench.harness import Bound, Suite
from common.memory.process.budget import GIB

PLAIN_DICE, DICE = (Bound(f"result.{name}", at_least=0.875) for name in ("mean_dice", "metrics.mean_dice"))
AS_FAST = Bound("seconds", at_most=1.15)
NEVER_UNDER = Bound("predicted_over_measured", 1.0, 1.15)
ABOVE_BASELINE = Bound("above_baseline", 1.0, 1.25)

PREDICTIONS: tuple[tuple[str, str], ...] = (
    ("bf16", "--amp bf16"),
    ("float32", "--amp off"),
    ("accumulated", "--amp bf16 --micro-batch 1 --accumulate 4"),
    ("large-patch", "--amp bf16 --patch 64,64,64"),
    ("dynunet", "--amp bf16 --network dynunet --patch 48,64,48"),
    ("basicunet", "--amp off --network basicunet --patch 48,64,48 --micro-batch 1"),
)
"""Names and options of short runs whose predicted and measured peaks are compared."""

DESCRIPTION = {
    "name": "Hippocampus",
    "licence": "CC-BY-SA 4.0",
    "reference": "Medical Segmentation Decathlon, Task04; Antonelli et al., Nat Commun 13, 4128 (2022)",
    "modality": {"0": "MRI"},
    "labels": {"0": "background", "1": "Anterior", "2": "Posterior"},
}


def prepare(work: Path, data: Path) -> None:
    """Copy the data set below ``work`` and add ``dataset.json``, which a bare download lacks."""
    target = work / "hippocampus"
    for folder in ("imagesTr", "labelsTr"):
        if not (target / folder).exists():
            shutil.copytree(data / "msd-hippocampus" / folder, target / folder)
    (target / "dataset.json").write_text(json.dumps(DESCRIPTION))


def add_cases(suite: Suite, work: Path) -> None:
    """Declare the cases; call ``prepare`` first."""
    data = work / "hippocampus"
    plain = ["-m", "apps.imaging.bench.peers.plain_training", data, "--steps", 2000, "--precision", "bf16"]
    suite.case("plain-training", plain, group="train", bounds=(PLAIN_DICE,))
    train, bounds = _train(work, "train", "--amp bf16"), (DICE, NEVER_UNDER, ABOVE_BASELINE)
    suite.case("train", train, ceiling=GIB, group="train", bounds=bounds)
    suite.ratio("train: time against the plain script", "train", "plain-training", AS_FAST)
    for name, options in PREDICTIONS:
        command = _train(work, name, f"--steps 8 {options}")
        suite.case(f"train-{name}", command, ceiling=GIB, bounds=(NEVER_UNDER, ABOVE_BASELINE))


def _train(work: Path, name: str, options: str) -> list[object]:
    out = work / f"model-{name}"
    command = f"rm -rf '{out}' && exec '{sys.executable}' -m apps.imaging train '{work / 'hippocampus'}' -o '{out}'"
    return ["sh", "-c", f"{command} --fold 0/5 --memory 1GiB --json {options}"]
