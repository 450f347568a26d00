"""What can be wrong, or merely unusual, with a DICOM series, and what is done about it.

Every defect has one of three outcomes: it is accepted (handled, the result is right), repaired (the result is right for
what the note says) or refused (one line, exit 4). Nothing is guessed in silence.
"""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from common.errors import BadInput


class Outcome(StrEnum):
    """What is done about a defect."""

    ACCEPT = "accepted"
    REPAIR = "repaired"
    REFUSE = "refused"


class Defect(StrEnum):
    """The kinds that are told apart."""

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
    # Not images of a volume at all; these are only ever refused.
    GEOMETRY = "geometry missing"
    MIXED_SLICES = "mixed slices"
    COLOUR = "colour images"
    PIXEL_TYPE = "pixel type"
    SCALE = "scale of values"
    SINGLE_SLICE = "one slice only"


@dataclass(frozen=True, slots=True)
class Finding:
    """A defect that was found and lived with."""

    defect: Defect
    outcome: Outcome
    note: str
    """Without path or identifier."""

    def __str__(self) -> str:
        return f"{self.defect}: {self.outcome}, {self.note}"


class Refusal(BadInput):
    """A series with a defect that would give a wrong volume.

    Parameters
    ----------
    path
        The user's own; on the terminal only.
    defect
        What is wrong, which is also all that records and logs may say.
    message
        The rest of the line.
    """

    def __init__(self, path: Path | str, defect: Defect, message: str) -> None:
        super().__init__(f"{path}: {message}", public=f"DICOM: {defect}")
        self.defect = defect
        self.outcome = Outcome.REFUSE
