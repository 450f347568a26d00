"""``imaging infer``'s request: its options and what follows from them, one immutable value for the plan and the run.

It is made in stages: the options, which are checked before anything is read; the model; what is written; the studies
with their headers. All that decides a result is declared here, and so is the digest by which a finished study is
recognised.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from math import prod
from pathlib import Path
from typing import Any

from apps.imaging.dicom.writing.rtstruct import structures
from apps.imaging.inference.discovery import StudyInputs
from apps.imaging.inference.options import InferOptions, choose_engine
from apps.imaging.inference.outputs import OutputRequest
from apps.imaging.models.model_folder import (
    MOST_VOXELS,
    ImagingModel,
    Inference,
    Label,
    at_half_resolution,
    read_model,
)
from apps.imaging.models.networks.patches import has_one_voxel
from apps.imaging.models.networks.registry import divisors, is_static
from apps.imaging.models.onnx_file import check_network
from apps.imaging.volumes.volume import Shape
from common.engines.base import NETWORK
from common.engines.registry import require_precision
from common.errors import BadInput, UsageError
from common.memory.plan.plan import Setting


@dataclass(frozen=True, slots=True)
class ModelChoice:
    """The model, and how its network is run."""

    model: ImagingModel
    """With ``--fast`` at half its resolution."""
    engine: str
    precision: str
    tile: Shape
    """Voxels along the model's axes."""
    overlap: float
    """Share of a tile that the next one covers again, in [0, 1)."""
    mirror: str
    """Axes (of ``"xyz"``) over whose mirrorings the engine averages."""

    @classmethod
    def of(cls, options: InferOptions, directory: Path) -> "ModelChoice":
        """Read the model folder ``directory`` and settle what the options leave to the model.

        Raises
        ------
        BadInput
            A folder that is not a complete model.
        UsageError
            Options that this model, its network or this CPU does not support.
        """
        model, name = read_model(directory), options.model
        check_network(directory / NETWORK)
        if len(model.channels) != len(model.intensities):
            raise BadInput(f"{name}: a model of {len(model.channels)} channels, of which only nnU-Net's are read")
        if options.fast and not all(model.spacing):
            raise UsageError("--fast: this model takes images at their own spacing")
        tile, multiples = options.tile or model.patch, divisors(model.network, model.arguments)
        if prod(tile) > MOST_VOXELS:
            raise UsageError(f"--tile: more than {MOST_VOXELS} voxels")
        if is_static(model.network) and tile != model.patch and options.engine in ("auto", "openvino", "onnxruntime"):
            raise UsageError(
                f"--tile: network {model.network} runs on tiles of its patch; another needs --engine torch"
            )
        if any(size % multiple for size, multiple in zip(tile, multiples, strict=True)):
            raise UsageError(f"--tile: sides must be multiples of {','.join(map(str, multiples))} for this network")
        if options.tile and has_one_voxel(model.network, tile, model.arguments):
            raise UsageError(f"--tile {','.join(map(str, tile))}: one voxel on the network's coarsest grid; take more")
        engine = choose_engine(options.engine, options.device)
        precision = options.precision or ("int8" if model.int8 and engine == "openvino" else "float32")
        require_precision(engine, precision)
        if precision == "int8" and not model.int8:
            raise UsageError(f"--precision int8: {name} is not quantised; imaging compress --int8 makes one that is")
        if options.mirror and not model.mirror:
            raise UsageError(f"--tta mirror: {name} does not say along which axes it was trained to be mirrored")
        return cls(
            model=at_half_resolution(model) if options.fast else model,
            engine=engine,
            precision=precision,
            tile=tile,
            overlap=model.inference.overlap if options.overlap is None else options.overlap,
            mirror=model.mirror if options.mirror else "",
        )


@dataclass(frozen=True, slots=True)
class LabelSettings:
    """All that decides the labels of an image: two runs that agree in these fields give the same labels."""

    model: tuple[str, str]
    """SHA-256 of the network and of its weights."""
    labels: tuple[int, ...]
    """Values that are written; all other classes become background."""
    intensity: tuple[tuple[Mapping[str, Any], ...], ...]
    """Operations by channel."""
    spacing: tuple[float, float, float]
    inference: Inference
    tile: Shape
    overlap: float
    mirror: str
    precision: str
    remove_small: float


@dataclass(frozen=True, slots=True)
class InferRequest:
    """The request of ``imaging infer``."""

    options: InferOptions
    model: ModelChoice
    outputs: OutputRequest
    inputs: StudyInputs = field(default_factory=StudyInputs)
    previous: "InferRequest | None" = None
    """The previous stage of a cascade, whose labels are channels of the network."""
    locator: "InferRequest | None" = None
    """The coarse pass that finds the box in which this network looks; ``None``: it looks at whole images."""

    @classmethod
    def of(cls, options: InferOptions, directory: Path) -> "InferRequest":
        """Read the model and the headers of all studies.

        Parameters
        ----------
        directory
            The model folder, converted if need be.

        Raises
        ------
        BadInput
            A model or inputs that cannot be used.
        UsageError
            Options that do not suit the model.
        """
        model = ModelChoice.of(options, directory)
        if model.model.previous:
            message = "the second stage of a cascade; -m takes nnU-Net's folder of it, next to that of the first"
            raise BadInput(f"{options.model}: {message}", public="second stage of a cascade")
        if options.tile and model.model.inference.size:
            size = "x".join(map(str, model.model.inference.size))
            raise UsageError(f"--tile: this model takes each image at one size, {size} voxels, as one tile")
        if options.probabilities and model.model.inference.restored == "labels":
            message = "this bundle takes labels, not probabilities, back to the image's grid"
            raise UsageError(f"--probabilities: {message}")
        bits = model.model.inference.decision == "bits"
        outputs = requested_outputs(options, model.model.labels, overlapping=bits)
        request = cls(options, model, outputs)
        inputs = StudyInputs.read(
            options,
            model.model,
            tile=model.tile,
            overlap=model.overlap,
            digest=lambda listing: request.digest(listing, **options.chosen),
        )
        request = replace(request, inputs=inputs)
        if model.model.inference.whole and options.tile is None:
            return request.with_tile(whole_tile(model.model, inputs))
        return request

    @property
    def label_settings(self) -> LabelSettings:
        """All that decides the labels, apart from the images."""
        model = self.model.model
        return LabelSettings(
            model=(model.network_sha256, model.weights_sha256),
            labels=tuple(label.value for label in self.outputs.labels),
            intensity=model.intensities,
            spacing=model.spacing,
            inference=model.inference,
            tile=self.model.tile,
            overlap=self.model.overlap,
            mirror=self.model.mirror,
            precision=self.model.precision,
            remove_small=self.options.remove_small,
        )

    def digest(self, image: str, *, outputs: bool = True, **further: Sequence[str]) -> str:
        """SHA-256 of an image and of all that decides what is made of it.

        Parameters
        ----------
        image
            Its ``identity``, or the digest of what a server lists for it.
        outputs
            True: the outputs count too, as for a study that need not be done again; DICOM's UIDs are of the
            labels alone.
        further
            Identities of further channels, or whatever else decides the labels.
        """
        settings = {**asdict(self.label_settings), **further}
        if outputs:
            settings["outputs"] = asdict(self.outputs)
        return hashlib.sha256(json.dumps([image, settings], sort_keys=True).encode()).hexdigest()

    def own(self, setting: Setting) -> Setting:
        """A setting that several networks share, as this one takes it."""
        longest = max(
            (grid.tiles.per_row for grid in self.inputs.grids.values() if not isinstance(grid, BadInput)), default=1
        )
        choice = self.model
        return {
            **setting,
            "tile": ",".join(map(str, choice.tile)),
            "overlap": choice.overlap,
            "precision": choice.precision,
            "batch": min(int(setting["batch"]), longest),
            "space": setting["space"] if choice.model.head else "logits",
        }

    def with_tile(self, tile: Shape) -> "InferRequest":
        """The same with another tile."""
        inputs = self.inputs.with_tiles(self.model.model, tile, self.model.overlap)
        previous, locator = (one and one.with_tile(tile) for one in (self.previous, self.locator))
        model = replace(self.model, tile=tile)
        return replace(self, model=model, inputs=inputs, previous=previous, locator=locator)

    def without(self, refused: Mapping[str, BadInput]) -> "InferRequest":
        """The same with studies that fail, by name, each with its error."""
        inputs = replace(self.inputs, grids={**self.inputs.grids, **refused})
        previous, locator = (one and one.without(refused) for one in (self.previous, self.locator))
        return replace(self, inputs=inputs, previous=previous, locator=locator)


def whole_tile(model: ImagingModel, inputs: StudyInputs) -> Shape:
    """The tile of a model that sees a whole image at a time.

    Raises
    ------
    BadInput
        If images differ in size, or its network cannot run on their size.
    """
    shapes = {grid.axes.to_model(grid.tiles.shape) for grid in inputs.grids.values() if not isinstance(grid, BadInput)}
    if len(shapes) > 1:
        message = "this model sees whole images, and these differ in size: run those of each size apart, or give --tile"
        raise BadInput(message, public="images differ in size")
    shape = next(iter(shapes), model.patch)
    multiples = divisors(model.network, model.arguments)
    if any(size % multiple for size, multiple in zip(shape, multiples, strict=True)):
        size, steps = ("x".join(map(str, sides)) for sides in (shape, multiples))
        message = f"this model sees whole images, whose sides must be multiples of {steps}; {size} is not, --tile runs"
        raise BadInput(f"{message} on tiles", public="image size")
    return shape


def requested_outputs(options: InferOptions, labels: tuple[Label, ...], *, overlapping: bool = False) -> OutputRequest:
    """Return the outputs that the options ask for.

    Parameters
    ----------
    labels
        All classes, background among them.
    overlapping
        True if a label has a bit for each class.

    Raises
    ------
    UsageError
        If ``--roi-subset`` names a class that the model does not have, or there are too many classes for a structure
        set.
    """
    names = options.roi_subset
    if names is not None:
        classes = [label.name for label in labels if label.value]
        if unknown := [name for name in names if name not in classes]:
            raise UsageError(f"--roi-subset {','.join(unknown)}: this model has {', '.join(classes)}")
        labels = tuple(label for label in labels if not label.value or label.name in names)
    if overlapping and (options.remove_small or any(kind.startswith("dicom") for kind in options.output_types)):
        raise UsageError(
            "the classes of this model overlap; only NIfTI is written, a file of each, without --remove-small"
        )
    if "dicom-rtstruct" in options.output_types:
        structures(labels)
    return OutputRequest(
        types=options.output_types,
        seg_type=options.seg_type,
        preview=options.preview,
        statistics=options.statistics,
        stow=options.stow,
        labels=labels,
        split=options.split_classes or overlapping,
        overlapping=overlapping,
        probabilities=options.probabilities,
    )
