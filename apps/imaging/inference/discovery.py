"""The studies that the inputs of a command line hold, and the files that are left out.

A NIfTI file, a folder with DICOM files directly in it, and such a folder inside a zip are a study each. Every folder
below an input is searched, whatever else is in it.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from apps.imaging.volumes import nifti
from apps.imaging.volumes.archive import is_zip, zip_of
from apps.imaging.volumes.volume import Volume
from common.errors import BadInput
from common.terminal import escaped

UNREAD = (".nrrd", ".nhdr", ".mha", ".mhd", ".img", ".hdr", ".mgz", ".mgh", ".mnc", ".nii.bz2", ".nii.zst", ".nii.xz")
"""Endings of images that are not read; a search names such files."""


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A file or folder that a search found and that is no study."""

    path: str
    reason: str
    public: str
    """The reason without paths or identifiers."""

    def __str__(self) -> str:
        return escaped(f"left out: {self.path}: {self.reason}")


@dataclass(frozen=True, slots=True)
class FoundStudy:
    """A study's place."""

    input: str
    """The user's path, or one below it; or an address."""
    searched: bool = False
    """True if a search found it among others; it is left out if it turns out to be no volume."""


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
            studies += [FoundStudy(str(path), searched) for path in found]
        else:
            from apps.imaging.dicom.web import find_studies as on_server

            studies += map(FoundStudy, on_server(each))
    once: dict[str, FoundStudy] = {}
    for study in studies:
        once.setdefault(absolute(study.input), study)
    return list(once.values()), left_out


def _expand(path: Path, left_out: list[LeftOut]) -> list[Path]:
    if not path.exists():
        if zip_of(path):
            return [path]
        raise BadInput(f"{path}: no such file or folder", public="no such input")
    if path.is_file():
        return _in_zip(path, left_out) if is_zip(path) else [path]
    found = list(_below(path, left_out, set()))
    if not found:
        message = "no images: neither DICOM nor NIfTI in it, nor in its folders"
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
        elif nifti.is_nifti(entry) and entry.is_file():
            yield entry
        elif entry.name.lower().endswith((*UNREAD, *nifti.SUFFIXES)):
            what = "a link to nothing" if entry.is_symlink() and not entry.exists() else "a format that is not read"
            left_out.append(LeftOut(str(entry), f"{what}; NIfTI and DICOM are read", "format"))


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
        A NIfTI file, a zip, a folder with DICOM files in it, or such a folder inside a zip: ``export.zip/series``.
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
    if path.is_file() and not nifti.is_nifti(path):
        raise BadInput(f"{path}: neither .nii, .nii.gz, .zip nor a DICOM folder", public="unknown file type")
    return nifti.open_nifti(path, volume=volume, repair="header" in repair)


def absolute(source: str) -> str:
    """An input as ``studies.csv`` names it: addresses as they are, paths from the root."""
    return source if source.startswith(("http://", "https://")) else os.path.abspath(source)
