"""The studies that the inputs of a command line hold, with their headers, and the files that are left out.

A NIfTI file, a folder with DICOM files directly in it, and such a folder inside a zip are a study each. Every folder
below an input is searched, whatever else is in it.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from apps.imaging.inference.studies import LeftOut, Study, absolute, case_names, fetched_before, read_table
from apps.imaging.volumes import nifti, stored, text_headers
from apps.imaging.volumes.archive import is_zip, zip_of
from apps.imaging.volumes.volume import Shape, Volume
from common.errors import BadInput

if TYPE_CHECKING:
    from apps.imaging.dicom.web import Downloads
    from apps.imaging.inference.network_grid import NetworkGrid
    from apps.imaging.inference.options import InferOptions
    from apps.imaging.models.model_folder import ImagingModel

UNREAD = (".mnc", ".nii.bz2", ".nii.xz")
"""Endings of images that are not read; a search names such files."""
READ = "NIfTI (.nii, .nii.gz, .nii.zst, .hdr), NRRD, MetaImage, MGH and DICOM folders"


@dataclass(frozen=True, slots=True)
class FoundStudy:
    """A study's place."""

    input: str
    """The user's path, or one below it; or an address."""
    searched: bool = False
    """True if a search found it among others; it is left out if it turns out to be no volume."""
    name: str = ""
    """The same wherever the input's folder is: its path from the user's input on, whose own name is part of it."""
    channels: tuple[tuple[Path, str], ...] = ()
    """Folder and UID of the series of each channel, where ``--channel`` chose them."""


def find_studies(inputs: Sequence[Path | str]) -> tuple[list[FoundStudy], list[LeftOut]]:
    """List the studies of a command line.

    Parameters
    ----------
    inputs
        Files, zips and folders. A ``str`` is the address of a study on a server, or a search for studies there.

    Returns
    -------
    tuple
        The studies, each once, and other images that were found.

    Raises
    ------
    BadInput
        A path that does not exist, or a folder without any image.
    """
    studies: list[FoundStudy] = []
    left_out: list[LeftOut] = []
    for each in inputs:
        if isinstance(each, Path):
            found = _expand(each, left_out)
            searched = len(found) > 1 or each.is_dir()
            root = Path(absolute(str(each)))
            studies += [FoundStudy(str(path), searched, _name(path, root)) for path in found]
        else:
            from apps.imaging.dicom.web import find_studies as on_server

            studies += [FoundStudy(address, name=address) for address in on_server(each)]
    once: dict[str, FoundStudy] = {}
    for study in studies:
        once.setdefault(absolute(study.input), study)
    return list(once.values()), left_out


def _name(path: Path, root: Path) -> str:
    return str(Path(root.name, Path(absolute(str(path))).relative_to(root)))


def _expand(path: Path, left_out: list[LeftOut]) -> list[Path]:
    if not path.exists():
        if zip_of(path):
            return [path]
        raise BadInput(f"{path}: no such file or folder", public="no such input")
    if path.is_file():
        return _in_zip(path, left_out) if is_zip(path) else [path]
    found = list(_below(path, left_out, set()))
    if not found:
        message = "no images: neither DICOM nor NIfTI nor another image in it, nor in its folders"
        also = "".join(f" ({one})" for one in left_out[:1])
        raise BadInput(f"{path}: {message}{also}", public="no images in folder")
    return found


def _below(path: Path, left_out: list[LeftOut], seen: set[tuple[int, int]]) -> Iterator[Path]:
    """Studies in a folder and in the folders below it, by name; each folder once, whatever links lead to it."""
    from apps.imaging.dicom.selection.files import holds_dicom

    try:
        place = path.stat()
        if (place.st_dev, place.st_ino) in seen:
            return
        seen.add((place.st_dev, place.st_ino))
        entries = sorted(path.iterdir())
        dicom = holds_dicom(path)
    except OSError as error:
        left_out.append(LeftOut(str(path), error.strerror or "not readable", "not readable"))
        return
    if dicom:
        yield path
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            yield from _below(entry, left_out, seen)
        elif is_zip(entry) and entry.is_file():
            yield from _in_zip(entry, left_out)
        elif stored.is_image(entry) and entry.is_file():
            yield entry
        elif entry.name.lower().endswith((*UNREAD, *stored.SUFFIXES)) and not _has_header(entry):
            what = "a link to nothing" if entry.is_symlink() and not entry.exists() else "a format that is not read"
            left_out.append(LeftOut(str(entry), f"{what}; {READ} are", "format"))


def _has_header(path: Path) -> bool:
    """True for the voxels of a pair of files, of which the other one is the study."""
    return path.suffix.lower() == ".img" and path.with_suffix(".hdr").exists()


def _in_zip(path: Path, left_out: list[LeftOut]) -> list[Path]:
    """The folders of a zip that are studies; the zip itself, if all of it is one series."""
    from apps.imaging.dicom.selection.files import series_by_folder

    try:
        series = series_by_folder(path)
    except BadInput:
        return [path]  # opening it will report the error
    if len(set(series.values())) < 2:
        return [path]
    return [path / folder for folder in sorted(series)]


def open_volume(
    path: Path, series: str | None = None, repair: frozenset[str] = frozenset(), volume: int | None = None
) -> Volume:
    """Read the headers of an input.

    Parameters
    ----------
    path
        An image in one of the formats of ``stored.SUFFIXES``, a zip, a folder with DICOM files in it, or such a folder
        inside a zip: ``export.zip/series``.
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
    if path.is_dir() or zip_of(path):
        from apps.imaging.dicom.series import open_series

        return open_series(path, series, repair, volume)
    if path.is_file() and not path.name.lower().endswith(stored.SUFFIXES):
        raise BadInput(f"{path}: neither {READ} nor a zip", public="unknown file type")
    if path.suffix.lower() in (".nrrd", ".nhdr", ".mha", ".mhd"):
        if volume not in (None, 1):
            raise BadInput(f"{path}: no volume {volume}; there is one", public="no such volume")
        return text_headers.open_text_header(path)
    return nifti.open_nifti(path, volume=volume, repair="header" in repair)


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


def of_several_channels(studies: Sequence[FoundStudy]) -> list[FoundStudy]:
    """Keep only the files of the first channel, ``CASE_0000.nii.gz``, for a model of several channels.

    Raises
    ------
    BadInput
        If there are none.
    """
    first = [study for study in studies if (match := stored.CHANNEL.search(study.input)) and int(match[1]) == 0]
    if not first:
        message = "a model of several channels takes CASE_0000.nii.gz and finds CASE_0001.nii.gz, ... in its folder"
        message += "; of a DICOM study, --channel NAME=SERIES names the series of each"
        raise BadInput(f"{studies[0].input}: {message}", public="no file of a first channel")
    return first


def of_series(
    places: Sequence[FoundStudy], wanted: Mapping[str, str], left_out: list[LeftOut]
) -> tuple[list[FoundStudy], dict[str, BadInput]]:
    """Choose the series of each DICOM study for the channels, whatever folders they are in.

    Parameters
    ----------
    wanted
        By channel, as ``choose_channels``.
    left_out
        Gets the inputs that are not DICOM.

    Returns
    -------
    tuple
        The studies, at the folders of their first channels; by input, why some cannot be used.
    """
    from apps.imaging.dicom.channels import choose_channels, series_by_study

    order = {place.input: number for number, place in enumerate(places)}
    by_path = {Path(place.input): place for place in places}
    found = [path for path in by_path if path.is_dir() or zip_of(path)]
    others = [str(path) for path in by_path if path not in found]
    left_out += [LeftOut(path, "not DICOM; --channel is for the series of a study", "not DICOM") for path in others]
    studies, unread = series_by_study(found)
    errors = {by_path[path].input: error for path, error in unread}
    chosen = [by_path[path] for path, _ in unread]
    for series in studies:
        try:
            channels = choose_channels(series, wanted)
        except BadInput as error:
            chosen.append(by_path[series[0].path])
            errors[chosen[-1].input] = error
        else:
            of_channels = tuple((one.path, one.uid) for one in channels)
            chosen.append(replace(by_path[channels[0].path], channels=of_channels))
    return sorted(chosen, key=lambda place: order[place.input]), errors


def further_channels(path: Path, count: int) -> list[Path]:
    """Paths of the second to the last of ``count`` channels, by the name of the first one's file.

    Examples
    --------
    >>> further_channels(Path("case_0000.nii.gz"), 2)
    [PosixPath('case_0001.nii.gz')]
    """
    return [path.with_name(stored.CHANNEL.sub(f"_{channel:04d}", path.name)) for channel in range(1, count)]


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
    found: str = ""
    """SHA-256 of the names of all studies that were found, those of other parts among them."""
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
            If there is no study, or none that can be used; a part may have none.
        """
        from apps.imaging.dicom.defects import is_no_volume
        from apps.imaging.dicom.web import Downloads

        output = options.output.absolute()
        scratch = next(path for path in (output, *output.parents) if path.is_dir())
        downloads, table = Downloads(scratch, options.series), read_table(options.output)
        places, left_out = find_studies(options.inputs)
        errors: Mapping[str, BadInput] = {}
        if options.channels:
            from apps.imaging.dicom.channels import named_channels

            places, errors = of_series(places, named_channels(model.channels, options.channels), left_out)
        elif len(model.channels) > 1:
            others = [place.input for place in places if not stored.CHANNEL.search(place.input)]
            left_out += [LeftOut(each, "no number of a channel (CASE_0000.nii.gz)", "no channel") for each in others]
            places = of_several_channels(places)
        names = case_names([place.input for place in places], several_channels=len(model.channels) > 1)
        part = options.part
        outcomes: list[tuple[FoundStudy, str, NetworkGrid | BadInput | Study]] = []
        for place in places:
            if part is not None and not part.holds(place.name):
                continue
            listing = downloads.listed(place.input)
            source = digest(listing) if listing else ""
            if source and (row := fetched_before(options.output, table, place.input, source)):
                outcomes.append((place, source, row))
                continue
            try:
                if place.input in errors:
                    raise errors[place.input]
                grid = _open_grid(place.channels or (downloads.path(place.input),), options, model, tile, overlap)
                outcomes.append((place, source, grid))
            except BadInput as error:
                if place.searched and is_no_volume(error):
                    left_out.append(LeftOut(place.input, str(error).removeprefix(f"{place.input}: "), error.public))
                else:
                    outcomes.append((place, source, error))
        if part is None:
            _refuse_unless_usable([outcome for _, _, outcome in outcomes], left_out)
        # A part numbers all studies, so that those of all parts can stand in one table.
        counted = numbered([place for place, _, _ in outcomes] if part is None else places, table)
        rows = {study.input: study for study in counted}
        studies, grids, finished = [], {}, {}
        for place, source, outcome in outcomes:
            study = replace(rows[place.input], source=source, case=names[place.input])
            studies.append(study)
            if isinstance(outcome, Study):
                finished[study.study] = outcome
            else:
                grids[study.study] = outcome
        found = hashlib.sha256("\0".join(place.name for place in places).encode("utf-8", "surrogateescape")).hexdigest()
        return cls(tuple(studies), grids, finished, tuple(left_out), found, downloads, scratch)

    def with_tiles(self, model: "ImagingModel", tile: Shape, overlap: float) -> "StudyInputs":
        """The same images under other tiles."""
        grids = {
            name: grid if isinstance(grid, BadInput) else grid.with_tiles(model, tile, overlap)
            for name, grid in self.grids.items()
        }
        return replace(self, grids=grids)


def _refuse_unless_usable(outcomes: Sequence[object], left_out: Sequence[LeftOut]) -> None:
    """Raise the first error if no study can be used."""
    errors = [outcome for outcome in outcomes if isinstance(outcome, BadInput)]
    if errors and len(errors) == len(outcomes):
        raise errors[0]
    if not outcomes:
        first = left_out[0]
        raise BadInput(f"{first.path}: {first.reason}", public=first.public)


def _open_grid(
    channels: Sequence[tuple[Path, str | None]],
    options: "InferOptions",
    model: "ImagingModel",
    tile: Shape,
    overlap: float,
) -> "NetworkGrid":
    """Read a study's headers: paths of its channels, or of the first, each with the series that is asked for."""
    from apps.imaging.dicom.derived import dicom_series
    from apps.imaging.inference.network_grid import NetworkGrid, same_grid

    (path, series), *others = channels
    volume = open_volume(path, series, options.repair, options.volume)
    if options.suv:
        from apps.imaging.dicom.suv import in_suv

        volume = in_suv(volume)
    if any(kind.startswith("dicom") for kind in options.output_types):
        dicom_series(volume, path)
    others = others or [(other, None) for other in further_channels(path, len(model.channels))]
    further = [open_volume(other, chosen, options.repair) for other, chosen in others]
    for (other, _), channel in zip(others, further, strict=True):
        same_grid(volume, channel, other, path)
    grid = NetworkGrid.of(volume, model, tile=tile, overlap=overlap, further=further)
    grid.check(path)
    return grid
