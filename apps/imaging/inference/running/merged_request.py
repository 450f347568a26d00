"""``imaging infer``'s request where several networks run over each image: for one label map, or the first for a box."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from apps.imaging.inference.discovery import StudyInputs
from apps.imaging.inference.focus import coarse
from apps.imaging.inference.labeling.planes import label_dtype
from apps.imaging.inference.network_grid import NetworkGrid
from apps.imaging.inference.options import InferOptions
from apps.imaging.inference.outputs import OutputRequest
from apps.imaging.inference.request import InferRequest, ModelChoice, requested_outputs, whole_tile
from apps.imaging.models.label_map import own_map, read_map
from apps.imaging.models.model_folder import ImagingModel, in_patient_axes
from apps.imaging.volumes import intensity
from apps.imaging.volumes.volume import Shape
from common.errors import BadInput, UsageError


@dataclass(frozen=True, slots=True)
class Source:
    """Where a model is."""

    name: Path
    """As the user wrote it."""
    folder: Path
    """The model folder, converted if need be."""
    stage: "Source | None" = None
    """The first stage, of a cascade."""


@dataclass(frozen=True, slots=True)
class MergedRequest:
    """The request of ``imaging infer`` with several networks: several models, the stages of a cascade, or a coarse pass
    and a fine one."""

    options: InferOptions
    members: tuple[InferRequest, ...]
    """One for each network, in the order of the models; its outputs are the labels that the map has of it."""
    tables: tuple[Mapping[int, int], ...]
    """By network: its labels -> those that are written."""
    outputs: OutputRequest

    @classmethod
    def of(
        cls,
        options: InferOptions,
        models: Sequence[Source],
        label_map: Path | None,
        *,
        turned: bool = False,
        crop: Source | None = None,
    ) -> "MergedRequest":
        """Read the models, the map, and the headers of all studies.

        Parameters
        ----------
        models
            The models, in order.
        label_map
            File of the map; ``None`` for one model with its own labels.
        turned
            True to turn images to the patient's axes even for a model that takes them as stored.
        crop
            The model of the coarse pass; ``None``: the fine one's.

        Raises
        ------
        BadInput
            Models, a map or inputs that cannot be used, or do not go together.
        UsageError
            Options that do not suit a model.
        """
        if options.probabilities:
            raise UsageError("--probabilities: of a cascade, only labels are made")
        found = [_network(options, source, turned=turned) for source in models]
        names, own = [source.name for source in models], [request.model.model for request in found]
        _same_channels(names, own)
        mapped = read_map(label_map, names, own) if label_map else own_map(own[0])
        outputs = requested_outputs(options, mapped.labels)
        written = {label.value for label in outputs.labels}
        members, tables = [], []
        for one, model, table in zip(found, own, mapped.tables, strict=True):
            kept = {value: target for value, target in table.items() if target in written}
            if kept:  # of the others, no class was asked for
                labels = tuple(label for label in model.labels if not label.value or label.value in kept)
                member = replace(one, outputs=replace(one.outputs, labels=labels))
                if options.crop_first:
                    member = replace(member, locator=_locator(options, member, crop))
                members.append(member)
                tables.append(kept)
        request = cls(options, tuple(members), tuple(tables), outputs)
        first = members[0].model
        inputs = StudyInputs.read(
            options,
            first.model,
            tile=first.tile,
            overlap=first.overlap,
            digest=lambda listing: request.digest(listing, **options.chosen),
        )
        return request._with_inputs(inputs)

    def _with_inputs(self, inputs: StudyInputs) -> "MergedRequest":
        """The same with the grid of every network laid over every image."""
        request = replace(self, members=tuple(_laid(member, inputs) for member in self.members))
        refused = {}
        for study in inputs.studies:
            for member in request.networks:
                grid = member.inputs.grids.get(study.study)
                if isinstance(grid, NetworkGrid):
                    try:
                        grid.check(Path(study.input))
                    except BadInput as error:
                        refused[study.study] = error
        return request.without(refused)

    @property
    def networks(self) -> tuple[InferRequest, ...]:
        """All networks in the order in which they run, first stages of cascades and coarse passes among them."""
        stages = ((member.previous, member.locator, member) for member in self.members)
        return tuple(one for each in stages for one in each if one is not None)

    @property
    def inputs(self) -> StudyInputs:
        """The studies, on the first network's grid."""
        return self.members[0].inputs

    @property
    def dtype(self) -> np.dtype[np.unsignedinteger]:
        """Data type of the labels."""
        return label_dtype([label.value for label in self.outputs.labels])

    @property
    def described(self) -> ImagingModel:
        """The models as one, for the attributes of what is written."""
        labelling = [one for member in self.members for one in (member.previous, member) if one is not None]
        first, count = self.members[0].model.model, len(labelling)
        kinds = "+".join(dict.fromkeys(member.model.model.kind for member in labelling))
        digests = [
            hashlib.sha256("".join(hashes).encode()).hexdigest()
            for hashes in zip(*(member.label_settings.model for member in labelling), strict=True)
        ]
        network, weights = digests if count > 1 else (first.network_sha256, first.weights_sha256)
        kind = f"{count} networks ({kinds})" if count > 1 else first.kind
        return replace(first, kind=kind, labels=self.outputs.labels, network_sha256=network, weights_sha256=weights)

    def digest(self, image: str, *, outputs: bool = True, **further: Sequence[str]) -> str:
        """SHA-256 of an image and of all that decides what is made of it, as ``InferRequest.digest``."""
        settings: dict[str, Any] = {
            "networks": [asdict(member.label_settings) for member in self.networks],
            "tables": [sorted(table.items()) for table in self.tables],
            "remove_small": self.options.remove_small,
            "margin": self.options.crop_margin if self.options.crop_first else None,
            **further,
        }
        if outputs:
            settings["outputs"] = asdict(self.outputs)
        return hashlib.sha256(json.dumps([image, settings], sort_keys=True).encode()).hexdigest()

    def with_tile(self, tile: Shape) -> "MergedRequest":
        """The same with another tile for every network."""
        return replace(self, members=tuple(member.with_tile(tile) for member in self.members))

    def without(self, refused: Mapping[str, BadInput]) -> "MergedRequest":
        """The same with studies that fail, by name, each with its error."""
        return replace(self, members=tuple(member.without(refused) for member in self.members))


def _network(options: InferOptions, source: Source, *, turned: bool) -> InferRequest:
    """The request of one network for all its labels, still without images."""
    alone = replace(options, model=source.name, remove_small=0.0)
    choice = ModelChoice.of(alone, source.folder)
    if turned:
        choice = replace(choice, model=in_patient_axes(choice.model))
    outputs = OutputRequest(types=(), labels=choice.model.labels)
    previous = _network(options, source.stage, turned=turned) if source.stage else None
    return InferRequest(alone, choice, outputs, previous=previous)


def _locator(options: InferOptions, request: InferRequest, crop: Source | None) -> InferRequest:
    """The request of the coarse pass in front of one network.

    Raises
    ------
    UsageError
        If a model sees other boxes or whole images, has no spacing of its own, or classes that overlap.
    """
    if crop is None:
        found = replace(request, model=replace(request.model, model=coarse(request.model.model)))
    else:
        found = _network(options, crop, turned=False)
        _same_channels([options.model, crop.name], [request.model.model, found.model.model])
    for model in (request.model.model, found.model.model):
        rule = model.inference
        if any(intensity.crop_of(operations) for operations in model.intensities) or rule.whole:
            raise UsageError("--crop-first: this model crops images itself, or sees them whole")
        if rule.decision == "bits" or model.previous or not all(model.spacing):
            what = "whose classes do not overlap, of one stage and with a spacing of its own"
            raise UsageError(f"--crop-first: a model is needed {what}")
    return found


def _laid(request: InferRequest, inputs: StudyInputs) -> InferRequest:
    """The same with the network's grid laid over the images."""
    choice = request.model
    previous, locator = (one and _laid(one, inputs) for one in (request.previous, request.locator))
    own = inputs.with_tiles(choice.model, choice.tile, choice.overlap)
    laid = replace(request, inputs=own, previous=previous, locator=locator)
    if choice.model.inference.whole and request.options.tile is None:
        return laid.with_tile(whole_tile(choice.model, own))
    return laid


def _same_channels(names: Sequence[Path], models: Sequence[ImagingModel]) -> None:
    """Compare what the models take.

    Raises
    ------
    BadInput
        If one takes more channels than another: the same files are read for all.
    """
    for name, model in zip(names, models, strict=True):
        if len(model.channels) != len(models[0].channels):
            message = f"takes {len(model.channels)} channels, and {names[0]} takes {len(models[0].channels)}"
            raise BadInput(f"{name}: {message}; run them apart", public="models of different channels")
