"""The DICOM files of a folder or zip; a file that should be one and is not is never left out silently."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from apps.imaging.dicom.defects import Defect, Refusal
from apps.imaging.dicom.headers import HeaderReader, is_dicom
from apps.imaging.volumes.archive import Container, Folder, ZipArchive, folder_of, zip_of
from common.errors import BadInput

ENDINGS = (".dcm", ".ima")
"""Endings of files that are DICOM, or damaged."""


def open_container(path: Path) -> Container:
    """Open the files of a folder, of a zip, or of a folder inside a zip."""
    inside = zip_of(path)
    return ZipArchive(*inside) if inside and not path.is_dir() else Folder(path)


def dicom_files(container: Container) -> list[str]:
    """Names of a container's DICOM files.

    Raises
    ------
    Refusal
        For a file that is named like them and is empty, cut off or something else: a slice would be absent.
    """
    names = container.names()
    dicom = [name for name in names if is_dicom(container, name)]
    forms = {_form(name) for name in dicom}
    for name in sorted({*names} - {*dicom}):
        if name.lower().endswith(ENDINGS) or _form(name) in forms:
            what = "not a DICOM file, though it is named like one" if container.size(name) else "the file is empty"
            message = f"{what}; a slice may be absent. Fetch it again, or remove it"
            raise Refusal(container.path / name, Defect.TRUNCATED, message)
    return dicom


def _form(name: str) -> str:
    """A file's name without its numbers, which the slices of a series have in common.

    Examples
    --------
    >>> _form("IM0007") == _form("IM0012"), _form("IM0007") == _form("notes.txt")
    (True, False)
    """
    return re.sub(r"\d+", "0", name)


def holds_dicom(path: Path) -> bool:
    """True if there is a DICOM file directly in a folder, or one that should be."""
    folder = Folder(path)
    return any(name.lower().endswith(ENDINGS) or is_dicom(folder, name) for name in folder.names())


def series_by_folder(path: Path) -> dict[str, str]:
    """Folders of a zip with DICOM files in them, each with the series of its first file.

    Raises
    ------
    BadInput
        If the zip cannot be read.
    """
    archive = ZipArchive(path)
    found: dict[str, str] = {}
    for name in archive.names():
        if folder_of(name) not in found and is_dicom(archive, name):
            found[folder_of(name)] = next(_series(archive, name), name)
    return found


def _series(archive: ZipArchive, name: str) -> Iterator[str]:
    try:
        frames: Sequence[object] = HeaderReader(archive).frames(name)
    except BadInput:
        return
    yield from (frame.attributes.series for frame in frames[:1])  # type: ignore[attr-defined]
