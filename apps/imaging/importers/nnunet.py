"""nnU-Net v2's trained-model folders: ``plans.json`` and ``dataset.json``, translated to our model folder's fields.

Only JSON is read here; ``convert`` reads checkpoints, in a child. Unsupported parts are refused by name.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from apps.imaging.importers.nnunet_plans import architecture, configuration_of, decision, resampling, stage_labels
from apps.imaging.models.networks.nnunet import checked
from apps.imaging.volumes.intensity import Operation
from common.errors import BadInput, UsageError

PLANS, DATASET, CHECKPOINT = "plans.json", "dataset.json", "checkpoint_final.pth"
REORIENTING = frozenset({"NibabelIOWithReorient", "SimpleITKIOWithReorient"})
AS_STORED = frozenset({"SimpleITKIO", "NibabelIO"})
"""nnU-Net's readers: those that turn the axes to the patient's, and those that keep the file's."""


@dataclass(frozen=True, slots=True)
class Weights:
    """The choice of a model's checkpoints."""

    folds: tuple[str, ...] = ()
    """Numbers of folds, or ``all``; empty: every numbered fold, else ``all``."""
    checkpoint: str = CHECKPOINT

    @classmethod
    def of(cls, folds: Sequence[str] = (), checkpoint: str = "") -> "Weights":
        """Read the command line's ``--folds`` and ``--checkpoint``, which may be short: ``best``."""
        name = checkpoint or CHECKPOINT
        return cls(
            tuple(folds), name if name.endswith(".pth") else f"checkpoint_{name.removeprefix('checkpoint_')}.pth"
        )


@dataclass(frozen=True, slots=True)
class NnunetPlan:
    """The input that a trained model expects, and its prediction."""

    network: str
    arguments: Mapping[str, Any]
    configuration: str
    flat: bool
    """True for a network of 2D convolutions, which takes planes across the first axis."""
    channels: tuple[str, ...]
    spacing: tuple[float, ...]
    """Millimetres; 0: the image's own."""
    orientation: str
    intensity: tuple[Operation, ...]
    """Operations on the first channel."""
    further_intensity: tuple[tuple[Operation, ...], ...]
    """Operations on the others."""
    patch: tuple[int, ...]
    labels: Mapping[str, int]
    inference: Mapping[str, Any]
    """The field of the model folder."""
    stage: str = ""
    """Configuration of the previous stage of a cascade."""
    previous: tuple[int, ...] = ()
    """Labels of that stage, each of which is a further channel of the network."""


def is_nnunet(directory: Path) -> bool:
    """True if a folder is a trained model of nnU-Net."""
    return all((directory / name).is_file() for name in (PLANS, DATASET))


def refuse_others(directory: Path) -> None:
    """Refuse folders of nnU-Net that are no model of version 2.

    Raises
    ------
    BadInput
        A model of version 1, or a folder with several models.
    """
    if (directory / "plans.pkl").is_file() or any(directory.glob("fold_*/model_*_checkpoint.model")):
        message = (
            "a model of nnU-Net v1, which v2 cannot read either; convert its data set by"
            " nnUNetv2_convert_old_nnUNet_dataset and train it with v2"
        )
        raise BadInput(f"{directory}: {message}", public="model of nnU-Net v1")
    if models := sorted(path.name for path in directory.glob("*__*__*") if is_nnunet(path)):
        raise BadInput(f"{directory}: holds models of nnU-Net; choose {' or '.join(models)}", public="several models")


def checkpoints(directory: Path, weights: Weights) -> list[Path]:
    """Checkpoints of the chosen folds; by default of all.

    Raises
    ------
    BadInput
        If there are none, or a fold's training did not come to its end.
    UsageError
        If a fold that was chosen does not have one.
    """
    present = {path.parent.name.removeprefix("fold_"): path for path in directory.glob(f"fold_*/{weights.checkpoint}")}
    if weights.folds:
        if missing := [fold for fold in weights.folds if fold not in present]:
            there = f"; folds {','.join(sorted(present))} have" if present else ""
            raise UsageError(f"--folds {','.join(missing)}: no {weights.checkpoint} in {directory}{there}")
        return [present[fold] for fold in weights.folds]
    numbered = sorted((fold for fold in present if fold.isdecimal()), key=int)
    folders = (path.name.removeprefix("fold_") for path in directory.glob("fold_*") if path.is_dir())
    unfinished = sorted((fold for fold in folders if fold.isdecimal() and fold not in numbered), key=int)
    if numbered and unfinished:
        hint = f"--folds {','.join(numbered)} takes those that have one"
        message = f"fold {','.join(unfinished)} has no {weights.checkpoint}; {hint}"
        raise BadInput(f"{directory}: {message}", public="nnU-Net model without weights of a fold")
    if chosen := [present[fold] for fold in numbered or present if fold in (*numbered, "all")]:
        return chosen
    others = sorted({path.name for path in directory.glob("fold_*/checkpoint_*.pth")})
    hint = f"; --checkpoint {others[0].removesuffix('.pth')} takes {others[0]}" if others else ""
    raise BadInput(f"{directory}: no fold has a {weights.checkpoint}{hint}", public="nnU-Net model without weights")


def read_plan(directory: Path) -> NnunetPlan:
    """Read and check the two JSON files.

    Raises
    ------
    BadInput
        Files that cannot be read, or something that is not supported, by its name.
    """
    try:
        plans, dataset = (json.loads((directory / name).read_text("utf-8")) for name in (PLANS, DATASET))
        return _plan(directory, plans, dataset)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        if isinstance(error, BadInput):
            raise BadInput(f"{directory}: {error}", public="nnU-Net model not supported") from None
        message = f"{directory}: not a plan of nnU-Net v2 ({error!r})"
        raise BadInput(message, public="nnU-Net plan unreadable") from None


def previous_stage(directory: Path) -> Path | None:
    """The trained model whose labels a cascade's second stage takes; ``None`` for all other folders.

    Raises
    ------
    BadInput
        As ``read_plan``; also if that model is not where nnU-Net puts it.
    """
    if not is_nnunet(directory) or not (plan := read_plan(directory)).stage:
        return None
    place = directory.resolve()
    before = place.with_name(f"{place.name.rpartition('__')[0]}__{plan.stage}")
    if not is_nnunet(before):
        message = f"{plan.configuration} takes the labels of {plan.stage}, which is not in {before}"
        raise BadInput(f"{directory}: {message}", public="previous stage of a cascade missing")
    return before


def configuration_name(directory: Path, plans: Mapping[str, Any]) -> str:
    """Name of the configuration, from the folder's name TRAINER__PLANS__CONFIGURATION or because only one is 3D.

    Raises
    ------
    BadInput
        If the folder's name does not tell, and there are several.
    """
    named = directory.resolve().name.rsplit("__", 1)[-1]
    if named in plans["configurations"]:
        return named
    volumes = [name for name in plans["configurations"] if name.startswith("3d") and "cascade" not in name]
    if len(volumes) == 1:
        return str(volumes[0])
    raise BadInput(f"the folder's name does not say which of {', '.join(plans['configurations'])} it holds")


def _plan(directory: Path, plans: Mapping[str, Any], dataset: Mapping[str, Any]) -> NnunetPlan:
    name = configuration_name(directory, plans)
    configuration = configuration_of(plans, name)
    stage = str(configuration.get("previous_stage") or "")
    previous = stage_labels(configuration, dataset) if stage else ()
    network, arguments = architecture(configuration)
    grid = resampling(configuration)
    labels, rule, outputs = decision(dataset)
    channels = dataset.get("channel_names") or dataset["modality"]
    arguments |= {"in_channels": len(channels) + len(previous), "out_channels": outputs}
    intensities = [tuple(_intensity(plans, configuration, channel)) for channel in range(len(channels))]
    axes = [("z", "y", "x")[axis] for axis in plans["transpose_forward"]]
    spacing, patch = configuration["spacing"], configuration["patch_size"]
    flat = len(patch) == 2
    return NnunetPlan(
        network=network,
        arguments=checked(arguments),
        configuration=name,
        flat=flat,
        channels=tuple(str(channels[key]) for key in sorted(channels, key=int)),
        spacing=(0.0,) * (3 - len(spacing)) + tuple(map(float, spacing)) if grid.pop("resampled") else (0.0,) * 3,
        orientation=_orientation(str(plans["image_reader_writer"]), axes),
        intensity=intensities[0],
        further_intensity=tuple(intensities[1:]),
        patch=(1,) * flat + tuple(map(int, patch)),
        labels=labels,
        inference={**grid, **rule},
        stage=stage,
        previous=previous,
    )


def _orientation(reader: str, axes: list[str]) -> str:
    if reader in REORIENTING:
        return "".join({"x": "R", "y": "A", "z": "S"}[axis] for axis in axes)
    if reader in AS_STORED:
        return "file:" + "".join(axes)
    raise BadInput(f"images read by {reader}; only {', '.join(sorted(AS_STORED | REORIENTING))} are imitated")


def _intensity(plans: Mapping[str, Any], configuration: Mapping[str, Any], channel: int) -> list[Operation]:
    """Operations of a channel's normalisation."""
    scheme = configuration["normalization_schemes"][channel]
    if scheme == "ZScoreNormalization":
        masked = bool(configuration["use_mask_for_norm"][channel])
        return [{"op": "zscore", "nonzero": True}] if masked else [{"op": "zscore"}]
    if scheme == "CTNormalization":
        facts = _foreground(plans)[str(channel)]
        low, high = float(facts["percentile_00_5"]), float(facts["percentile_99_5"])
        mean, deviation = float(facts["mean"]), max(float(facts["std"]), 1e-8)
        return [{"op": "clip", "low": low, "high": high}, {"op": "scale", "low": mean, "high": mean + deviation}]
    if scheme == "RescaleTo01Normalization":
        return [{"op": "range", "low": 0.0, "high": 1.0}]
    if scheme == "RGBTo01Normalization":
        return [{"op": "scale", "low": 0.0, "high": 255.0}]
    if scheme == "NoNormalization":
        return []
    raise BadInput(f"normalisation {scheme} is not read")


def _foreground(plans: Mapping[str, Any]) -> Mapping[str, Any]:
    """Intensities of the training set's classes, by channel; the first plans of version 2 call it modality."""
    name = "foreground_intensity_properties_per_"
    found: Mapping[str, Any] = plans.get(f"{name}channel") or plans["foreground_intensity_properties_by_modality"]
    return found
