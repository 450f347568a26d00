"""What a compressed model loses, measured beside its original on labelled cases (``imaging compress --measure``).

Both are run and evaluated as a user would do it, and ``model.json`` of the compressed one gets the result.
"""

import json
from pathlib import Path
from typing import Any

from apps.imaging.models import variants
from apps.imaging.models.manifest import MeasuredEntry
from apps.imaging.models.model_folder import ImagingModel, read_manifest, read_model
from apps.imaging.training.data.case_files import Description, find_cases
from common.errors import BadInput, UsageError
from common.files import write_json
from common.model_folder import MANIFEST

IMAGES, LABELS = "images", "labels"
BEFORE, AFTER = "before", "after"
"""Folders of the cases, and of the labels that the original and the compressed model make."""
RECORD, EVALUATION = "run.json", "evaluation.json"
NOT_WORK = frozenset({"plan", "probe", "start"})
"""Phases of planning and of loading libraries, which take as long for any model."""


def link_cases(dataset: Path, fold: tuple[int, int] | None, folder: Path) -> int:
    """Link the images and labels of the cases that are measured on; returns how many there are.

    Parameters
    ----------
    dataset
        As ``imaging train`` takes it.
    fold
        As in a training: ``(K, N)`` for the held-out part K of N; ``None`` for every case.

    Raises
    ------
    BadInput
        A folder that is no such data set, or none of whose cases has one file of one channel.
    """
    if not all((dataset / name).is_dir() for name in ("imagesTr", "labelsTr")):
        raise BadInput(f"{dataset}: not a data set: it needs the folders imagesTr and labelsTr")
    cases = find_cases(dataset, Description.read(dataset))
    chosen = cases[fold[0] :: fold[1]] if fold else cases
    if not chosen or any(len(case.images) != 1 for case in chosen):
        why = "no case is held out" if not chosen else "a case has several channels, of which imaging infer reads one"
        raise BadInput(f"--measure {dataset}: {why}", public="cases to measure on")
    for case in chosen:
        for name, target in ((IMAGES, case.images[0][0]), (LABELS, case.label)):
            link = folder / name / target.name
            link.parent.mkdir(parents=True, exist_ok=True)
            link.unlink(missing_ok=True)
            link.symlink_to(target.resolve())
    return len(chosen)


def measurement(original: ImagingModel, variant: ImagingModel, work: Path) -> MeasuredEntry:
    """Read the result of both from what ``imaging infer`` and ``imaging evaluate`` have written.

    Parameters
    ----------
    work
        Folder with ``BEFORE`` and ``AFTER``, of which each has both records.

    Raises
    ------
    BadInput
        If the original finds nothing, so that nothing can be lost.
    """
    (before, seconds_before, peak_before, _), (after, seconds, peak, knobs) = (
        _read(work / name) for name in (BEFORE, AFTER)
    )
    if not before["mean_dice"]:
        raise BadInput(f"{original.directory}: its Dice on these cases is 0; nothing can be lost", public="Dice of 0")
    return {
        "weights": original.weights_sha256,
        "network": original.network_sha256,
        "cases": after["cases"],
        "dice": round(after["mean_dice"] or 0.0, 6),
        "dice_before": round(before["mean_dice"], 6),
        "seconds": round(seconds, 3),
        "seconds_before": round(seconds_before, 3),
        "peak_bytes": peak,
        "peak_bytes_before": peak_before,
        "precision": knobs["precision"],
    }


def _read(folder: Path) -> tuple[dict[str, Any], float, int, dict[str, Any]]:
    """Results of the evaluation; seconds, peak and knobs of the inference."""
    record = json.loads((folder / RECORD).read_text("utf-8"))
    results = json.loads((folder / EVALUATION).read_text("utf-8"))["results"]
    phases = [phase for phase in record["measured"]["phases"] if phase["name"] not in NOT_WORK]
    seconds, peak = sum(phase["seconds"] for phase in phases), max(phase["peak_bytes"] for phase in phases)
    return results, seconds, peak, record["plan"]["knobs"]


def check_variant(original: ImagingModel, directory: Path) -> None:
    """Check that a model may stand in for another.

    Raises
    ------
    UsageError
        If it takes other images or writes other labels.
    """
    model = read_model(directory)
    if different := [name for name in variants.ALIKE if getattr(model, name) != getattr(original, name)]:
        raise UsageError(f"-o {directory}: no variant of {original.directory}: it differs in {', '.join(different)}")


def write(directory: Path, measured: MeasuredEntry) -> list[str]:
    """Write a measurement into ``model.json``; returns lines that say what was measured."""
    manifest = read_manifest(directory)
    write_json(directory / MANIFEST, {**manifest, "measured": measured})
    lines = [f"{directory.name}: {variants.described(measured)}"]
    if measured["peak_bytes"] >= measured["peak_bytes_before"]:
        lines.append("it takes no less memory than the original on tiles of its patch")
    if variants.Variant(directory, measured).is_slower:
        lines.append("it is slower than the original, so imaging infer --allow-quality-loss does not take it")
    return lines
