"""The studies that a command line names, their headers, and the table of their outcomes (``OUT/studies.csv``)."""

import csv
import io
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apps.imaging.volumes import nifti
from apps.imaging.volumes.archive import is_zip
from apps.imaging.volumes.volume import Shape, Volume
from common.errors import BadInput
from common.files import atomic_file

if TYPE_CHECKING:
    from apps.imaging.dicom.web import Downloads
    from apps.imaging.inference.network_grid import NetworkGrid
    from apps.imaging.inference.options import InferOptions
    from apps.imaging.models.model_folder import ImagingModel

TABLE = "studies.csv"
CHANNEL = re.compile(r"_(\d{4})(?=\.nii(\.gz)?$)")
"""The end of nnU-Net's file names, with the number of the channel."""


@dataclass(frozen=True, slots=True)
class Study:
    """One input and its outcome; a row of the table."""

    study: str
    """``study-0001``, in input order: the name in records, logs and outputs."""
    input: str
    """The user's path or address. It stands only in the table, which only its owner may read."""
    status: str = "waiting"
    """``waiting``, ``done``, ``skipped`` or ``failed``."""
    reason: str = ""
    """Why it failed, without path or identifier."""
    outputs: tuple[str, ...] = ()
    """File names in OUT."""
    key: str = ""
    """Digest of the images and of the request (``InferRequest.digest``): with the same key a study is finished."""
    source: str = ""
    """The same for an input on a server, of what the server lists: it is known before the study is fetched."""

    def public(self) -> dict[str, Any]:
        """The study's entry in the record."""
        return {
            "study": self.study,
            "status": self.status,
            "reason": self.reason or None,
            "outputs": list(self.outputs),
        }


def find_studies(inputs: Sequence[Path | str]) -> list[Study]:
    """List the studies of a command line.

    Parameters
    ----------
    inputs
        A file, a zip and a DICOM folder are a study each, any other folder is searched for these. A ``str`` is the
        address of a study on a server, or a search for studies there.

    Raises
    ------
    BadInput
        A path that does not exist, or a folder without any image.
    """
    paths: list[Path | str] = []
    for each in inputs:
        paths += _expand(each) if isinstance(each, Path) else _addresses(each)
    return _numbered(map(str, paths))


def _numbered(inputs: Iterable[str]) -> list[Study]:
    return [Study(f"study-{number:04d}", each) for number, each in enumerate(inputs, start=1)]


def of_several_channels(studies: Sequence[Study]) -> list[Study]:
    """Keep only the files of the first channel, ``CASE_0000.nii.gz``, for a model of several channels.

    Raises
    ------
    BadInput
        If there are none.
    """
    first = [study.input for study in studies if (match := CHANNEL.search(study.input)) and int(match[1]) == 0]
    if not first:
        message = "a model of several channels takes CASE_0000.nii.gz and finds CASE_0001.nii.gz, ... in its folder"
        raise BadInput(f"{studies[0].input}: {message}", public="no file of a first channel")
    return _numbered(first)


def further_channels(path: Path, count: int) -> list[Path]:
    """Paths of the second to the last of ``count`` channels, by the name of the first one's file.

    Examples
    --------
    >>> further_channels(Path("case_0000.nii.gz"), 2)
    [PosixPath('case_0001.nii.gz')]
    """
    return [path.with_name(CHANNEL.sub(f"_{channel:04d}", path.name)) for channel in range(1, count)]


def _addresses(address: str) -> list[str]:
    from apps.imaging.dicom.web import find_studies

    return find_studies(address)


def _expand(path: Path) -> list[Path]:
    if not path.exists():
        raise BadInput(f"{path}: no such file or folder", public="no such input")
    if path.is_file():
        return [path]
    studies = list(_below(path))
    if not studies:
        raise BadInput(
            f"{path}: no images: neither DICOM nor NIfTI in it, nor in its folders", public="no images in folder"
        )
    return studies


def _below(path: Path) -> Iterator[Path]:
    """Studies in a folder and in the folders below it, by name; links to folders are not followed."""
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


def open_volume(
    path: Path, series: str | None = None, repair: frozenset[str] = frozenset(), volume: int | None = None
) -> Volume:
    """Read the headers of an input.

    Parameters
    ----------
    series
        Number or UID of the series, where a DICOM folder has several.
    repair
        Defects to repair instead of refusing them.
    volume
        Number, from 1, of the volume in a series or file of several.

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
    return nifti.open_nifti(path, volume=volume, repair="header" in repair)


@dataclass(frozen=True, slots=True)
class StudyInputs:
    """The studies of one command, their headers read."""

    studies: tuple[Study, ...] = ()
    grids: "Mapping[str, NetworkGrid | BadInput]" = field(default_factory=dict)
    """By name, each study's image on the network's grid, or why the study cannot be used."""
    finished: Mapping[str, Study] = field(default_factory=dict)
    """By name, earlier rows of studies on servers that need not be fetched again; they have no grid."""
    downloads: "Downloads | None" = None
    """Keeps what was fetched from servers until the process ends."""
    scratch: Path = Path()
    """An existing directory on the disk of the outputs, for downloads and for overlaps that wait there."""

    @classmethod
    def read(
        cls,
        options: "InferOptions",
        model: "ImagingModel",
        *,
        tile: Shape,
        overlap: float,
        digest: Callable[[str], str],
    ) -> "StudyInputs":
        """Find the studies, fetch those on servers, read every header.

        Parameters
        ----------
        tile, overlap
            As for ``NetworkGrid.of``.
        digest
            Of what a server lists for a study and of all that decides its outputs.

        Raises
        ------
        BadInput
            If there is no study, or none that can be used.
        """
        from apps.imaging.dicom.web import Downloads

        output = options.output.absolute()
        scratch = next(path for path in (output, *output.parents) if path.is_dir())
        downloads = Downloads(scratch, options.series)
        studies = find_studies(options.inputs)
        if len(model.channels) > 1:
            studies = of_several_channels(studies)
        listings = [downloads.listed(study.input) for study in studies]
        studies = [
            replace(study, source=digest(listing)) if listing else study
            for study, listing in zip(studies, listings, strict=True)
        ]
        finished = fetched_before(options.output, studies)
        grids: dict[str, NetworkGrid | BadInput] = {}
        for study in studies:
            if study.study in finished:
                continue
            try:
                path, series = downloads.path(study.input)
                grids[study.study] = _open_grid(path, series, options, model, tile=tile, overlap=overlap)
            except BadInput as error:
                grids[study.study] = error
        errors = [grid for grid in grids.values() if isinstance(grid, BadInput)]
        if errors and len(errors) == len(grids):
            raise errors[0]
        return cls(tuple(studies), grids, finished, downloads, scratch)

    def with_tiles(self, model: "ImagingModel", tile: Shape, overlap: float) -> "StudyInputs":
        """The same images under other tiles."""
        grids = {
            name: grid if isinstance(grid, BadInput) else grid.with_tiles(model, tile, overlap)
            for name, grid in self.grids.items()
        }
        return replace(self, grids=grids)


def _open_grid(
    path: Path, series: str | None, options: "InferOptions", model: "ImagingModel", *, tile: Shape, overlap: float
) -> "NetworkGrid":
    from apps.imaging.dicom.derived import dicom_series
    from apps.imaging.inference.network_grid import NetworkGrid, same_grid

    volume = open_volume(path, series, options.repair)
    if any(kind.startswith("dicom") for kind in options.output_types):
        dicom_series(volume, path)
    further = [open_volume(other) for other in further_channels(path, len(model.channels))]
    same_grid(volume, further)
    grid = NetworkGrid.of(volume, model, tile=tile, overlap=overlap, further=further)
    grid.check(path)
    return grid


@dataclass(slots=True)
class StudyTable:
    """The table in the output folder, rewritten after each study."""

    directory: Path
    rows: list[Study]
    earlier: Mapping[str, Study] = field(default_factory=dict)
    """Rows of a previous run, by study."""

    @classmethod
    def open(cls, directory: Path, studies: Sequence[Study]) -> "StudyTable":
        """Read the table of an earlier run into ``directory``, and remove the unfinished files of a killed one."""
        for pattern in (".study-*.part", ".study-*.labels.nii.gz", f".{TABLE}.*.part"):
            for unfinished in directory.glob(pattern):
                unfinished.unlink(missing_ok=True)
        return cls(directory, list(studies), {row.study: row for row in read_table(directory)})

    def finished(self, study: Study, key: str) -> Study | None:
        """The earlier row of a study, if it has the same key and all its outputs exist; else ``None``."""
        row = self.earlier.get(study.study)
        return row if row is not None and row.key == key and _complete(self.directory, row) else None

    def update(self, index: int, **changes: Any) -> Study:
        """Change a row and write the table."""
        self.rows[index] = replace(self.rows[index], **changes)
        self.write()
        return self.rows[index]

    def write(self) -> None:
        """Write the table, which only its owner may read, because it names the inputs.

        A study that is still waiting keeps its earlier row.
        """
        kept = [
            self.earlier[row.study] if row.status == "waiting" and row.study in self.earlier else row
            for row in self.rows
        ]
        text = io.StringIO()
        writer = csv.DictWriter(text, ["study", "input", "status", "reason", "outputs", "key", "source"])
        writer.writeheader()
        writer.writerows(asdict(row) | {"outputs": ";".join(row.outputs)} for row in kept)
        with atomic_file(self.directory / TABLE) as draft:
            draft.touch(mode=0o600)
            draft.write_text(text.getvalue(), encoding="utf-8")


def _complete(directory: Path, row: Study) -> bool:
    """Whether a row is finished and all its outputs still exist."""
    return row.status in ("done", "skipped") and all((directory / name).is_file() for name in row.outputs)


def fetched_before(directory: Path, studies: Sequence[Study]) -> dict[str, Study]:
    """Earlier rows of studies on servers that need not be fetched again, by study."""
    earlier = {row.study: row for row in read_table(directory) if row.source and _complete(directory, row)}
    sources = {study.study: study.source for study in studies}
    return {name: row for name, row in earlier.items() if sources.get(name) == row.source}


def read_table(directory: Path) -> list[Study]:
    """Rows of an earlier run; empty if there is no readable table."""
    try:
        with (directory / TABLE).open(encoding="utf-8", newline="") as stream:
            return [
                Study(**{**row, "outputs": tuple(name for name in row["outputs"].split(";") if name)})  # type: ignore[arg-type]
                for row in csv.DictReader(stream)
            ]
    except (OSError, TypeError, KeyError, ValueError):
        return []
