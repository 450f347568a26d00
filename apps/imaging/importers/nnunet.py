"""nnU-Net v2's trained-model folders: ``plans.json`` and ``dataset.json``, translated to our model folder's fields.

Only JSON is read here; ``convert`` reads checkpoints, in a child. Unsupported parts are refused by name.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from apps.imaging.models.networks.nnunet import NETWORKS, checked
from apps.imaging.volumes.intensity import Operation
from common.errors import BadInput

PLANS, DATASET, CHECKPOINT = "plans.json", "dataset.json", "checkpoint_final.pth"
RESAMPLING = "resample_data_or_seg_to_shape"
IMAGES = {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None}
LOGITS = {"is_seg": False, "order": 1, "order_z": 0, "force_separate_z": None}
"""nnU-Net's default resampling, the only one that is read."""
REORIENTING = frozenset({"NibabelIOWithReorient"})
AS_STORED = frozenset({"SimpleITKIO", "NibabelIO"})
"""nnU-Net's readers: those that turn the axes to the patient's, and those that keep the file's."""


@dataclass(frozen=True, slots=True)
class NnunetPlan:
    """The input that a trained model expects, and its prediction."""

    network: str
    arguments: Mapping[str, Any]
    channels: tuple[str, ...]
    spacing: tuple[float, ...]
    orientation: str
    intensity: tuple[Operation, ...]
    """Operations on the first channel."""
    further_intensity: tuple[tuple[Operation, ...], ...]
    """Operations on the others."""
    patch: tuple[int, ...]
    labels: Mapping[str, int]


def is_nnunet(directory: Path) -> bool:
    """True if a folder is a trained model of nnU-Net."""
    return all((directory / name).is_file() for name in (PLANS, DATASET))


def checkpoints(directory: Path) -> list[Path]:
    """Checkpoints of all folds, as nnU-Net finds them by default; without folds, of a model trained on all data.

    Raises
    ------
    BadInput
        If there are none.
    """
    folds = sorted(directory.glob(f"fold_[0-9]*/{CHECKPOINT}")) or sorted(directory.glob(f"fold_all/{CHECKPOINT}"))
    if not folds:
        raise BadInput(f"{directory}: no fold has a {CHECKPOINT}", public="nnU-Net model without weights")
    return folds


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


def _configuration(plans: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A configuration with all that it inherits."""
    own = dict(plans["configurations"][name])
    if parent := own.pop("inherits_from", None):
        return {**_configuration(plans, parent), **own}
    return own


def _plan(directory: Path, plans: Mapping[str, Any], dataset: Mapping[str, Any]) -> NnunetPlan:
    configuration = _configuration(plans, configuration_name(directory, plans))
    if len(configuration["patch_size"]) != 3:
        raise BadInput("a 2D configuration; only 3D ones are read")
    if configuration.get("previous_stage"):
        raise BadInput("a cascade; only single stages are read")
    for key, expected in (("data", IMAGES), ("probabilities", LOGITS)):
        function, options = configuration[f"resampling_fn_{key}"], configuration[f"resampling_fn_{key}_kwargs"]
        if function != RESAMPLING or {**expected, **options} != expected:
            raise BadInput(f"resampling of {key} by {function} {options}; only nnU-Net's default is read")
    channels = dataset.get("channel_names") or dataset["modality"]
    labels = {name: value for name, value in dataset["labels"].items() if name != "ignore"}
    if not all(isinstance(value, int) for value in labels.values()):
        raise BadInput("regions instead of labels are not read")
    architecture = configuration["architecture"]
    network = str(architecture["network_class_name"]).rsplit(".", 1)[-1].lower()
    if not str(architecture["network_class_name"]).startswith("dynamic_network_architectures.") or (
        network not in NETWORKS
    ):
        raise BadInput(f"network {architecture['network_class_name']!r}; only {', '.join(NETWORKS.values())} are read")
    arguments = {**architecture["arch_kwargs"], "in_channels": len(channels), "out_channels": len(labels)}
    intensities = [tuple(_intensity(plans, configuration, channel)) for channel in range(len(channels))]
    axes = [("z", "y", "x")[axis] for axis in plans["transpose_forward"]]
    return NnunetPlan(
        network=network,
        arguments=checked(arguments),
        channels=tuple(str(channels[key]) for key in sorted(channels, key=int)),
        spacing=tuple(map(float, configuration["spacing"])),
        orientation=_orientation(str(plans["image_reader_writer"]), axes),
        intensity=intensities[0],
        further_intensity=tuple(intensities[1:]),
        patch=tuple(map(int, configuration["patch_size"])),
        labels=dict(sorted(labels.items(), key=lambda item: item[1])),
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
        facts = plans["foreground_intensity_properties_per_channel"][str(channel)]
        low, high = float(facts["percentile_00_5"]), float(facts["percentile_99_5"])
        mean, deviation = float(facts["mean"]), max(float(facts["std"]), 1e-8)
        return [{"op": "clip", "low": low, "high": high}, {"op": "scale", "low": mean, "high": mean + deviation}]
    if scheme == "RGBTo01Normalization":
        return [{"op": "scale", "low": 0.0, "high": 255.0}]
    if scheme == "NoNormalization":
        return []
    raise BadInput(f"normalisation {scheme} is not read")
