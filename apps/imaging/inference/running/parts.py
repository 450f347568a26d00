"""The parts of ``imaging infer --part K/N``: what each says of itself, and how they become one folder.

A part is a folder like any other output. ``part.json`` in it says which of how many it is, and of which command. By
that ``imaging merge`` finds what is missing, double or made otherwise.
"""

import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from apps.imaging.inference.studies import (
    TABLE,
    Study,
    StudyRequest,
    StudyTable,
    absolute,
    complete,
    read_table,
)
from common.errors import BadInput
from common.files import atomic_file, sole_writer, write_json
from common.parts import Part, listed, require_whole

FILE = "part.json"


@dataclass(frozen=True, slots=True)
class PartNote:
    """Content of ``part.json``."""

    part: int
    """From 1."""
    of: int
    studies: int
    """Studies of this part."""
    settings: str
    """Digest of the model, the options and all else that decides what is made of an image."""
    inputs: str
    """Digest of the names of all studies, those of other parts among them."""

    @classmethod
    def of_request(cls, request: StudyRequest, part: Part, inputs: str) -> "PartNote":
        """Describe the part that a request makes."""
        settings = request.digest("", **request.options.chosen)
        return cls(part.number, part.of, len(request.inputs.studies), settings, inputs)

    @classmethod
    def read(cls, folder: Path) -> "PartNote":
        """Read a folder's note.

        Raises
        ------
        BadInput
            If it is not such a note.
        """
        try:
            note = cls(**json.loads((folder / FILE).read_text("utf-8")))
            if 1 <= note.part <= note.of and note.studies >= 0:
                return note
        except (OSError, ValueError, TypeError):
            pass
        raise BadInput(f"{folder / FILE}: not what infer --part writes", public="note of a part")

    @property
    def name(self) -> str:
        """``part 2 of 16``"""
        return f"part {self.part} of {self.of}"

    def write(self, folder: Path) -> None:
        """Write it into the part's folder."""
        write_json(folder / FILE, asdict(self))


def part_folders(outputs: Sequence[Path]) -> list[Path]:
    """The folders of parts below some folders, or these themselves.

    Raises
    ------
    BadInput
        If one is no folder, or there is no part in it.
    """
    found = []
    for output in outputs:
        if not output.is_dir():
            raise BadInput(f"{output}: no such folder", public="no such folder")
        below = [output] if (output / FILE).is_file() else [note.parent for note in sorted(output.glob(f"*/{FILE}"))]
        if not below:
            raise BadInput(f"{output}: no part in it; infer --part K/N makes them", public="no parts")
        found += below
    return list({folder.resolve(): folder for folder in found}.values())


def merge(outputs: Sequence[Path], target: Path) -> list[Study]:
    """Join parts: all files of their studies in one folder, by links where the file system has them, and one table.

    The table is that of a single process that did all studies. The parts stay as they are.

    Parameters
    ----------
    outputs
        Folders of parts, or folders with these.
    target
        The folder of all; it may be one of ``outputs``.

    Returns
    -------
    list of Study
        The rows of the table, in input order.

    Raises
    ------
    BadInput
        If a part, a study or a file is missing or double, or parts are not of one command; nothing is written then.
    UsageError
        If another command writes to ``target``.
    """
    notes = {folder: PartNote.read(folder) for folder in part_folders(outputs)}
    require_whole([*notes.items()])
    first_folder, first = next(iter(notes.items()))
    if other := next((folder for folder, note in notes.items() if note.inputs != first.inputs), None):
        message = f"found other studies in its input than {first_folder}; run all parts with the same command"
        raise BadInput(f"{other}: {message}", public="parts of other commands")
    numbered = [(row, folder) for folder, note in notes.items() for row in _rows(folder, note)]
    numbered.sort(key=lambda each: int(each[0].study.rpartition("-")[2]))
    _check_rows([row for row, _ in numbered])
    rows = [replace(row, study=f"study-{place:04d}") for place, (row, _) in enumerate(numbered, 1)]
    with sole_writer(target):
        table = StudyTable.open(target, [])
        for row in rows:
            table.claim(row, row.outputs)
        for row, (_, folder) in zip(rows, numbered, strict=True):
            for name in row.outputs:
                _link(folder / name, target / name)
        table.rows = rows
        table.write()
    return rows


def _rows(folder: Path, note: PartNote) -> Iterator[Study]:
    """A part's rows; a study that was done before is done.

    Raises
    ------
    BadInput
        If it is not finished, or files are missing.
    """
    rows = read_table(folder)
    finished = [row for row in rows if row.status in ("done", "skipped", "failed")]
    if len(finished) < max(note.studies, len(rows)):
        left = max(note.studies, len(rows)) - len(finished)
        message = f"{left} of {max(note.studies, len(rows))} studies are not finished; run --part {note.part}/{note.of}"
        raise BadInput(f"{folder}: {message} again", public="unfinished part")
    for row in finished:
        if row.status != "failed" and not complete(folder, row):
            message = f"outputs of {row.study} ({row.input}) are missing; run --part {note.part}/{note.of} again"
            raise BadInput(f"{folder}: {message}", public="missing outputs")
        yield replace(row, status="done") if row.status == "skipped" else row


def _check_rows(rows: Sequence[Study]) -> None:
    """Refuse studies or output files that are there twice."""
    for kind, counted in (
        ("studies", Counter(absolute(row.input) for row in rows)),
        ("output files", Counter(name for row in rows for name in row.outputs)),
    ):
        if double := [name for name, count in counted.items() if count > 1]:
            raise BadInput(f"{listed(double)}: {kind} of more than one part", public=f"double {kind}")


def _link(source: Path, path: Path) -> None:
    if path.exists() and path.samefile(source):
        return
    with atomic_file(path) as draft:
        try:
            os.link(source, draft)
        except OSError:  # another file system, or one without links
            shutil.copyfile(source, draft)


def summary(rows: Sequence[Study], target: Path) -> str:
    """A line for the user."""
    failed = sum(row.status == "failed" for row in rows)
    outcome = f"{len(rows) - failed:,} done, {failed:,} failed" if failed else "all done"
    return f"{target / TABLE}: {len(rows):,} studies, {outcome}"
