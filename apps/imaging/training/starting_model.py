"""Start a training from the weights of another model (``imaging train --init``), or learn from one (``--distill``)."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apps.imaging.models.model_folder import ImagingModel, read_model
from apps.imaging.models.networks import registry
from apps.imaging.training.data.dataset import ORIENTATION, Dataset
from apps.imaging.training.losses.deep_supervision import of_inference
from apps.imaging.training.losses.distillation import DistillingStep
from apps.imaging.volumes.volume import Shape
from common.engines.base import WEIGHTS
from common.errors import BadInput, UsageError
from common.training.step import TrainingStep

if TYPE_CHECKING:
    import torch


def read_start(directory: Path, network: str | None) -> ImagingModel:
    """Read the model to start from.

    Parameters
    ----------
    network
        The network that the user asks for; ``None``: the model's.

    Raises
    ------
    BadInput
        Not a model folder, or a model that ``imaging train`` did not make.
    UsageError
        The model is of another network.
    """
    model = read_model(directory)
    if model.network not in registry.NETWORKS or model.convention != "monai" or model.orientation != ORIENTATION:
        raise BadInput(
            f"{directory}: a training starts from a model that imaging train made, not from an imported {model.kind}",
            public="model to start from",
        )
    if network not in (None, model.network):
        raise UsageError(f"--network {network}: the model to start from is a {model.network}")
    return model


def on_grid_of(dataset: Dataset, model: ImagingModel) -> Dataset:
    """The data set at the model's spacing, so that structures have the size that the network knows.

    Raises
    ------
    BadInput
        The data set has another number of channels.
    """
    if len(dataset.channels) != len(model.channels):
        raise BadInput(
            f"channels: {len(dataset.channels)} in the data set, {len(model.channels)} in the model to start from",
            public="channels of the model to start from",
        )
    return replace(dataset, spacing=model.spacing)


def arguments_of(model: ImagingModel, dataset: Dataset) -> dict[str, Any]:
    """Arguments of the model's network, with as many classes as the data set has."""
    return {**model.arguments, "out_channels": len(dataset.labels)}


def read_teacher(
    directory: Path,
    dataset: Dataset,
    operations: "Sequence[Sequence[Mapping[str, Any]]]",
    patches: Sequence[Shape],
) -> tuple[dict[str, Any], Dataset]:
    """Describe the model whose predictions are soft labels, for ``Recipe.teacher``; name the classes as it does.

    Parameters
    ----------
    operations
        On the intensities of each channel.
    patches
        Voxels of the patches of which it will see one kind.

    Raises
    ------
    BadInput
        Not a model folder, or a model of other channels, labels, voxels or intensities than the training has.
    """
    model = read_model(directory)
    ours = {
        "channels": len(dataset.channels),
        "labels": list(dataset.labels),
        "size of voxels": [round(size, 4) for size in dataset.spacing],
        "orientation": ORIENTATION,
        "intensities": [[dict(one) for one in each] for each in operations],
    }
    its = {
        "channels": model.inputs,
        "labels": [label.value for label in model.labels],
        "size of voxels": [round(size, 4) for size in model.spacing],
        "orientation": model.orientation,
        "intensities": [[dict(one) for one in each] for each in model.intensities],
    }
    for what, value in ours.items():
        if its[what] != value:
            raise BadInput(
                f"--distill {directory}: its {what} ({its[what]}) differ from those of the training ({value})",
                public=f"{what} of the model to learn from",
            )
    steps = registry.divisors(model.network, model.arguments)
    for patch in patches:
        if any(size % step for size, step in zip(patch, steps, strict=True)):
            sides = "x".join(map(str, patch))
            raise BadInput(f"--distill {directory}: its network does not take patches of {sides}", public="patch")
    described = {"network": model.network, "arguments": dict(model.arguments), "weights": model.weights_sha256}
    return described, replace(dataset, labels={label.value: label.name for label in model.labels})


def load_teacher(step: TrainingStep, directory: Path | None) -> None:
    """Load the weights of the model to learn from into the step's teacher; nothing if there is none."""
    if not isinstance(step, DistillingStep) or step.teacher is None or directory is None:
        return
    from safetensors.torch import load_file

    state = load_file(directory / WEIGHTS)
    registry.load_weights(step.teacher, {name: tensor.float() for name, tensor in state.items()})


def load_start(network: "torch.nn.Module", directory: Path) -> list[str]:
    """Load the weights of the model into a network in place.

    Returns
    -------
    list
        Tensors that keep their random values, because the model's have another shape: those that make the classes.
    """
    import torch
    from safetensors.torch import load_file

    found, left = load_file(directory / WEIGHTS), []
    with torch.no_grad():
        for name, tensor in of_inference(registry.weights(network)).items():
            if name in found and found[name].shape == tensor.shape:
                tensor.copy_(found[name])
            else:
                left.append(name)
    return left
