"""The suite ``imaging-compression``: what each way to a smaller model saves, and what it costs in Dice.

``make bench-compression``. The model is the shipped one of the hippocampus. Fine-tuning and calibration see cases that
it was trained on; Dice is measured on the 42 cases that were held out. A case ``make-*`` writes a model, a case
``measure-*`` measures it: bytes of its files, peaks above the floor of an inference and of a training step, seconds of
a tile, Dice. The suite needs the Decathlon's hippocampus data; with fine-tuning it takes two hours on two cores,
``ONLY='*-int8,*-whole'`` some minutes. ``PEAKLINE_FINETUNE=30s`` instead of 25 minutes runs all of it to see that it
works; its Dice is then no result.
"""

import json
import os
import shutil
import sys
import time
from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from apps.imaging.bench import imaging_int8
from apps.imaging.bench.headline_infer import make_volume
from apps.imaging.models.model_folder import read_model
from apps.imaging.models.stored_weights import stored_parameters
from common import datasets
from common.bench.harness import Bound, Suite
from common.engines.base import INT8, NETWORK, WEIGHTS
from common.engines.registry import open_engine

WORK = Path("bench/work/imaging-compression")
MODEL = Path("data/models/hippocampus")
TILE, VOLUME = (96, 96, 96), (144, 144, 144)
"""Of the inference whose peak is measured: tiles so large that activations are more than libraries' buffers."""
FEW_CASES, STEPS = 6, 3
"""Of the training whose peak is measured."""
FINETUNE = ("--time", os.environ.get("PEAKLINE_FINETUNE", "25min"))
TURNS = 4
"""Runs of each of two engines by turns, of which the first is not counted."""

FINE = Bound("result.dice_drop", at_most=0.01)
TARGETS = {
    "int8": (
        Bound("result.times_smaller", at_least=3.5),
        Bound("result.times_faster", at_least=1.5),
        Bound("result.dice_drop", at_most=0.003),
    ),
    "pruned-85-tuned": (
        FINE,
        Bound("result.parameters_off", at_least=0.8),
        Bound("result.inference_off", at_least=0.35),
        Bound("result.training_off", at_least=0.35),
    ),
    "pruned-85-tuned-int8": (Bound("result.times_smaller", at_least=12), FINE),
}
"""What a variant has to reach."""


def variants(hippocampus: Path) -> dict[str, tuple[Path, list[object]]]:
    """Name -> the model that is compressed, and the options that do it."""
    images = ["--calibration", imaging_int8.WORK / "training"]
    tuned = ["--finetune", hippocampus, *FINETUNE]
    return {
        "int8": (MODEL, ["--int8", *images]),
        "int8-weights": (MODEL, ["--int8-weights"]),
        "fp16": (MODEL, ["--fp16"]),
        "pruned": (MODEL, ["--prune", 0.8]),
        "pruned-taylor": (MODEL, ["--prune", 0.8, "--importance", "taylor", *images]),
        "pruned-zeros": (MODEL, ["--prune", 0.8, "--importance", "zeros", *images]),
        "blocks": (MODEL, ["--drop-blocks", 2, *images]),
        "tucker-90": (MODEL, ["--low-rank", 0.9]),
        "tucker-70": (MODEL, ["--low-rank", 0.7]),
        "cp-90": (MODEL, ["--low-rank", 0.9, "--decomposition", "cp"]),
        "cp-70": (MODEL, ["--low-rank", 0.7, "--decomposition", "cp"]),
        "pruned-tuned": (MODEL, ["--prune", 0.8, *tuned]),
        "tucker-tuned": (MODEL, ["--low-rank", "280KB", *tuned]),
        "pruned-tuned-int8": (WORK / "pruned-tuned", ["--int8", *images]),
        "pruned-tuned-fp16": (WORK / "pruned-tuned", ["--fp16"]),
        "pruned-85-tuned": (MODEL, ["--prune", 0.85, *tuned]),
        "pruned-85-tuned-int8": (WORK / "pruned-85-tuned", ["--int8", *images]),
        "aware-int8": (MODEL, ["--int8", *images, *tuned]),
    }


def tied_tuned(hippocampus: Path) -> list[object]:
    """The command that fine-tunes the network whose convolutions share kernels."""
    tuned = ["--init", WORK / "tied", "--distill", MODEL, *FINETUNE]
    return ["-m", "apps.imaging", "train", hippocampus, "-o", WORK / "tied-tuned", *tuned]


def suite() -> Suite:
    """Declare the cases; later ones use the models of earlier ones."""
    compression = Suite("imaging-compression")
    hippocampus = datasets.find("msd-hippocampus")
    if hippocampus is None:
        sys.stderr.write("imaging-compression: data set msd-hippocampus not found\n")
        return compression
    imaging_int8.links(hippocampus)
    _few_cases(hippocampus)
    make_volume(WORK / "volume.nii.gz", VOLUME, None)
    measure = ["-m", "apps.imaging.bench.compression.suite", "measure"]
    compression.case("measure-whole", [*measure, MODEL])
    for name, (source, options) in variants(hippocampus).items():
        command = ["-m", "apps.imaging", "compress", source, "-o", WORK / name, *options]
        compression.case(f"make-{name}", command, fresh=WORK / name)
        compression.case(f"measure-{name}", [*measure, WORK / name], bounds=TARGETS.get(name, ()))
    for form in ("sparse-80", "sparse-2of4", "tied"):
        command = ["-m", "apps.imaging.bench.compression.forms", form, MODEL, WORK / form]
        compression.case(f"make-{form}", command, fresh=WORK / form)
        compression.case(f"measure-{form}", [*measure, WORK / form])
    compression.case("make-tied-tuned", tied_tuned(hippocampus), fresh=WORK / "tied-tuned")
    compression.case("measure-tied-tuned", [*measure, WORK / "tied-tuned"])
    for network in ("segresnet", "dynunet", "unet"):
        compression.case(f"activations-{network}", ["-m", "apps.imaging.bench.compression.activations", network])
    return compression


def _few_cases(hippocampus: Path) -> None:
    """Make a data set of a few cases, for the training whose peak is measured."""
    for image in sorted((hippocampus / "imagesTr").glob("*.nii.gz"))[:FEW_CASES]:
        for folder in ("imagesTr", "labelsTr"):
            link = WORK / "few" / folder / image.name
            link.parent.mkdir(parents=True, exist_ok=True)
            if not link.is_symlink():
                link.symlink_to((hippocampus / folder / image.name).resolve())


def measured(model: Path) -> dict[str, Any]:
    """Measure a model, and compare it with the shipped one if that was measured before."""
    in_torch = {f"torch_{name}": value for name, value in _inference(model, "--engine", "torch").items()}
    answer = _files(model) | _inference(model) | in_torch | _training(model) | {"dice": _dice(model)}
    answer |= {"times_faster": times_faster(model)}
    if model == MODEL:
        _path().write_text(json.dumps(answer))
        return answer
    whole = json.loads(_path().read_text()) if _path().is_file() else {}
    if whole:
        answer |= {
            "times_smaller": whole["network_bytes"] / answer["network_bytes"],
            "parameters_off": 1 - answer["parameters"] / whole["parameters"],
            "inference_off": 1 - answer["inference_above_floor"] / whole["inference_above_floor"],
            "torch_inference_off": 1 - answer["torch_inference_above_floor"] / whole["torch_inference_above_floor"],
            "training_off": 1 - answer["training_above_floor"] / whole["training_above_floor"],
            "seconds_off": 1 - answer["inference_seconds"] / whole["inference_seconds"],
            "dice_drop": whole["dice"] - answer["dice"],
        }
    return answer


def _path() -> Path:
    return WORK / "whole.json"


def _files(model: Path) -> dict[str, int]:
    """Bytes of the weights, and of the network as it is run; the number of parameters."""
    int8 = (model / INT8[0]).is_file()
    network = sum((model / name).stat().st_size for name in (INT8 if int8 else (NETWORK,)))
    weights = (model / WEIGHTS).stat().st_size
    return {"network_bytes": network, "weights_bytes": weights, "parameters": stored_parameters(model)}


def _inference(model: Path, *engine: str) -> dict[str, float]:
    """Peak above the floor, and seconds, of the tiles of a volume; by OpenVINO if no engine is given."""
    tile = ",".join(map(str, TILE))
    shutil.rmtree(WORK / "out", ignore_errors=True)  # or the volume would count as done
    options = ["-o", WORK / "out", "--tile", tile, "--batch", 1, "--overlap", 0.25, "--threads", 1, *engine]
    record = imaging_int8.run_imaging("infer", WORK / "volume.nii.gz", "-m", model, *options)
    phases = {phase["name"]: phase for phase in record["measured"]["phases"]}
    above = max(phase["peak_bytes"] for name, phase in phases.items() if name not in ("plan", "probe", "start"))
    seconds = sum(phase["seconds"] for name, phase in phases.items() if name not in ("plan", "probe", "start"))
    return {"inference_above_floor": above - record["measured"]["floor_bytes"], "inference_seconds": seconds}


def times_faster(model: Path) -> float:
    """Processor seconds of a tile with OpenVINO, of the shipped model in float32 over those of a model, by turns."""
    engines = []
    for folder in (MODEL, model):
        read = read_model(folder)
        precision = "int8" if read.int8 else "float32"
        engines.append(
            open_engine(folder, name="openvino", precision=precision, tile=TILE, batch=1, threads=1, head=read.head)
        )
    tile = np.sin(np.arange(prod(TILE), dtype=np.float32)).reshape(1, 1, *TILE)
    spent: list[list[float]] = [[], []]
    for _ in range(TURNS):
        for engine, seconds in zip(engines, spent, strict=True):
            began = time.process_time()
            engine(tile)
            seconds.append(time.process_time() - began)
    whole, own = (min(seconds[1:]) for seconds in spent)
    return whole / own


def _training(model: Path) -> dict[str, float]:
    """Peak above the floor of a training's steps."""
    knobs = ["--amp", "off", "--micro-batch", 2, "--cache", "memory", "--no-fold", "--steps", STEPS, "--threads", 1]
    record = imaging_int8.run_imaging(
        "train", WORK / "few", "--init", model, "-o", WORK / "trained", "--patch", "64,64,64", *knobs
    )
    peak = next(phase["peak_bytes"] for phase in record["measured"]["phases"] if phase["name"] == "train")
    return {"training_above_floor": peak - record["measured"]["floor_bytes"]}


def _dice(model: Path) -> float:
    """Mean Dice of the held-out cases, in int8 if the model has that."""
    out = WORK / "labels"
    shutil.rmtree(out, ignore_errors=True)
    imaging_int8.run_imaging("infer", imaging_int8.WORK / "held-out", "-m", model, "-o", out)
    return float(imaging_int8.run_imaging("evaluate", out, imaging_int8.WORK / "labels")["results"]["mean_dice"])


def table(lines: Sequence[dict[str, Any]]) -> str:
    """The rows of docs/techniques.md, of the last line of each case ``measure-*``."""
    last = {line["name"].removeprefix("measure-"): line["result"] for line in lines if "dice" in line["result"]}
    rows = []
    for name, result in last.items():
        kib = [f"{result[key] / 1024:,.0f}" for key in ("network_bytes", "weights_bytes")]
        mib = [f"{result[key] / 2**20:.1f}" for key in ("inference_above_floor", "training_above_floor")]
        rows.append(
            f"| {name} | {result['parameters']:,} | {' | '.join((*kib, *mib))} |"
            f" {result['times_faster']:.2f} | {result['dice']:.4f} |"
        )
    return "\n".join(rows)


def main(words: Sequence[str]) -> int:
    """Measure one model, print the table, or run the suite."""
    if words[:1] == ["measure"]:
        sys.stdout.write(json.dumps(measured(Path(words[1]))) + "\n")
        return 0
    if words[:1] == ["table"]:
        path = Path("bench/imaging-compression.jsonl")
        sys.stdout.write(table([json.loads(line) for line in path.read_text().splitlines()]) + "\n")
        return 0
    return suite().main()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
