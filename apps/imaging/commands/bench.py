"""``imaging bench``: what is measured on the user's data set or studies, or on a generated sample."""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apps.imaging.commands.arguments import MODEL_HELP
from common.cli import fetch_bench
from common.errors import UsageError
from common.memory.process import child
from common.model_folder import model_path

if TYPE_CHECKING:
    from common.cli.quick_bench import Step

CASES = 4
"""Images of a data set that are segmented and evaluated."""
SAMPLE_CASES = 10
SHIPPED = "hippocampus"


def add(commands: Any) -> None:
    """Declare the subcommand."""
    one = fetch_bench.add_bench(commands, "imaging", steps)
    data_help = "a data set folder (dataset.json), or studies as infer takes them (default: a generated sample)"
    one.add_argument("data", nargs="*", metavar="DATA", help=data_help)
    one.add_argument("-m", "--model", type=model_path, help=f"{MODEL_HELP}; with a data set: instead of training one")
    one.add_argument("--steps", dest="optimizer_steps", type=int, default=20, metavar="N", help="of training (20)")


def steps(args: argparse.Namespace, folder: Path) -> "Sequence[Step]":
    """Train a few steps, segment some of the data set's images and evaluate; of studies alone: segment them."""
    from common.cli.quick_bench import Step

    if args.optimizer_steps < 1:
        raise UsageError("--steps takes a number from 1 on")
    data = args.data
    if not data:
        data = [str(folder / "sample")]
        child.run_module("apps.imaging.training.data.synthetic", [*data, "--cases", str(SAMPLE_CASES)])
    model, out = args.model, folder / "out"
    if not (Path(data[0]) / "dataset.json").is_file():
        return [Step("infer", (*data, "-m", model or model_path(SHIPPED), "-o", out), out, _studies)]
    if len(data) > 1:
        raise UsageError("DATA is one data set folder, or studies")
    images = sorted((Path(data[0]) / "imagesTr").glob("[!.]*.nii*"))[:CASES]
    trained = folder / "model"
    train = Step("train", (*data, "-o", trained, "--steps", args.optimizer_steps), trained, _dice)
    return [
        *([] if model else [train]),
        Step("infer", (*images, "-m", model or trained, "-o", out), out, _studies),
        Step("evaluate", (out, Path(data[0]) / "labelsTr"), None, _dice),
    ]


def _studies(results: Mapping[str, Any]) -> str:
    done = sum(study["status"] == "done" for study in results["studies"])
    return f"{done} of {len(results['studies'])} studies"


def _dice(results: Mapping[str, Any]) -> str:
    dice = results.get("metrics", results).get("mean_dice")
    return "" if dice is None else f"mean Dice {dice:.4f}"
