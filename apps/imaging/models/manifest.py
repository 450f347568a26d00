"""Fields of ``model.json`` of a segmentation model."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, NotRequired, TypedDict

from common import model_folder

Byte = Annotated[int, ("minimum", 0), ("maximum", 255)]
_Millimetres = Annotated[float, ("minimum", 0), ("maximum", 10_000)]
_Voxels = Annotated[int, ("minimum", 1), ("maximum", 4096)]


class NetworkEntry(TypedDict):
    """The network, by a name of the table in ``apps.imaging.models.networks``, never an import path."""

    name: str
    arguments: Mapping[str, Any]


class HeadEntry(TypedDict):
    """The final 1x1x1 convolution."""

    weight: str
    """Name of the tensor of shape (labels, features, 1, 1, 1)."""
    bias: str
    """Name of the tensor of shape (labels,)."""


class LabelEntry(TypedDict):
    """One class."""

    value: Annotated[int, ("minimum", 0), ("maximum", 65535)]
    """In the label file; the network's output channels are in the order of the labels, unless they are regions."""
    name: str
    code: tuple[str, str, str] | None
    """Coding scheme, value, meaning: ``["SCT", "10200004", "Liver"]``."""
    color: tuple[Byte, Byte, Byte]
    """Red, green, blue."""


class InferenceEntry(TypedDict, total=False):
    """Division of an image into tiles, for a model that differs from the default."""

    overlap: Annotated[float, ("minimum", 0), ("exclusiveMaximum", 1)]
    """Share of a tile that the next one covers again."""
    importance: Literal["gaussian", "constant"]
    """Weights of the voxels of a tile in the blend."""
    size: tuple[_Voxels, _Voxels, _Voxels]
    """Voxels of the network's grid along the model's axes, whatever the image's spacing; means are taken between the
    grids. Absent: the grid follows from the spacing."""
    turned_last: bool
    """True if images are brought to the network's spacing along their own axes, and turned then."""
    whole: bool
    """True if the image is one tile."""
    padding: Literal["zero", "edge"]
    """Values around an image that is smaller than a tile."""
    restored: Literal["logits", "softmax", "sigmoid", "labels"]
    """Prediction that is resampled to the image's grid."""
    interpolation: Literal["cubic", "linear"]
    """Resampling of images by a model of nnU-Net."""
    separate: tuple[bool | None, bool | None]
    """Images and predictions of nnU-Net: true to interpolate plane by plane across the coarsest axis, null to do so if
    spacings differ threefold."""
    decision: Literal["largest", "regions", "bits"]
    """Label of a voxel: the class of the largest value; the last region that is found there; or all classes that are,
    which may overlap."""
    regions: list[Annotated[int, ("minimum", 0), ("maximum", 65535)]]
    """Label that each output channel writes where it is found, for ``regions``; 0: none."""
    order: list[Annotated[int, ("minimum", 0)]]
    """Output channels in the order in which they write, for ``regions``; absent: ascending."""
    threshold: float
    """Logit above which a region or class is found."""
    largest: list[Annotated[int, ("minimum", 1), ("maximum", 65535)]]
    """Labels of which only the largest connected component stays; empty: all."""
    largest_first: bool
    """True if that is done on the network's grid."""
    interpolated: bool
    """True if restored labels are interpolated and rounded; else the nearest is taken."""


class MeasuredEntry(TypedDict):
    """A compressed model and the one it was made of, on the same labelled cases (``imaging compress --measure``)."""

    weights: model_folder.Sha256
    """Of the original's ``weights.safetensors``."""
    network: model_folder.Sha256
    """Of the original's ``network.onnx``."""
    cases: Annotated[int, ("minimum", 1)]
    dice: Annotated[float, ("minimum", 0), ("maximum", 1)]
    """Mean over the classes, of this model."""
    dice_before: Annotated[float, ("exclusiveMinimum", 0), ("maximum", 1)]
    """The same of the original."""
    seconds: Annotated[float, ("minimum", 0)]
    """In which ``imaging infer`` segmented the cases, without planning and loading libraries."""
    seconds_before: Annotated[float, ("minimum", 0)]
    peak_bytes: Annotated[int, ("minimum", 0)]
    """Measured peak of these phases, with the libraries, on tiles of the model's patch."""
    peak_bytes_before: Annotated[int, ("minimum", 0)]
    precision: Literal["float32", "bf16", "int8"]
    """In which this model was run."""


class ImagingManifest(model_folder.Manifest):
    """``model.json`` of a segmentation model."""

    network: NetworkEntry
    channels: Annotated[list[str], ("minItems", 1)]
    """Modality of each input channel: ``["MRI"]``."""
    spacing: tuple[_Millimetres, _Millimetres, _Millimetres]
    """Millimetres along the model's axes; 0: as the image has them."""
    orientation: str
    """The model's axes: ``RAS`` means that x grows to the patient's right, y to anterior, z to superior."""
    intensity: list[Mapping[str, Any]]
    """Operations on the first channel's intensities, in order: ``[{"op": "zscore"}]``."""
    patch: tuple[_Voxels, _Voxels, _Voxels]
    """Size of the patches in training, in voxels along the model's axes."""
    head: HeadEntry | None
    """Null where the network does not end in a 1x1x1 convolution."""
    combine: Literal["logits"]
    """Quantity that is averaged where tiles overlap."""
    labels: Annotated[list[LabelEntry], ("minItems", 2)]
    """The classes, with distinct values; the first is the background."""
    further_intensity: NotRequired[list[list[Mapping[str, Any]]]]
    """Operations on the other channels."""
    previous: NotRequired[list[Annotated[int, ("minimum", 1), ("maximum", 65535)]]]
    """Labels of the previous stage of a cascade; where each is found is a further channel of the network."""
    convention: NotRequired[Literal["monai", "nnunet", "bundle"]]
    """Whose tiles, weights and resampling."""
    mirror: NotRequired[str]
    """Axes (of ``xyz``) along which it was trained to be mirrored."""
    inference: NotRequired[InferenceEntry]
    """Division of an image into tiles; absent: the default."""
    measured: NotRequired[MeasuredEntry]
    """What this model was measured to lose, where it is a compressed one."""
