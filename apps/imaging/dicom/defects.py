"""Defects and peculiarities of DICOM series, and their outcomes.

A defect is accepted (it is handled, and the result is right), repaired (the result is right for what the note says) or
refused (one line, exit 4). Nothing is guessed silently.
"""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from common.errors import BadInput


class Outcome(StrEnum):
    """The treatment of a defect."""

    ACCEPT = "accepted"
    REPAIR = "repaired"
    REFUSE = "refused"


class Defect(StrEnum):
    """Kinds of defects."""

    MISSING_SLICE = "missing slice"
    UNEVEN_SPACING = "uneven spacing"
    GANTRY_TILT = "tilted gantry"
    MIXED_ORIENTATION = "mixed orientations"
    LOCALIZER = "localizer"
    DUPLICATE = "duplicate slices"
    MULTI_FRAME = "multi-frame"
    COMPRESSED = "compressed pixels"
    SLICE_SCALE = "scale per slice"
    MONOCHROME1 = "MONOCHROME1"
    SIGNED = "signed pixels"
    SHORT_BITS = "unused bits"
    TRUNCATED = "truncated"
    CORRUPT = "damaged"
    BOMB = "decompression bomb"
    POLYGLOT = "foreign preamble"
    # Not images of one volume; these are always refused.
    GEOMETRY = "geometry missing"
    MIXED_SLICES = "mixed slices"
    COLOUR = "colour images"
    PIXEL_TYPE = "pixel type"
    SCALE = "scale of values"
    SINGLE_SLICE = "one slice only"
    SEVERAL_VOLUMES = "several volumes"
    NO_IMAGES = "no images"
    NO_VOLUME = "no volume"


NO_VOLUMES = (Defect.LOCALIZER, Defect.SINGLE_SLICE, Defect.NO_IMAGES, Defect.NO_VOLUME)
"""What is no volume at all; a search leaves it out."""


@dataclass(frozen=True, slots=True)
class Finding:
    """A defect that was accepted or repaired."""

    defect: Defect
    outcome: Outcome
    note: str
    """Without path or identifier."""

    def __str__(self) -> str:
        return f"{self.defect}: {self.outcome}, {self.note}"


class Refusal(BadInput):
    """A series is refused for a defect that would give a wrong volume.

    Parameters
    ----------
    path
        The user's path, for the terminal only.
    defect
        The defect; records and logs hold nothing else.
    message
        The rest of the line.
    """

    def __init__(self, path: Path | str, defect: Defect, message: str) -> None:
        super().__init__(f"{path}: {message}", public=f"DICOM: {defect}")
        self.defect = defect
        self.outcome = Outcome.REFUSE


def is_no_volume(error: BadInput) -> bool:
    """True if an input was refused because it is no volume at all: a localizer, a report, one slice."""
    return isinstance(error, Refusal) and error.defect in NO_VOLUMES
