"""Small models and volumes that the imaging tests make for themselves."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt

from apps.imaging.inference.studies import outputs_of
from apps.imaging.models.model_folder import labels_from_names, write_model
from apps.imaging.models.networks import registry
from apps.imaging.models.onnx_export import export_onnx


class Planted:
    """Content of a hostile checkpoint: a call of ``os.system``."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, ...]:
        return os.system, (f"touch '{self.trace}'",)


def random_model(
    directory: Path,
    *,
    classes: int = 3,
    patch: Sequence[int] = (16, 24, 16),
    network: str = "segresnet",
    arguments: dict[str, Any] | None = None,
    orientation: str = "RAS",
    spacing: Sequence[float] = (1.0, 1.0, 1.0),
    intensity: Sequence[dict[str, Any]] = ({"op": "zscore"},),
    channels: Sequence[str] = ("image",),
    seed: int = 0,
) -> Any:
    """Write a model folder with random weights; returns the PyTorch network itself."""
    import torch

    directory.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    small = {"init_filters": 8, "blocks_down": [1, 1], "blocks_up": [1]} if network == "segresnet" else {}
    complete = registry.arguments(network, arguments or small, in_channels=len(channels), out_channels=classes)
    module = registry.build(network, complete).eval()
    edge = registry.divisor(network, complete) * 2
    export_onnx(network, module, directory / "network.onnx", tile=(edge, edge, edge))
    head = registry.head_name(network, module)
    write_model(
        directory,
        network=network,
        arguments=complete,
        state={name: tensor.detach().numpy() for name, tensor in registry.weights(module).items()},
        channels=channels,
        spacing=spacing,
        orientation=orientation,
        intensity=intensity,
        patch=patch,
        head={"weight": f"{head}.weight", "bias": f"{head}.bias"} if head else None,
        labels=labels_from_names(["background", *(f"class {number}" for number in range(1, classes))]),
        card="# Random weights\n",
        extra={"further_intensity": [list(intensity)] * (len(channels) - 1)} if channels[1:] else {},
    )
    return module


def write_nifti(
    path: Path, values: npt.NDArray[Any], affine: npt.NDArray[np.float64] | None = None, **header: Any
) -> Path:
    """Write a NIfTI file with nibabel."""
    image = nib.Nifti1Image(values, np.eye(4) if affine is None else affine, dtype=values.dtype)  # type: ignore[no-untyped-call]
    for field, value in header.items():
        image.header[field] = value
    nib.save(image, path)  # type: ignore[attr-defined]
    return path


def output_file(out: Path, number: int = 1, ending: str = ".nii.gz") -> Path:
    """A study's file in an output folder, by its number."""
    names = outputs_of(out)[f"study-{number:04d}"]
    return next(out / name for name in names if name.endswith(ending))


def read_labels(path: Path) -> npt.NDArray[Any]:
    """The label file's voxels, by nibabel."""
    return np.asarray(nib.load(path).dataobj)  # type: ignore[attr-defined]
