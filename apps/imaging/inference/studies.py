"""The studies of a command one after the other, and the table of all outcomes of a folder (``studies.csv``)."""

import csv
import io
import logging
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from apps.imaging.dicom.defects import Defect, Outcome
from apps.imaging.dicom.series import DicomVolume
from apps.imaging.inference.network_grid import NetworkGrid
from apps.imaging.inference.options import InferOptions
from apps.imaging.inference.outputs import OutputRequest, whole_or_nothing
from apps.imaging.volumes import stored
from apps.imaging.volumes.stored import FileVolume
from apps.imaging.volumes.volume import Volume
from common.cli.session import Session
from common.errors import BadInput
from common.files import atomic_file
from common.memory.process import guard
from common.terminal import escaped

log = logging.getLogger("peakline")

TABLE = "studies.csv"
SHOWN_LEFT_OUT = 20
"""Most lines about what a search left out."""
STARTED = "started"
"""Status of a study whose outputs are being written; a table that still has it is that of a killed run."""
_COLUMNS = ("study", "input", "status", "reason", "outputs", "key", "source")
_UNFINISHED = re.compile(r"\..*(\.\d+\.part|\.labels\.nii\.gz)")
"""Names of files that a killed run leaves."""
_UNSAFE = re.compile(r"[;\x00-\x1f\x7f]|^[-=+@.]")
"""Characters of a case's name that a table cannot take: its separators, and the start of a formula."""


@dataclass(frozen=True, slots=True)
class Study:
    """One input and its outcome; a row of the table."""

    study: str
    """``study-0001``, in input order: the name in records and logs."""
    input: str
    """The user's path or address. It stands only in the table, which only its owner may read."""
    status: str = "waiting"
    """``waiting``, ``started``, ``done``, ``skipped`` or ``failed``."""
    reason: str = ""
    """Why it failed, without path or identifier."""
    outputs: tuple[str, ...] = ()
    """File names in OUT."""
    key: str = ""
    """Digest of the images and of the request (``InferRequest.digest``): with the same key a study is finished."""
    source: str = ""
    """The same for an input on a server, of what the server lists: it is known before the study is fetched."""
    case: str = ""
    """The name of a NIfTI file's outputs; it is not in the table."""

    def public(self) -> dict[str, Any]:
        """The study's entry in the record, without its outputs' names, which may be a patient's."""
        return {
            "study": self.study,
            "status": self.status,
            "reason": self.reason or None,
            "outputs": [name.removeprefix(stem_of(self.outputs)) for name in self.outputs],
        }


def stem_of(outputs: Sequence[str]) -> str:
    """The common start of the names of a study's outputs: the name of its case, or ``series-`` and digits."""
    first = outputs[0] if outputs else ""
    stem = next((first[: -len(ending)] for ending in ENDINGS if first.endswith(ending)), first)
    return stem if all(name.startswith(stem) for name in outputs) else os.path.commonprefix(outputs)  # noqa: RUF071


_OBJECTS = (".seg.dcm", ".sr.dcm", ".rtstruct.dcm")
ENDINGS = ("-probabilities.nii.gz", ".nii.gz", *_OBJECTS, "-statistics.csv", "-statistics.json", ".png")


def output_stem(study: Study, volume: Volume, key: str) -> str:
    """The name of a study's outputs: a NIfTI file's case; ``series-`` and eight digits of the key of a DICOM series.

    Parameters
    ----------
    key
        Digest of the image and of all that decides its labels.
    """
    if not isinstance(volume, FileVolume):
        return f"series-{key[:8]}"
    return study.case + (f"-volume{volume.number}" if volume.number else "")


def case_names(inputs: Sequence[str], *, several_channels: bool) -> dict[str, str]:
    """The case of each input: its file's name, after those of its folders where inputs have the same.

    Parameters
    ----------
    several_channels
        True if ``CASE_0000.nii.gz`` is of the case ``CASE``.

    Examples
    --------
    >>> case_names(["a/T1.nii.gz", "b/T1.nii", "b/T2.nii"], several_channels=False)
    {'a/T1.nii.gz': 'a_T1', 'b/T1.nii': 'b_T1', 'b/T2.nii': 'T2'}
    """
    paths = {each: Path(absolute(each)) for each in inputs}

    def named(each: str, folders: int) -> str:
        path = paths[each]
        stem = stored.stem(Path(stored.CHANNEL.sub("", path.name) if several_channels else path.name))
        return _UNSAFE.sub("_", "_".join([*path.parts[1:-1][len(path.parts) - 2 - folders :], stem]))

    names, folders = {each: named(each, 0) for each in paths}, 0
    while folders < max((len(path.parts) for path in paths.values()), default=0):
        folders += 1
        often = Counter(names.values())
        names = {each: named(each, folders) if often[name] > 1 else name for each, name in names.items()}
    return names


@dataclass(slots=True)
class StudyTable:
    """The table in the output folder, rewritten after each study. Rows of inputs of earlier runs stay in it."""

    directory: Path
    rows: list[Study]
    earlier: list[Study] = field(default_factory=list)
    """Rows of previous runs."""

    @classmethod
    def open(cls, directory: Path, studies: Sequence[Study]) -> "StudyTable":
        """Read the table of earlier runs into ``directory``, and remove the unfinished files of a killed one."""
        for entry in directory.iterdir() if directory.is_dir() else ():
            if _UNFINISHED.fullmatch(entry.name):
                entry.unlink(missing_ok=True)
        return cls(directory, list(studies), read_table(directory))

    def finished(self, study: Study, key: str, *, anywhere: bool = False) -> Study | None:
        """The row of an input that has the same key and all whose outputs exist; else ``None``.

        Parameters
        ----------
        anywhere
            True if the row of another input will do: the key of a DICOM series is of its instances' UIDs.
        """
        rows = [row for row in (*self.earlier, *self.rows) if row.key == key and (anywhere or _same_input(row, study))]
        return next((row for row in rows if complete(self.directory, row)), None)

    def claim(self, study: Study, names: Sequence[str]) -> None:
        """Make sure that outputs replace nothing but earlier outputs of the same input.

        Raises
        ------
        BadInput
            If a name is another input's, or a file of that name is in no row of the table.
        """
        listed = {name: row for row in (*self.earlier, *self.rows) for name in row.outputs}
        for name in names:
            row = listed.get(name)
            if row is not None and not _same_input(row, study):
                message = f"its output would replace {self.directory / name}, that of {row.input}"
            elif row is None and (self.directory / name).exists():
                message = f"its output would replace {self.directory / name}, which no row of {TABLE} names"
            else:
                continue
            raise BadInput(f"{study.input}: {message}; choose another folder", public="output name taken")

    def update(self, index: int, **changes: Any) -> Study:
        """Change a row and write the table."""
        self.rows[index] = replace(self.rows[index], **changes)
        self.write()
        return self.rows[index]

    def clean(self) -> None:
        """Remove label maps of killed runs that no study has resumed from; call it when all studies were tried."""
        for entry in self.directory.glob(".*.merging*"):
            entry.unlink(missing_ok=True)

    def write(self) -> None:
        """Write the table, which only its owner may read, because it names the inputs.

        Earlier rows stay, but those of an input whose outputs are written again. A study that is still waiting, or
        failed before it replaced anything, keeps its earlier row.
        """
        inputs = {absolute(row.input): row for row in self.rows}
        rows = []
        for row in self.earlier:
            now = inputs.get(absolute(row.input))
            if now is None or now.status == "waiting":
                rows.append(row)
            elif now.status in ("failed", "skipped") or not {*now.outputs} & {*row.outputs}:
                rows += [row] if row.outputs and row.outputs != now.outputs and complete(self.directory, row) else []
        kept = {absolute(row.input) for row in rows}
        rows += [row for row in self.rows if row.status != "waiting" or absolute(row.input) not in kept]
        text = io.StringIO()
        writer = csv.DictWriter(text, _COLUMNS, extrasaction="ignore")
        writer.writeheader()
        for row in rows:
            writer.writerow(asdict(row) | {"input": absolute(row.input), "outputs": ";".join(row.outputs)})
        with atomic_file(self.directory / TABLE) as draft:
            draft.touch(mode=0o600)
            draft.write_text(text.getvalue(), encoding="utf-8", errors="surrogateescape")  # names need not be UTF-8


def _same_input(one: Study, other: Study) -> bool:
    return absolute(one.input) == absolute(other.input)


def complete(directory: Path, row: Study) -> bool:
    """True if a row is finished and all its outputs still exist."""
    return row.status in ("done", "skipped") and all((directory / name).is_file() for name in row.outputs)


def fetched_before(directory: Path, table: Sequence[Study], source: str, digest: str) -> Study | None:
    """The earlier row of a study on a server that need not be fetched again.

    Parameters
    ----------
    source
        Its address.
    digest
        Of what the server lists for it, and of all that decides its outputs.
    """
    rows = [row for row in table if row.input == source and row.source == digest]
    return next((row for row in rows if complete(directory, row)), None)


def outputs_of(directory: Path) -> dict[str, tuple[str, ...]]:
    """Names of the outputs of each study of the last run, by ``study-0001`` and so on."""
    return {row.study: row.outputs for row in read_table(directory) if row.status in ("done", "skipped")}


def read_table(directory: Path) -> list[Study]:
    """Rows of earlier runs; empty if there is no readable table."""
    try:
        with (directory / TABLE).open(encoding="utf-8", errors="surrogateescape", newline="") as stream:
            return [
                Study(**{**row, "outputs": tuple(name for name in row["outputs"].split(";") if name)})  # type: ignore[arg-type]
                for row in csv.DictReader(stream)
                if re.fullmatch(r"study-\d+", row["study"])
            ]
    except (OSError, TypeError, KeyError, ValueError, csv.Error):
        return []


def absolute(source: str) -> str:
    """An input as ``studies.csv`` names it: addresses as they are, paths from the root."""
    return source if source.startswith(("http://", "https://")) else os.path.abspath(source)


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A file or folder that a search found and that is no study."""

    path: str
    reason: str
    public: str
    """The reason without paths or identifiers."""

    def __str__(self) -> str:
        return escaped(f"left out: {self.path}: {self.reason}")


class Inputs(Protocol):
    """The studies of a command, as ``apps.imaging.inference.discovery`` finds them."""

    @property
    def studies(self) -> tuple[Study, ...]:
        """In their order."""
        ...

    @property
    def grids(self) -> Mapping[str, NetworkGrid | BadInput]:
        """By name, each study's image on the network's grid, or why the study cannot be used."""
        ...

    @property
    def finished(self) -> Mapping[str, Study]:
        """By name, earlier rows of studies on servers that need not be fetched again; they have no grid."""
        ...

    @property
    def left_out(self) -> tuple[LeftOut, ...]:
        """Files and folders that a search found and that are no studies."""
        ...


class StudyRequest(Protocol):
    """What working through studies needs of a request, whether one network makes their labels or several do."""

    @property
    def options(self) -> InferOptions:
        """The command line."""
        ...

    @property
    def inputs(self) -> Inputs:
        """The studies, their grids those of the first network."""
        ...

    @property
    def outputs(self) -> OutputRequest:
        """Files of each study."""
        ...

    def digest(self, image: str, *, outputs: bool = True, **further: Sequence[str]) -> str:
        """SHA-256 of an image and of all that decides what is made of it."""
        ...


Segment = Callable[[Path, Study, NetworkGrid, str, str], None]
"""Segments a study into files whose paths begin with the first argument: its row, its grid, the digest from which
DICOM's UIDs are derived, and that by which it is recognised."""


def each_study(request: StudyRequest, session: Session, segment: Segment) -> dict[str, Any]:
    """Work through the studies; each ends as done, skipped or failed, and the table says so at once.

    Returns
    -------
    dict
        The record's ``results``: ``{"studies": [...]}``.

    Raises
    ------
    BadInput
        If a study failed by its input, after all were tried; ``session.results`` has the others.
    """
    table = StudyTable.open(request.options.output, request.inputs.studies)
    left_out = request.inputs.left_out
    for one in left_out[:SHOWN_LEFT_OUT]:
        session.say(str(one))
    if len(left_out) > SHOWN_LEFT_OUT:
        session.say(f"left out: {len(left_out) - SHOWN_LEFT_OUT} more")
    if left_out:
        session.results["left_out"] = [one.public for one in left_out]
    unforeseen: Exception | None = None
    bad: BadInput | None = None
    for index, study in enumerate(table.rows):
        try:
            _finish_study(request, session, segment, table, index)
        except BadInput as error:
            bad = bad or error
            table.update(index, status="failed", reason=error.public, outputs=())
            if len(table.rows) > 1:
                session.say(f"{study.study}: {error}")
        except Exception as error:
            unforeseen = unforeseen or error
            table.update(index, status="failed", reason=type(error).__name__, outputs=())
            log.error("%s: %s", study.study, type(error).__name__, exc_info=log.isEnabledFor(logging.DEBUG))
            guard.release()
        session.results["studies"] = [row.public() for row in table.rows]
    table.clean()
    if unforeseen is not None:
        raise unforeseen
    if bad is not None:
        failed = sum(row.status == "failed" for row in table.rows)
        raise bad if len(table.rows) == 1 else BadInput(f"{failed} of {len(table.rows)} studies failed")
    return session.results


def _finish_study(request: StudyRequest, session: Session, segment: Segment, table: StudyTable, index: int) -> None:
    """Segment a study, unless an earlier run with the same request has."""
    study = table.rows[index]
    earlier = request.inputs.finished.get(study.study)
    if earlier is None:
        grid = request.inputs.grids[study.study]
        if isinstance(grid, BadInput):
            raise grid
        image, *further = [channel.volume.identity() for channel in grid.channels]
        key = request.digest(image, further=further)
        earlier = table.finished(study, key, anywhere=isinstance(grid.volume, DicomVolume))
        if earlier is None:
            uids = request.digest(image, outputs=False, further=further)
            stem = output_stem(study, grid.volume, uids)
            names = request.outputs.names(stem)
            table.claim(study, names)
            for note in _notes(grid.volume):
                session.say(f"{study.study}: {note}")
            table.update(index, status=STARTED, outputs=names, key=key)
            with whole_or_nothing(table.directory, names):
                segment(table.directory / stem, study, grid, uids, key)
            table.update(index, status="done")
            return
    session.say(f"{study.study}: done before, skipped")
    table.update(index, status="skipped", outputs=earlier.outputs, key=earlier.key)


def _notes(volume: Volume) -> Iterator[str]:
    """Lines about an image for the person at the terminal: repairs, parts left out, choices."""
    if isinstance(volume, DicomVolume):
        for finding in volume.findings:
            if finding.outcome is Outcome.REPAIR or finding.defect is Defect.SEVERAL_VOLUMES:
                yield str(finding)
    elif isinstance(volume, FileVolume):
        yield from (f"header: {note}" for note in volume.notes)
