"""Class tables: which labels of a label map become which class, and which labels look alike in an image.

A training that synthesises its images (``apps.imaging.training.data.synthesis``) reads one. The tissues of a class are
sets of labels whose voxels have one distribution of intensities, so left and right stand in one tissue. ``levels`` are
a tissue's typical intensities, mean and standard deviation, in a contrast that the table names with the share of the
images that have it; all other images have random ones. Tables that are installed with the program are in
``data/label_tables``.
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, NotRequired, TypedDict

import numpy as np
import numpy.typing as npt

from common import typed_json
from common.errors import BadInput

MOST_TISSUES = 254
"""Tissues are stored as uint8, and 255 stands for a voxel that is not labelled."""
LARGEST_LABEL = 65535


class TissueEntry(TypedDict):
    """Labels whose voxels look alike."""

    labels: Annotated[list[Annotated[int, ("minimum", 0), ("maximum", LARGEST_LABEL)]], ("minItems", 1)]
    levels: NotRequired[Mapping[str, tuple[float, Annotated[float, ("minimum", 0)]]]]
    """By contrast: mean and standard deviation, on the scale from 0 to 255."""


class TableClass(TypedDict):
    """One class."""

    value: Annotated[int, ("minimum", 0), ("maximum", 254)]
    name: Annotated[str, ("pattern", r"\S")]
    tissues: Annotated[list[TissueEntry], ("minItems", 1)]
    outer: NotRequired[bool]
    """True for a class that an image without skull may lack too, as the fluid around a brain."""


class LabelTableFile(TypedDict):
    """A class table."""

    classes: Annotated[list[TableClass], ("minItems", 2)]
    contrasts: NotRequired[Mapping[str, Annotated[float, ("minimum", 0), ("maximum", 1)]]]
    """Shares of the images that have typical intensities, by contrast."""
    name: NotRequired[str]
    licence: NotRequired[str]
    reference: NotRequired[str]


@dataclass(frozen=True, slots=True)
class LabelTable:
    """A class table, its tissues numbered in the order of the file."""

    labels: Mapping[int, str]
    """Names of the classes by value, ascending; the first is background."""
    tissue_of: Mapping[int, int]
    """Number of the tissue by label."""
    class_of: npt.NDArray[np.uint8]
    """Index of the class of each tissue (T,), in the order of ``labels``."""
    outer: npt.NDArray[np.bool_]
    """Tissues (T,) whose class an image without skull may lack too."""
    contrasts: Mapping[str, float]
    """Shares of the images by contrast."""
    levels: Mapping[str, npt.NDArray[np.float32]]
    """By contrast: mean and standard deviation of each tissue (T, 2); NaN where the table has none."""
    about: Mapping[str, str]
    """``name``, ``licence`` and ``reference``, as far as the file has them."""
    sha256: str
    """Of the file."""

    def tissues(self, values: npt.NDArray[np.integer]) -> npt.NDArray[np.uint8]:
        """Numbers of the tissues of label values, which the table must have (``missing``)."""
        lookup = np.zeros(max(self.tissue_of) + 1, np.uint8)
        lookup[list(self.tissue_of)] = list(self.tissue_of.values())
        numbers: npt.NDArray[np.uint8] = lookup[values]
        return numbers

    def missing(self, values: Iterable[int]) -> list[int]:
        """Label values that the table does not have."""
        return sorted(set(values) - set(self.tissue_of))


def read_table(path: Path) -> LabelTable:
    """Read a class table.

    Raises
    ------
    BadInput
        If the file cannot be read or is no table; if a label is in two tissues, or a value or name in two classes; if
        there is no background, or the contrasts' shares are more than 1.
    """
    described = typed_json.read(path, LabelTableFile, what="class table", closed=True)
    classes = sorted(described["classes"], key=lambda one: one["value"])
    for key in ("value", "name"):
        if (twice := _twice(one[key] for one in classes)) is not None:
            raise BadInput(f"{path}: {key} {twice!r} is of two classes", public="classes collide")
    if classes[0]["value"]:
        raise BadInput(f"{path}: no class has the value 0; the background needs it", public="no background")
    contrasts = dict(described.get("contrasts", {}))
    if sum(contrasts.values()) > 1:
        raise BadInput(f"{path}: the shares of the contrasts are more than 1 together", public="contrasts")
    tissues = [(index, one, tissue) for index, one in enumerate(classes) for tissue in one["tissues"]]
    if len(tissues) > MOST_TISSUES:
        raise BadInput(f"{path}: {len(tissues)} tissues; at most {MOST_TISSUES} are possible", public="tissues")
    if (label := _twice(label for _, _, tissue in tissues for label in tissue["labels"])) is not None:
        raise BadInput(f"{path}: label {label} is in two tissues", public="labels collide")
    if unknown := sorted({name for _, _, tissue in tissues for name in tissue.get("levels", {})} - set(contrasts)):
        raise BadInput(f"{path}: levels of {unknown[0]!r}, which contrasts does not list", public="contrasts")
    nothing = (np.nan, np.nan)
    return LabelTable(
        labels={one["value"]: one["name"] for one in classes},
        tissue_of={label: number for number, (_, _, tissue) in enumerate(tissues) for label in tissue["labels"]},
        class_of=np.array([index for index, _, _ in tissues], np.uint8),
        outer=np.array([bool(one.get("outer")) for _, one, _ in tissues]),
        contrasts=contrasts,
        levels={
            name: np.array([tissue.get("levels", {}).get(name, nothing) for _, _, tissue in tissues], np.float32)
            for name in contrasts
        },
        about={key: str(described[key]) for key in ("name", "licence", "reference") if key in described},
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
    )


def _twice(values: Iterable[object]) -> object | None:
    """A value that occurs twice; ``None`` if there is none."""
    seen: set[object] = set()
    for value in values:
        if value in seen:
            return value
        seen.add(value)
    return None
