"""The model folder of ``imaging``: ``model.json`` and its files, written by training and read by inference."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from apps.imaging.models.manifest import ImagingManifest, InferenceEntry, LabelEntry, MeasuredEntry
from apps.imaging.models.palette import color_of
from apps.imaging.volumes.geometry import AS_STORED
from apps.imaging.volumes.intensity import check_operations
from common import model_folder
from common.engines.base import INT8, NETWORK, PLAIN_INT8, WEIGHTS, Output
from common.errors import BadInput

if TYPE_CHECKING:
    import torch

APPLICATION = "imaging"
CARD = "card.md"
Operation = Mapping[str, Any]
MOST_VOXELS = 1 << 30
"""Most voxels of a patch: beyond it, sizes of tensors overflow in the engines."""


@dataclass(frozen=True, slots=True)
class Label:
    """One class."""

    value: int
    """In the label file, 0 to 65535; the network's output channels are in the order of the labels, unless they are
    regions."""
    name: str
    code: tuple[str, str, str] | None = None
    """Coding scheme, value, meaning."""
    color: tuple[int, int, int] = (0, 0, 0)
    """RGB, 0 to 255."""


@dataclass(frozen=True, slots=True)
class Inference:
    """Division of an image into tiles, and resampling of labels to its grid; the defaults are peakline's own."""

    overlap: float = 0.5
    """Share of a tile that the next one covers again, if the user gives none."""
    importance: Literal["gaussian", "constant"] = "gaussian"
    """Weights of a tile's voxels where tiles overlap."""
    size: tuple[int, ...] = ()
    """Voxels of the network's grid along the model's axes, whatever the image's spacing; empty: as the spacing has it.
    Values are means of the voxels that lie in another's place."""
    turned_last: bool = False
    """True if images are resampled along the file's axes before they are turned: the first voxels' centres coincide
    there."""
    whole: bool = False
    """True if the image is one tile, unless the user gives its size."""
    padding: Literal["zero", "edge"] = "zero"
    """Values around an image that is smaller than a tile."""
    restored: Literal["logits", "softmax", "sigmoid", "labels"] = "logits"
    """Values that are resampled to the image's grid: interpolated ones, or the nearest label."""
    interpolation: Literal["cubic", "linear"] = "cubic"
    """Resampling of images by a model of nnU-Net."""
    separate: tuple[bool | None, bool | None] = (None, None)
    """Images and predictions of nnU-Net: true to interpolate plane by plane across the coarsest axis, ``None`` to do so
    if spacings differ threefold."""
    decision: Literal["largest", "regions", "bits"] = "largest"
    """Label of a voxel: the class of the largest value; the last region that is found there; or a bit for each class
    that is."""
    regions: tuple[int, ...] = ()
    """Label that each output channel writes where it is found, for ``regions``; 0: none."""
    order: tuple[int, ...] = ()
    """Output channels in the order in which they write, for ``regions``; empty: ascending."""
    threshold: float = 0.0
    """Logit above which a region or class is found."""
    largest: tuple[int, ...] | None = None
    """Labels of which only the largest connected component stays; empty: all."""
    largest_first: bool = False
    """True if that is done on the network's grid."""
    interpolated: bool = False
    """True if restored labels are interpolated and rounded; else the nearest is taken."""

    @property
    def activation(self) -> Literal["softmax", "sigmoid"]:
        """What makes probabilities of logits."""
        if self.restored == "softmax" or self.restored == "sigmoid":
            return self.restored
        return "softmax" if self.decision == "largest" else "sigmoid"


@dataclass(frozen=True, slots=True)
class ImagingModel:
    """The content of ``model.json``."""

    directory: Path
    kind: str
    network: str
    arguments: Mapping[str, Any]
    channels: tuple[str, ...]
    spacing: tuple[float, float, float]
    """Millimetres along the model's axes; 0: the image's own."""
    orientation: str
    """The model's axes: with ``"RAS"`` x grows to the patient's right, y to anterior, z to superior."""
    intensity: tuple[Operation, ...]
    """Operations on the first channel (``apps.imaging.volumes.intensity``)."""
    patch: tuple[int, int, int]
    """Voxels of the patches of training, along the model's axes."""
    head: Mapping[str, str] | None
    """Names of the final 1x1x1 convolution's ``weight`` and ``bias``; ``None`` without such a convolution."""
    features: int
    """Channels in front of the head; without a head the network's output channels."""
    labels: tuple[Label, ...]
    convention: str
    """Library whose tiles, weights and resampling are imitated: ``"monai"``, ``"nnunet"``, or ``"bundle"`` with grids
    whose first voxels have the same centre."""
    mirror: str
    """Axes (of ``"xyz"``) along which patches were mirrored in training; empty if unknown."""
    network_sha256: str
    weights_sha256: str
    """Needed in addition to the network's, because only this file has the head's weights."""
    weights_bytes: int
    inference: Inference = Inference()
    int8: bool = False
    """True if there is a network in 8-bit integers too (``imaging compress --int8``)."""
    further_intensity: tuple[tuple[Operation, ...], ...] = ()
    """Operations on the other channels."""
    previous: tuple[int, ...] = ()
    """Labels of the previous stage of a cascade, each of which is a further channel of the network."""
    measured: MeasuredEntry | None = None
    """What it loses against the model of which it was made, if that was measured."""

    @property
    def inputs(self) -> int:
        """Channels of the network: the images, and the labels of a previous stage."""
        return len(self.channels) + len(self.previous)

    @property
    def written(self) -> tuple[int, ...]:
        """Label value of each of the network's output channels."""
        values = tuple(label.value for label in self.labels)
        return {"largest": values, "regions": self.inference.regions, "bits": values[1:]}[self.inference.decision]

    @property
    def intensities(self) -> tuple[tuple[Operation, ...], ...]:
        """Operations by channel."""
        return (self.intensity, *self.further_intensity)


def labels_from_names(names: Sequence[str]) -> list[Label]:
    """Labels 0, 1, 2, ... with these names and colours of their own; the first is background."""
    colors = [(0, 0, 0), *map(color_of, range(len(names) - 1))]
    return [Label(value, name, None, color) for value, (name, color) in enumerate(zip(names, colors, strict=True))]


def write_model(
    directory: Path,
    *,
    network: str,
    arguments: Mapping[str, Any],
    state: Mapping[str, npt.NDArray[Any]],
    channels: Sequence[str],
    spacing: Sequence[float],
    orientation: str,
    intensity: Sequence[Operation],
    patch: Sequence[int],
    head: Mapping[str, str] | None,
    labels: Sequence[Label],
    card: str,
    extra: Mapping[str, Any] | None = None,
) -> None:
    """Write the folder around ``network.onnx``, which is in ``directory`` already.

    Parameters
    ----------
    network, arguments
        Name and arguments for ``apps.imaging.models.networks.registry.build``.
    state
        Tensors by name, as arrays; half precision is fine.
    head
        ``{"weight": NAME, "bias": NAME}`` of the 1x1x1 head in ``state``, or ``None``.
    card
        The model card, Markdown.
    extra
        Further fields of ``model.json`` (metrics, training settings).
    """
    from safetensors.numpy import save_file

    model_folder.unseal(directory)
    save_file({name: np.ascontiguousarray(tensor) for name, tensor in state.items()}, directory / WEIGHTS)
    (directory / CARD).write_text(card, encoding="utf-8")
    (directory / WEIGHTS).chmod((directory / CARD).stat().st_mode)  # the library writes for its user alone
    fields: dict[str, Any] = {
        "network": {"name": network, "arguments": dict(arguments)},
        "channels": [str(name) for name in channels],
        "spacing": [float(size) for size in spacing],
        "orientation": orientation,
        "intensity": [dict(operation) for operation in intensity],
        "patch": [int(size) for size in patch],
        "head": dict(head) if head is not None else None,
        "combine": "logits",
        "labels": [
            {"value": label.value, "name": label.name, "code": label.code, "color": label.color}  # tuples become lists
            for label in labels
        ],
        **(extra or {}),
    }
    files = [WEIGHTS, NETWORK, CARD]
    model_folder.seal(directory, application=APPLICATION, kind=network, files=files, fields=fields)


def read_manifest(directory: Path) -> ImagingManifest:
    """Read ``model.json`` and check it against its description.

    Raises
    ------
    BadInput
        As ``common.model_folder.load``.
    """
    return model_folder.load(directory, application=APPLICATION, description=ImagingManifest)


def read_model(directory: Path) -> ImagingModel:
    """Read and check ``model.json``; the weights stay on disk.

    Raises
    ------
    BadInput
        An incomplete folder, another application's, or fields that contradict each other.
    """
    from apps.imaging.models.networks.registry import divisors

    manifest = read_manifest(directory)
    try:
        model = _from_manifest(directory, manifest)
        for operations in model.intensities:
            check_operations(operations)
        multiples = divisors(model.network, model.arguments)
        if not all(0 < multiple <= size for multiple, size in zip(multiples, model.patch, strict=True)):
            raise ValueError(f"network {model.network!r} cannot run on patches of {'x'.join(map(str, model.patch))}")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        message = f"{directory / model_folder.MANIFEST}: not an imaging model ({error})"
        raise BadInput(message, public="model manifest unreadable") from None
    return model


def _from_manifest(directory: Path, manifest: ImagingManifest) -> ImagingModel:
    labels = tuple(map(_label, manifest["labels"]))
    if len({label.value for label in labels}) != len(labels):
        raise ValueError("labels with distinct values are needed")
    orientation, head = manifest["orientation"], manifest["head"]
    if sorted(_AXES.get(letter, letter) for letter in orientation.removeprefix(AS_STORED)) != ["x", "y", "z"]:
        raise ValueError(f"orientation {orientation!r}")
    (x, y, z), (width, height, depth) = manifest["spacing"], manifest["patch"]
    if width * height * depth > MOST_VOXELS:
        raise ValueError(f"patch of {width}x{height}x{depth} voxels")
    if manifest.get("inference", {}).get("size", [width, height, depth]) != [width, height, depth]:
        raise ValueError("an image of one size is one patch")
    if min(x, y, z) == 0 and manifest.get("convention") not in ("bundle", "nnunet"):
        raise ValueError("spacing must be positive")
    model = ImagingModel(
        directory=directory.resolve(),
        kind=manifest["kind"],
        network=manifest["network"]["name"],
        arguments=manifest["network"]["arguments"],
        channels=tuple(manifest["channels"]),
        spacing=(float(x), float(y), float(z)),
        orientation=orientation,
        intensity=tuple(manifest["intensity"]),
        further_intensity=tuple(map(tuple, manifest.get("further_intensity", ()))),
        previous=tuple(manifest.get("previous", ())),
        patch=(width, height, depth),
        head={"weight": head["weight"], "bias": head["bias"]} if head else None,
        features=0,
        labels=labels,
        convention=manifest.get("convention", "monai"),
        mirror="".join(axis for axis in "xyz" if axis in manifest.get("mirror", "")),
        network_sha256=manifest["files"][NETWORK]["sha256"],
        weights_sha256=manifest["files"][WEIGHTS]["sha256"],
        weights_bytes=manifest["files"][WEIGHTS]["bytes"],
        inference=_inference(manifest.get("inference", {})),
        int8=any(all(name in manifest["files"] for name in pair) for pair in (INT8, PLAIN_INT8)),
        measured=manifest.get("measured"),
    )
    return replace(model, features=_features(model))


def _inference(entry: InferenceEntry) -> Inference:
    fields: dict[str, Any] = dict(entry)
    for key in {"separate", "regions", "order", "largest", "size"} & set(fields):
        fields[key] = tuple(fields[key])
    return Inference(**fields)


def _features(model: ImagingModel) -> int:
    """Channels in front of the head, after a comparison of all counts of output channels.

    Raises
    ------
    ValueError
        If labels and output channels do not match.
    """
    written = model.written
    if model.inference.decision == "regions" and {*written} - {0} != {label.value for label in model.labels[1:]}:
        raise ValueError("the regions are not the labels")
    if sorted(model.inference.order or range(len(written))) != list(range(len(written))):
        raise ValueError("the order is not of the output channels")
    if model.inference.decision == "bits" and list(written) != [1 << bit for bit in range(len(written))]:
        raise ValueError("labels of classes that overlap are 1, 2, 4, ...")
    features, channels = len(written), [model.arguments.get("out_channels")]
    if model.head is not None:
        outputs, features = _shape(model.directory / WEIGHTS, model.head["weight"])
        channels.append(outputs)
    for count in channels:  # as far as the manifest and the weights state them
        if isinstance(count, int) and count != len(written):
            raise ValueError(f"{len(written)} labels, but the network has {count} output channels")
    return features


def _label(entry: LabelEntry) -> Label:
    code, (red, green, blue) = entry["code"], entry["color"]
    return Label(entry["value"], entry["name"], (code[0], code[1], code[2]) if code else None, (red, green, blue))


def at_half_resolution(model: ImagingModel) -> ImagingModel:
    """The model for images of half the resolution of its training: an eighth of the voxels."""
    x, y, z = (2 * size for size in model.spacing)
    return replace(model, spacing=(x, y, z))


def in_patient_axes(model: ImagingModel) -> ImagingModel:
    """The model for images that are turned first so that x grows to the right, y to anterior, z to superior."""
    if not model.orientation.startswith(AS_STORED):
        return model
    letters = {"x": "R", "y": "A", "z": "S"}
    return replace(model, orientation="".join(letters[axis] for axis in model.orientation.removeprefix(AS_STORED)))


_AXES = {"R": "x", "L": "x", "A": "y", "P": "y", "S": "z", "I": "z"}


def _shape(weights: Path, name: str) -> tuple[int, int]:
    """The first two sizes of a tensor, of which only the header is read."""
    from safetensors import safe_open

    try:
        with safe_open(weights, framework="np") as tensors:
            shape = tensors.get_slice(name).get_shape()
    except Exception as error:  # safetensors has its own exception type
        raise ValueError(f"{weights.name}: {error}") from None
    if len(shape) < 2:
        raise ValueError(f"{weights.name}: {name} is not the weight of a convolution")
    return int(shape[0]), int(shape[1])


TORCH_NETWORK = "apps.imaging.models.model_folder:torch_network"
"""Builder of the PyTorch network, for ``common.engines``."""


def torch_network(directory: Path, output: Output) -> "torch.nn.Module":
    """Build the network with its weights, in float32; without its head if ``output`` is ``"features"``."""
    from safetensors.torch import load_file

    from apps.imaging.models.networks import registry

    model = read_model(directory)
    network = registry.build(model.network, model.arguments)
    registry.load_weights(network, {name: tensor.float() for name, tensor in load_file(directory / WEIGHTS).items()})
    split = registry.split_head(model.network, network) if output == "features" else None
    module, channels = (split[0], model.features) if split else (network, len(model.written))
    # The engine cannot read these two from the module.
    module.in_channels, module.out_channels = model.inputs, channels  # type: ignore[assignment]
    return module


def inspect_lines(model: ImagingModel) -> list[str]:
    """Lines for ``imaging inspect``."""
    labels = ", ".join(f"{label.value} {label.name}" for label in model.labels)
    operations = ", ".join(" ".join(str(value) for value in op.values()) for op in model.intensity)
    output: Output = "features" if model.head else "logits"
    patch, spacing = "x".join(map(str, model.patch)), "x".join(f"{size:g}" if size else "own" for size in model.spacing)
    return [
        f"kind        {model.kind} {dict(model.arguments)}",
        f"channels    {', '.join(model.channels)}",
        f"labels      {labels}",
        f"patch       {patch} voxels of {spacing} mm, {model.orientation}",
        f"intensity   {operations or 'none'}",
        f"output      {output} ({model.features} channels), weights {model.weights_bytes / 1e6:.2f} MB",
    ]
