"""Work that several processes or machines share, each doing a part: a stable hash of a name says whose it is.

No process knows of the others. As long as all are started with the same input and the same number of parts, each study
or user is in one part, on any machine and with any version.
"""

import argparse
import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from common.errors import BadInput

SHOWN = 5
"""Most names in an error."""


@dataclass(frozen=True, slots=True)
class Part:
    """One part of several.

    Attributes
    ----------
    number
        From 1.
    of
        How many parts there are.
    """

    number: int
    of: int

    @classmethod
    def parse(cls, text: str) -> "Part":
        """An argparse type: ``K/N``.

        Raises
        ------
        argparse.ArgumentTypeError
            It is not two whole numbers, or K is not from 1 to N.

        Examples
        --------
        >>> Part.parse("2/16")
        Part(number=2, of=16)
        """
        number, slash, of = text.partition("/")
        if not (slash and number.isdecimal() and of.isdecimal()):
            raise argparse.ArgumentTypeError(f"{text!r} is not K/N, such as 2/16 for the second of 16 parts")
        if not 1 <= int(number) <= int(of):
            raise argparse.ArgumentTypeError(
                f"{text}: there is no part {number} of {of}; parts are 1/{of} to {of}/{of}"
            )
        return cls(int(number), int(of))

    @property
    def name(self) -> str:
        """Name for files and folders; those of one command sort by number.

        Examples
        --------
        >>> Part(2, 16).name
        'part-02-of-16'
        """
        return f"part-{self.number:0{len(str(self.of))}d}-of-{self.of}"

    def holds(self, name: str) -> bool:
        """True if what has this name belongs to the part: the first eight bytes of its SHA-256, modulo ``of``.

        Examples
        --------
        >>> [number for number in (1, 2, 3) if Part(number, 3).holds("case_0007.nii.gz")]
        [3]
        """
        digest = hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()
        return int.from_bytes(digest[:8], "big") % self.of == self.number - 1

    def folder(self, output: Path) -> Path:
        """Where the part's outputs are below the folder of all."""
        return output / self.name

    def file(self, output: Path) -> Path:
        """The part's file next to the file of all.

        Examples
        --------
        >>> Part(2, 4).file(Path("out/lists.csv"))
        PosixPath('out/lists.part-2-of-4.csv')
        """
        return output.with_name(f"{output.stem}.{self.name}{output.suffix}")


class Note(Protocol):
    """What a part says of itself."""

    @property
    def part(self) -> int:
        """From 1."""
        ...

    @property
    def of(self) -> int:
        """How many parts there are."""
        ...

    @property
    def settings(self) -> str:
        """Digest of the model, the options and all else that decides the result."""
        ...


def require_whole(notes: Sequence[tuple[Path, Note]]) -> None:
    """Refuse parts that are not all parts of one command, each once.

    Parameters
    ----------
    notes
        Each part's place and what it says of itself; one at least.

    Raises
    ------
    BadInput
        Parts are of several commands, double or missing.
    """
    first_place, first = notes[0]
    for place, note in notes:
        why = ""
        if note.of != first.of:
            why = f"is of {note.of} parts, and {first_place} of {first.of}"
        elif note.settings != first.settings:
            why = f"was made with another model or other options than {first_place}"
        if why:
            raise BadInput(f"{place}: {why}; run all parts with the same command", public="parts of other commands")
    often = Counter(note.part for _, note in notes)
    if double := next((number for number, count in often.items() if count > 1), None):
        where = ", ".join(str(place) for place, note in notes if note.part == double)
        message = f"part {double} of {first.of} is there {often[double]} times: {where}; no part is taken twice"
        raise BadInput(message, public="double part")
    if missing := sorted({*range(1, first.of + 1)} - {*often}):
        which = f"part{'s' * (len(missing) > 1)} {listed(missing)} of {first.of}"
        message = f"{len(missing)} of {first.of} parts missing: {which}; run --part {missing[0]}/{first.of}"
        raise BadInput(message, public="missing parts")


def listed(names: Sequence[object]) -> str:
    """The first names of several, and how many more there are.

    Examples
    --------
    >>> listed(range(7))
    '0, 1, 2, 3, 4 and 2 more'
    """
    more = f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else ""
    return ", ".join(map(str, names[:SHOWN])) + more


PART_HELP = "only a part of the work, chosen by a hash: 1/16 to 16/16 can run at once on any machines; merge joins them"
"""Help of ``--part``."""
