"""Data sets of labelled volumes: read their headers, check them, split the cases.

``dataset.json`` names labels, channels and cases (``case_files``). If it is missing, cases are the files in the
folders, labels the values in the label files, and their names ``label 1``, ``label 2``.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from apps.imaging.training.data.case_files import (
    DESCRIPTION,
    IMAGES,
    LABELS,
    LARGEST_LABEL,
    CaseFiles,
    Description,
    find_cases,
)
from apps.imaging.training.data.label_table import LabelTable
from apps.imaging.volumes.geometry import AxisMapping, network_grid
from apps.imaging.volumes.nifti import open_nifti
from apps.imaging.volumes.stored import FileVolume
from apps.imaging.volumes.volume import Shape, blocks, spacing
from common.errors import BadInput

ORIENTATION = "RAS"
_AFFINE_TOLERANCE = 1e-2
"""Millimetres by which the images and the label may lie apart; headers have rounded numbers."""

Warn = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class LabelledCase:
    """One labelled study; only its headers have been read."""

    name: str
    images: tuple[FileVolume, ...]
    """One for each channel, all on the same grid; empty where they are synthesised."""
    label: FileVolume

    @property
    def image(self) -> FileVolume:
        """The first channel, whose grid is that of all; without images, the label."""
        return self.images[0] if self.images else self.label

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
    """Names by value in the label files, ascending; the first is background. The ignored value is not among them."""
    channels: tuple[str, ...]
    spacing: tuple[float, float, float]
    """Median of the cases, in millimetres along the model's axes."""
    ignored: int | None = None
    """Value of voxels that nobody has labelled; they count in no loss and no metric."""
    about: Mapping[str, str] = field(default_factory=dict)
    """``name``, ``licence`` and ``reference`` for the model card, as far as the description has them."""
    table: LabelTable | None = None
    """The class table of label maps whose images are synthesised; ``None`` for a data set with images."""

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
    described = Description.read(directory)
    files = find_cases(directory, described)
    cases = _open_cases(files, skip_bad=skip_bad, warn=warn)
    if not cases:
        raise BadInput(f"{directory}: no usable case")
    labels, ignored = described.labels() or ({}, None)
    if not labels:
        warn(f"{directory}: no {DESCRIPTION}; the labels are the values found in {LABELS}")
        values = sorted({0, *(int(v) for case in cases for v in label_values(case))})
        labels = {value: f"label {value}" if value else "background" for value in values}
    if len(labels) < 2:
        raise BadInput(f"{directory}: there is nothing to learn: its labels are only {labels}")
    unnamed = ["image"] if len(cases[0].images) == 1 else [f"channel {n}" for n in range(len(cases[0].images))]
    channels = described.channels or tuple(unnamed)
    about = {key: str(described.fields[key]) for key in ("name", "licence", "reference") if described.fields.get(key)}
    return Dataset(tuple(cases), labels, channels, median_spacing(cases), ignored, about)


def _open_cases(files: Iterable[CaseFiles], *, skip_bad: bool, warn: Warn) -> list[LabelledCase]:
    cases = []
    for each in files:
        try:
            cases.append(_open_case(each))
        except BadInput as error:
            if not skip_bad:
                raise
            warn(f"skipped: {error}")
    return cases


def _open_case(files: CaseFiles) -> LabelledCase:
    name = files.name
    if not files.label.is_file():
        raise BadInput(f"case {name}: no label file {files.label}", public="a case without label")
    label = open_nifti(files.label)
    for channel, (path, _) in enumerate(files.images):
        if not path.is_file():
            raise BadInput(f"case {name}: no file of channel {channel}, {path}", public="a case without a channel")
    images = tuple(open_nifti(path, volume=volume) for path, volume in files.images)
    for number, image in enumerate(images):
        what = "the image" if len(images) == 1 else f"channel {number}"
        if image.shape != label.shape:
            sizes = ["x".join(map(str, volume.shape)) for volume in (label, image)]
            raise BadInput(
                f"case {name}: the label's shape {sizes[0]} is not {what}'s {sizes[1]}", public="shapes differ"
            )
        if not np.allclose(image.affine, label.affine, atol=_AFFINE_TOLERANCE):
            raise BadInput(f"case {name}: label and {what} lie in different places", public="geometries differ")
    return LabelledCase(name, images, label)


def median_spacing(cases: Sequence[LabelledCase]) -> tuple[float, float, float]:
    """Median size of a voxel along the model's axes, in millimetres."""
    x, y, z = (round(float(size), 4) for size in np.median([own_grid(case)[1] for case in cases], 0))
    return x, y, z


def own_grid(case: LabelledCase) -> tuple[Shape, tuple[float, float, float]]:
    """Voxels of a case as it is stored, and their size in millimetres, along the model's axes."""
    mapping = AxisMapping.between(case.image.affine, ORIENTATION)
    return mapping.to_model(case.image.shape), mapping.to_model(spacing(case.image.affine))


def label_values(case: LabelledCase, largest: int = LARGEST_LABEL) -> npt.NDArray[Any]:
    """The distinct values of a label file.

    Raises
    ------
    BadInput
        If they are not whole numbers from 0 to ``largest``.
    """
    values = np.unique(np.concatenate([np.unique(block) for block in blocks(case.label)]))
    check_label_values(case, values, largest)
    return values


def check_label_values(case: LabelledCase, values: npt.NDArray[Any], largest: int = LARGEST_LABEL) -> None:
    """Refuse the distinct values of a label file, or of a part of it, as ``label_values`` does."""
    if (
        not np.isfinite(values).all()
        or (values != np.round(values)).any()
        or values.min() < 0
        or values.max() > largest
    ):
        raise BadInput(f"case {case.name}: labels must be whole numbers from 0 to {largest}", public="label values")
