"""Data sets in the layout of the Medical Segmentation Decathlon: read, check, split, resample to the network's grid.

``dataset.json`` names labels, channels and cases. If it is missing, cases are the files in the folders, labels the
values in the label files, and their names ``label 1``, ``label 2``.
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from apps.imaging.volumes.geometry import AxisMapping, network_grid, resample
from apps.imaging.volumes.intensity import apply, resolve
from apps.imaging.volumes.nifti import NiftiVolume, is_nifti, open_nifti, stem
from apps.imaging.volumes.volume import Shape, block_planes, blocks, spacing
from common.errors import BadInput

IMAGES, LABELS, DESCRIPTION = "imagesTr", "labelsTr", "dataset.json"
ORIENTATION = "RAS"
_CHANNEL = re.compile(r"_\d{4}(?=\.nii(\.gz)?$)")
"""The number of the channel in nnU-Net's file names."""
_AFFINE_TOLERANCE = 1e-2
"""Millimetres by which image and label may lie apart; headers have rounded numbers."""

Image = npt.NDArray[np.float32]
Classes = npt.NDArray[np.uint8]
Warn = Callable[[str], None]
Value = TypeVar("Value", bound=np.generic)


@dataclass(frozen=True, slots=True)
class LabelledCase:
    """One labelled volume; only its headers have been read."""

    name: str
    image: NiftiVolume
    label: NiftiVolume

    def shape(self, target: tuple[float, float, float]) -> Shape:
        """Voxels along the model's axes at the spacing ``target``, in millimetres."""
        mapping = AxisMapping.between(self.image.affine, ORIENTATION)
        sizes = network_grid(self.image.shape, self.image.affine, mapping.to_file(target))
        x, y, z = (sizes[mapping.axes.index(axis)] for axis in range(3))
        return x, y, z


@dataclass(frozen=True, slots=True)
class Dataset:
    """Description and headers of a data set; no voxel has been kept."""

    cases: tuple[LabelledCase, ...]
    labels: Mapping[int, str]
    """Names by value in the label files, ascending; the first is background."""
    channels: tuple[str, ...]
    spacing: tuple[float, float, float]
    """Median of the cases, in millimetres along the model's axes."""
    about: Mapping[str, str] = field(default_factory=dict)
    """``name``, ``licence`` and ``reference`` for the model card, as far as the description has them."""

    def split(self, fold: tuple[int, int] | None) -> tuple[list[LabelledCase], list[LabelledCase]]:
        """Split into cases to train on and cases that are held out.

        Parameters
        ----------
        fold
            ``(K, N)``: hold out every N-th of the sorted names, from the K-th on; ``None``: hold out none.

        Raises
        ------
        BadInput
            If one of the two would be empty.
        """
        if fold is None:
            return list(self.cases), []
        index, count = fold
        held_out = list(self.cases[index::count])
        training = [case for case in self.cases if case not in held_out]
        if not training or not held_out:
            raise BadInput(f"fold {index}/{count} of {len(self.cases)} cases leaves nothing on one side")
        return training, held_out


def read_dataset(directory: Path, *, skip_bad: bool = False, warn: Warn = lambda line: None) -> Dataset:
    """Read the description and all headers, and compare each label with its image.

    Parameters
    ----------
    skip_bad
        Leave out unusable cases, with a warning for each, instead of stopping at the first.
    warn
        Called with each warning.

    Raises
    ------
    BadInput
        No such data set, a description that is not understood, or the first unusable case.
    """
    if not (directory / IMAGES).is_dir() or not (directory / LABELS).is_dir():
        raise BadInput(f"{directory}: not a data set: it needs the folders {IMAGES} and {LABELS}")
    described = _description(directory / DESCRIPTION)
    cases = _open_cases(_pairs(directory, described), skip_bad=skip_bad, warn=warn)
    if not cases:
        raise BadInput(f"{directory}: no usable case")
    labels = _label_names(directory / DESCRIPTION, described)
    if labels is None:
        warn(f"{directory}: no {DESCRIPTION}; the labels are the values found in {LABELS}")
        values = sorted({0, *(int(v) for case in cases for v in _values(case))})
        labels = {value: f"label {value}" if value else "background" for value in values}
    if len(labels) < 2:
        raise BadInput(f"{directory}: there is nothing to learn: its labels are only {labels}")
    names = described.get("modality") or described.get("channel_names") or {"0": "image"}
    if len(names) != 1:
        raise BadInput(f"{directory}: {len(names)} channels ({', '.join(names.values())}); this version reads one")
    about = {key: str(described[key]) for key in ("name", "licence", "reference") if described.get(key)}
    return Dataset(tuple(cases), labels, tuple(map(str, names.values())), _median_spacing(cases), about)


def _description(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        return {}
    try:
        described = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise BadInput(f"{path}: not readable as JSON ({error})") from None
    if not isinstance(described, dict):
        raise BadInput(f"{path}: an object was expected")
    return described


def _label_names(path: Path, described: Mapping[str, Any]) -> dict[int, str] | None:
    """``{"0": "background"}`` as the Decathlon writes it, or ``{"background": 0}`` as nnU-Net does."""
    if "labels" not in described:
        return None
    try:
        pairs = [(k, v) if str(k).isdigit() else (v, k) for k, v in described["labels"].items()]
        labels = {int(value): str(name) for value, name in sorted(pairs, key=lambda pair: int(pair[0]))}
    except (AttributeError, TypeError, ValueError):
        raise BadInput(f"{path}: labels must be an object of values and names") from None
    if 0 not in labels or not all(0 <= value < 255 for value in labels) or len(labels) != len(described["labels"]):
        raise BadInput(f"{path}: labels must be distinct values from 0 (background) to 254")
    return labels


def _pairs(directory: Path, described: Mapping[str, Any]) -> list[tuple[Path, Path]]:
    """Image and label files, sorted by name."""
    listed = described.get("training")
    if listed is None:
        images = sorted(p for p in (directory / IMAGES).iterdir() if is_nifti(p) and not p.name.startswith("."))
        return [(image, _label(directory / LABELS, image.name)) for image in images]
    try:
        names = sorted((PurePosixPath(entry["image"]), PurePosixPath(entry["label"])) for entry in listed)
    except (TypeError, KeyError):
        raise BadInput(f"{directory / DESCRIPTION}: training must be a list of image and label names") from None
    for name in (name for pair in names for name in pair):
        if name.is_absolute() or ".." in name.parts:
            raise BadInput(f"{directory / DESCRIPTION}: {name} is outside the data set")
    return [(directory / image, directory / label) for image, label in names]


def _label(folder: Path, image: str) -> Path:
    """The label file of an image: of the same name, or, as nnU-Net names them, without the number of the channel.

    Raises
    ------
    BadInput
        An image of a further channel; one is trained on.
    """
    plain = _CHANNEL.sub("", image)
    if plain == image or (folder / image).is_file() or not (folder / plain).is_file():
        return folder / image
    if not image.removeprefix(plain.partition(".nii")[0]).startswith("_0000"):
        message = "an image of a further channel in nnU-Net's layout, of which only one channel (_0000) is trained on"
        raise BadInput(f"{image}: {message}", public="several channels")
    return folder / plain


def _open_cases(pairs: Iterable[tuple[Path, Path]], *, skip_bad: bool, warn: Warn) -> list[LabelledCase]:
    cases = []
    for pair in pairs:
        try:
            cases.append(_open_case(pair))
        except BadInput as error:
            if not skip_bad:
                raise
            warn(f"skipped: {error}")
    return cases


def _open_case(pair: tuple[Path, Path]) -> LabelledCase:
    name = stem(pair[0])
    if not pair[1].is_file():
        raise BadInput(f"case {name}: no label file {pair[1]}", public="a case without label")
    image, label = map(open_nifti, pair)
    if image.shape != label.shape:
        sizes = ["x".join(map(str, volume.shape)) for volume in (label, image)]
        raise BadInput(
            f"case {name}: the label's shape {sizes[0]} is not the image's {sizes[1]}", public="shapes differ"
        )
    if not np.allclose(image.affine, label.affine, atol=_AFFINE_TOLERANCE):
        raise BadInput(f"case {name}: label and image lie in different places", public="geometries differ")
    return LabelledCase(name, image, label)


def _values(case: LabelledCase) -> npt.NDArray[Any]:
    """The distinct values of a label file.

    Raises
    ------
    BadInput
        If they are not whole numbers from 0 to 254.
    """
    values = np.unique(np.concatenate([np.unique(block) for block in blocks(case.label)]))
    if not np.isfinite(values).all() or (values != np.round(values)).any() or values.min() < 0 or values.max() > 254:
        raise BadInput(f"case {case.name}: labels must be whole numbers from 0 to 254", public="label values")
    return values


def _median_spacing(cases: Sequence[LabelledCase]) -> tuple[float, float, float]:
    edges = np.empty((len(cases), 3))
    for row, case in zip(edges, cases, strict=True):
        row[list(AxisMapping.between(case.image.affine, ORIENTATION).axes)] = spacing(case.image.affine)
    x, y, z = (round(float(size), 4) for size in np.median(edges, 0))
    return x, y, z


def load_case(case: LabelledCase, dataset: Dataset, operations: Sequence[Mapping[str, Any]]) -> tuple[Image, Classes]:
    """Read one case, and turn it to the network's grid, axes and intensities.

    Returns
    -------
    tuple
        Image (x, y, z) and classes (x, y, z), contiguous, in the model's axes; class k is the k-th label.

    Raises
    ------
    BadInput
        Truncated data, or label values that the data set does not list.
    """
    mapping = AxisMapping.between(case.image.affine, ORIENTATION)
    grid = network_grid(case.image.shape, case.image.affine, mapping.to_file(dataset.spacing))
    classes = _classes(case, dataset.labels)
    image = _whole(case.image)
    image = apply(resolve(operations, lambda: [image]), image)
    if image.shape != grid:
        image, classes = resample(image, grid), _nearest(classes, grid)
    return _to_model(image, mapping), _to_model(classes, mapping)


def _whole(volume: NiftiVolume) -> Image:
    """The volume (x, y, z) in the file's axes and the image's scale."""
    x, y, z = volume.shape
    whole = np.empty((z, y, x), np.float32)
    start = 0
    for block in blocks(volume):
        whole[start : start + len(block)] = block
        start += len(block)
    return whole.transpose(2, 1, 0)


def _classes(case: LabelledCase, labels: Mapping[int, str]) -> Classes:
    unknown = sorted(set(map(int, _values(case))) - set(labels))
    if unknown:
        values = ", ".join(map(str, unknown))
        raise BadInput(
            f"case {case.name}: label values {values} are not listed in {DESCRIPTION}", public="label values"
        )
    table = np.zeros(256, np.uint8)
    table[list(labels)] = np.arange(len(labels), dtype=np.uint8)
    x, y, z = case.label.shape
    whole = np.empty((z, y, x), np.uint8)
    start = 0
    for block in blocks(case.label):
        whole[start : start + len(block)] = table[block.astype(np.uint8)]
        start += len(block)
    return whole.transpose(2, 1, 0)


def _nearest(classes: Classes, grid: Shape) -> Classes:
    for axis, (size, new) in enumerate(zip(classes.shape, grid, strict=True)):
        if size != new:
            indices = np.minimum(((np.arange(new) + 0.5) * (size / new)).astype(np.intp), size - 1)
            classes = np.take(classes, indices, axis)
    return classes


def _to_model(array: npt.NDArray[Value], mapping: AxisMapping) -> npt.NDArray[Value]:
    """Turn (x, y, z) from file axes to model axes; the inverse of ``AxisMapping.view``."""
    unflipped = array[tuple(slice(None, None, -1) if flip else slice(None) for flip in mapping.flips)]
    return np.ascontiguousarray(unflipped.transpose(np.argsort(mapping.axes)))


def intensity_operations(dataset: Dataset, cases: Sequence[LabelledCase]) -> list[dict[str, Any]]:
    """Operations on intensities: CT, which has a fixed scale, is windowed to the labelled tissue, all else normalised.

    The window is from the 0.5th to the 99.5th percentile of labelled voxels in up to 20 cases.
    """
    if not dataset.channels[0].upper().startswith("CT"):
        return [{"op": "zscore"}]
    chosen = cases[:: max(1, len(cases) // 20)][:20]
    samples = []
    for case in chosen:
        values = _whole(case.image)[_classes(case, dataset.labels) > 0]
        samples.append(values[:: max(1, values.size // 10_000)])
    low, high = (float(edge) for edge in np.percentile(np.concatenate(samples), (0.5, 99.5)))
    return [{"op": "clip", "low": low, "high": high}, {"op": "scale", "low": low, "high": high}]


def loading_bytes(volume: NiftiVolume) -> int:
    """Bytes of ``load_case`` without its results: blocks as stored and scaled, and the volume before resampling."""
    voxels = prod(volume.shape)
    block = block_planes(volume) * volume.shape[0] * volume.shape[1]
    return block * (volume.dtype.itemsize + 2 * 4 + 8) + voxels * (4 + 1) + volume.reader_bytes
