"""The studies of a command, their headers and outcomes, and the table of all outcomes of a folder (``studies.csv``)."""

import csv
import io
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apps.imaging.inference.discovery import FoundStudy, LeftOut, absolute, find_studies, open_volume
from apps.imaging.volumes import nifti
from apps.imaging.volumes.volume import Shape, Volume
from common.errors import BadInput
from common.files import atomic_file

if TYPE_CHECKING:
    from apps.imaging.dicom.web import Downloads
    from apps.imaging.inference.network_grid import NetworkGrid
    from apps.imaging.inference.options import InferOptions
    from apps.imaging.models.model_folder import ImagingModel

TABLE = "studies.csv"
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


def numbered(found: Iterable[FoundStudy], earlier: Sequence[Study] = ()) -> list[Study]:
    """Give studies their names: an input that an earlier run had keeps its own, others have the next numbers."""
    names = {absolute(row.input): row.study for row in earlier}
    last = max((int(row.study.rpartition("-")[2]) for row in earlier), default=0)
    studies = []
    for each in found:
        if (name := names.get(absolute(each.input))) is None:
            last += 1
            name = names[absolute(each.input)] = f"study-{last:04d}"
        studies.append(Study(name, each.input))
    return studies


def stem_of(outputs: Sequence[str]) -> str:
    """The common start of the names of a study's outputs: the name of its case, or ``series-`` and digits."""
    first = outputs[0] if outputs else ""
    stem = next((first[: -len(ending)] for ending in ENDINGS if first.endswith(ending)), first)
    return stem if all(name.startswith(stem) for name in outputs) else os.path.commonprefix(outputs)  # noqa: RUF071


ENDINGS = (".nii.gz", ".seg.dcm", ".rtstruct.dcm", "-statistics.csv", "-statistics.json", ".png")


def output_stem(study: Study, volume: Volume, key: str) -> str:
    """The name of a study's outputs: a NIfTI file's case; ``series-`` and eight digits of the key of a DICOM series.

    Parameters
    ----------
    key
        Digest of the image and of all that decides its labels.
    """
    if not isinstance(volume, nifti.NiftiVolume):
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
        stem = nifti.stem(Path(nifti.CHANNEL.sub("", path.name) if several_channels else path.name))
        return _UNSAFE.sub("_", "_".join([*path.parts[1:-1][len(path.parts) - 2 - folders :], stem]))

    names, folders = {each: named(each, 0) for each in paths}, 0
    while folders < max((len(path.parts) for path in paths.values()), default=0):
        folders += 1
        often = Counter(names.values())
        names = {each: named(each, folders) if often[name] > 1 else name for each, name in names.items()}
    return names


def of_several_channels(studies: Sequence[FoundStudy]) -> list[FoundStudy]:
    """Keep only the files of the first channel, ``CASE_0000.nii.gz``, for a model of several channels.

    Raises
    ------
    BadInput
        If there are none.
    """
    first = [study for study in studies if (match := nifti.CHANNEL.search(study.input)) and int(match[1]) == 0]
    if not first:
        message = "a model of several channels takes CASE_0000.nii.gz and finds CASE_0001.nii.gz, ... in its folder"
        raise BadInput(f"{studies[0].input}: {message}", public="no file of a first channel")
    return first


def further_channels(path: Path, count: int) -> list[Path]:
    """Paths of the second to the last of ``count`` channels, by the name of the first one's file.

    Examples
    --------
    >>> further_channels(Path("case_0000.nii.gz"), 2)
    [PosixPath('case_0001.nii.gz')]
    """
    return [path.with_name(nifti.CHANNEL.sub(f"_{channel:04d}", path.name)) for channel in range(1, count)]


@dataclass(frozen=True, slots=True)
class StudyInputs:
    """The studies of one command, their headers read."""

    studies: tuple[Study, ...] = ()
    grids: "Mapping[str, NetworkGrid | BadInput]" = field(default_factory=dict)
    """By name, each study's image on the network's grid, or why the study cannot be used."""
    finished: Mapping[str, Study] = field(default_factory=dict)
    """By name, earlier rows of studies on servers that need not be fetched again; they have no grid."""
    left_out: tuple[LeftOut, ...] = ()
    """Files and folders that a search found and that are no studies."""
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
            Digest of a server's listing of a study and of all that decides its outputs.

        Raises
        ------
        BadInput
            If there is no study, or none that can be used.
        """
        from apps.imaging.dicom.web import Downloads

        output = options.output.absolute()
        scratch = next(path for path in (output, *output.parents) if path.is_dir())
        downloads, table = Downloads(scratch, options.series), read_table(options.output)
        places, left_out = find_studies(options.inputs)
        if len(model.channels) > 1:
            unnumbered = [place.input for place in places if not nifti.CHANNEL.search(place.input)]
            left_out += [
                LeftOut(each, "no number of a channel (CASE_0000.nii.gz)", "no channel") for each in unnumbered
            ]
            places = of_several_channels(places)
        outcomes: list[tuple[FoundStudy, str, NetworkGrid | BadInput | Study]] = []
        for place in places:
            listing = downloads.listed(place.input)
            source = digest(listing) if listing else ""
            if source and (row := fetched_before(options.output, table, place.input, source)):
                outcomes.append((place, source, row))
                continue
            try:
                path, series = downloads.path(place.input)
                grid = _open_grid(path, series, options, model, tile=tile, overlap=overlap)
                outcomes.append((place, source, grid))
            except BadInput as error:
                if place.searched and is_no_volume(error):
                    left_out.append(LeftOut(place.input, str(error).removeprefix(f"{place.input}: "), error.public))
                else:
                    outcomes.append((place, source, error))
        _refuse_unless_usable([outcome for _, _, outcome in outcomes], left_out)
        studies, grids, finished = [], {}, {}
        cases = case_names([place.input for place, _, _ in outcomes], several_channels=len(model.channels) > 1)
        for study, (_, source, outcome) in zip(
            numbered([place for place, _, _ in outcomes], table), outcomes, strict=True
        ):
            studies.append(replace(study, source=source, case=cases[study.input]))
            if isinstance(outcome, Study):
                finished[study.study] = outcome
            else:
                grids[study.study] = outcome
        return cls(tuple(studies), grids, finished, tuple(left_out), downloads, scratch)

    def with_tiles(self, model: "ImagingModel", tile: Shape, overlap: float) -> "StudyInputs":
        """The same images under other tiles."""
        grids = {
            name: grid if isinstance(grid, BadInput) else grid.with_tiles(model, tile, overlap)
            for name, grid in self.grids.items()
        }
        return replace(self, grids=grids)


def is_no_volume(error: BadInput) -> bool:
    """True if an input was refused because it is no volume at all: a localizer, a report, one slice."""
    from apps.imaging.dicom.defects import NO_VOLUMES, Refusal

    return isinstance(error, Refusal) and error.defect in NO_VOLUMES


def _refuse_unless_usable(outcomes: Sequence[object], left_out: Sequence[LeftOut]) -> None:
    """Raise the first error if no study can be used."""
    errors = [outcome for outcome in outcomes if isinstance(outcome, BadInput)]
    if errors and len(errors) == len(outcomes):
        raise errors[0]
    if not outcomes:
        first = left_out[0]
        raise BadInput(f"{first.path}: {first.reason}", public=first.public)


def _open_grid(
    path: Path, series: str | None, options: "InferOptions", model: "ImagingModel", *, tile: Shape, overlap: float
) -> "NetworkGrid":
    from apps.imaging.dicom.derived import dicom_series
    from apps.imaging.inference.network_grid import NetworkGrid, same_grid

    volume = open_volume(path, series, options.repair, options.volume)
    if any(kind.startswith("dicom") for kind in options.output_types):
        dicom_series(volume, path)
    further = [open_volume(other, repair=options.repair) for other in further_channels(path, len(model.channels))]
    same_grid(volume, further)
    grid = NetworkGrid.of(volume, model, tile=tile, overlap=overlap, further=further)
    grid.check(path)
    return grid


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
        if directory.is_dir():
            for entry in directory.iterdir():
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

    def write(self) -> None:
        """Write the table, which only its owner may read, because it names the inputs.

        Earlier rows stay, but those of an input whose outputs are written again. A study that is still waiting, or
        failed before it replaced anything, keeps its earlier row.
        """
        rows = []
        for row in self.earlier:
            now = next((one for one in self.rows if _same_input(one, row)), None)
            if now is None or now.status == "waiting":
                rows.append(row)
            elif now.status in ("failed", "skipped") or not {*now.outputs} & {*row.outputs}:
                rows += [row] if row.outputs and row.outputs != now.outputs and complete(self.directory, row) else []
        rows += [row for row in self.rows if row.status != "waiting" or not any(_same_input(row, e) for e in rows)]
        text = io.StringIO()
        writer = csv.DictWriter(text, _COLUMNS, extrasaction="ignore")
        writer.writeheader()
        for row in rows:
            writer.writerow(asdict(row) | {"input": absolute(row.input), "outputs": ";".join(row.outputs)})
        with atomic_file(self.directory / TABLE) as draft:
            draft.touch(mode=0o600)
            # Names of files need not be UTF-8.
            draft.write_text(text.getvalue(), encoding="utf-8", errors="surrogateescape")


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
