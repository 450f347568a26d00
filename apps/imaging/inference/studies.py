"""Which studies a command line names, and how far each has come (``OUT/studies.csv``)."""

import csv
import hashlib
import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from apps.imaging.volumes import nifti
from apps.imaging.volumes.archive import is_zip
from apps.imaging.volumes.volume import Volume
from common.errors import BadInput
from common.files import atomic_file

TABLE = "studies.csv"


@dataclass(frozen=True, slots=True)
class Study:
    """One input and its outcome; a row of the table."""

    study: str
    """``study-0001``, in input order: the name in records, logs and outputs."""
    input: str
    """The user's path; in the table only, which only its owner may read."""
    status: str = "waiting"
    """waiting, done, skipped or failed."""
    reason: str = ""
    """Why it failed, without path or identifier."""
    outputs: tuple[str, ...] = ()
    """File names in OUT."""
    key: str = ""
    """Digest of input, model and settings: the same key need not be done again."""
    source: str = ""
    """Of an input on a server, digest of what is listed there and of what was asked for: known before it is fetched."""

    def listed(self, listing: str, settings: Mapping[str, Any]) -> "Study":
        """With its ``source``, if a server lists it; ``settings`` are all that decides the outputs beside the input."""
        text = json.dumps([listing, settings], sort_keys=True)
        return replace(self, source=hashlib.sha256(text.encode()).hexdigest()) if listing else self

    def public(self) -> dict[str, Any]:
        """For the record."""
        return {
            "study": self.study,
            "status": self.status,
            "reason": self.reason or None,
            "outputs": list(self.outputs),
        }


def find_studies(inputs: Sequence[Path | str]) -> list[Study]:
    """Expand the command line: a file or zip is a study, a DICOM folder is one, a folder of these is several; an
    address (``str``) is a study on a server, or a search for some.

    Raises
    ------
    BadInput
        A path that does not exist, or a folder with nothing in it that could be read.
    """
    paths = [found for place in inputs for found in (_expand(place) if isinstance(place, Path) else _addresses(place))]
    return [Study(f"study-{number:04d}", str(path)) for number, path in enumerate(paths, start=1)]


CHANNEL = re.compile(r"_(\d{4})(?=\.nii(\.gz)?$)")
"""How nnU-Net's file names end in the number of the channel."""


def of_several_channels(studies: Sequence[Study]) -> list[Study]:
    """For a model of several channels: only the files of the first one, ``CASE_0000.nii.gz``, are studies.

    Raises
    ------
    BadInput
        If there are none.
    """
    first = [study.input for study in studies if (found := CHANNEL.search(study.input)) and int(found[1]) == 0]
    if not first:
        line = "a model of several channels takes CASE_0000.nii.gz and finds CASE_0001.nii.gz, ... beside it"
        raise BadInput(f"{studies[0].input}: {line}", public="no file of a first channel")
    return [Study(f"study-{number:04d}", path) for number, path in enumerate(first, start=1)]


def further_channels(path: Path, count: int) -> list[Path]:
    """The files of the second to the last of ``count`` channels, beside that of the first."""
    return [path.with_name(CHANNEL.sub(f"_{channel:04d}", path.name)) for channel in range(1, count)]


def _addresses(address: str) -> list[str]:
    from apps.imaging.dicom.web import find_studies

    return find_studies(address)


def _expand(path: Path) -> list[Path]:
    if not path.exists():
        raise BadInput(f"{path}: no such file or folder", public="no such input")
    if path.is_file():
        return [path]
    found = list(_below(path))
    if not found:
        raise BadInput(
            f"{path}: no images: neither DICOM nor NIfTI in it, nor in its folders", public="no images in folder"
        )
    return found


def _below(path: Path) -> Iterator[Path]:
    """Studies in a folder and the folders below it, in the order of their names; links to folders are not followed."""
    from apps.imaging.dicom.series import holds_dicom

    if holds_dicom(path):
        yield path
        return
    for entry in sorted(path.iterdir()):
        if entry.name.startswith("."):
            continue
        if entry.is_file() and (nifti.is_nifti(entry) or is_zip(entry)):
            yield entry
        elif entry.is_dir() and not entry.is_symlink():
            yield from _below(entry)


def open_volume(path: Path, series: str | None = None, repair: frozenset[str] = frozenset()) -> Volume:
    """Read the headers of an input.

    Raises
    ------
    BadInput
        If it cannot be used.
    """
    if path.is_dir() or (path.is_file() and is_zip(path)):
        from apps.imaging.dicom.series import open_series

        return open_series(path, series, repair)
    if path.is_file() and not nifti.is_nifti(path):
        raise BadInput(f"{path}: neither .nii, .nii.gz, .zip nor a DICOM folder", public="unknown file type")
    return nifti.open_nifti(path)


def resume_key(volume: Volume, settings: Mapping[str, Any]) -> str:
    """Digest of an input and of everything that changes its outputs."""
    text = json.dumps([volume.identity(), dict(settings)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass(slots=True)
class StudyTable:
    """The table in OUT, rewritten after each study."""

    directory: Path
    rows: list[Study]
    earlier: Mapping[str, Study] = field(default_factory=dict)
    """What a previous run left, by name."""

    @classmethod
    def open(cls, directory: Path, studies: Sequence[Study]) -> "StudyTable":
        """Take up what an earlier run of the same command left, and clear away what a killed one had half written."""
        for part in (
            part
            for name in (".study-*.part", ".study-*.labels.nii.gz", f".{TABLE}.*.part")
            for part in directory.glob(name)
        ):
            part.unlink(missing_ok=True)
        return cls(directory, list(studies), {row.study: row for row in read_table(directory)})

    def finished(self, study: Study, key: str) -> Study | None:
        """The earlier row, if it has the same key and its outputs are all there."""
        row = self.earlier.get(study.study)
        return row if row is not None and row.key == key and _complete(self.directory, row) else None

    def update(self, index: int, **changes: Any) -> Study:
        """Change a row and write the table."""
        self.rows[index] = replace(self.rows[index], **changes)
        self.write()
        return self.rows[index]

    def write(self) -> None:
        """Write the table, readable by its owner only: it names the inputs. Unfinished rows keep their history."""
        kept = [
            self.earlier[row.study] if row.status == "waiting" and row.study in self.earlier else row
            for row in self.rows
        ]
        text = io.StringIO()
        writer = csv.DictWriter(text, ["study", "input", "status", "reason", "outputs", "key", "source"])
        writer.writeheader()
        writer.writerows(asdict(row) | {"outputs": ";".join(row.outputs)} for row in kept)
        with atomic_file(self.directory / TABLE) as part:
            part.touch(mode=0o600)
            part.write_text(text.getvalue(), encoding="utf-8")


def _complete(directory: Path, row: Study) -> bool:
    """Whether a row's work was done, and all of it is still there."""
    return row.status in ("done", "skipped") and all((directory / name).is_file() for name in row.outputs)


def fetched_before(directory: Path, studies: Sequence[Study]) -> dict[str, Study]:
    """By name, the earlier rows of studies on servers that need not be fetched again."""
    earlier = {row.study: row for row in read_table(directory) if row.source and _complete(directory, row)}
    wanted = {study.study: study.source for study in studies}
    return {name: row for name, row in earlier.items() if wanted.get(name) == row.source}


def read_table(directory: Path) -> list[Study]:
    """The rows of an earlier run; empty where there is no readable table."""
    try:
        with (directory / TABLE).open(encoding="utf-8", newline="") as stream:
            return [
                Study(**{**row, "outputs": tuple(name for name in row["outputs"].split(";") if name)})  # type: ignore[arg-type]
                for row in csv.DictReader(stream)
            ]
    except (OSError, TypeError, KeyError, ValueError):
        return []
