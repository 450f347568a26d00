"""Where a study's files lie: a folder, or a zip that is read in place. Nothing is unpacked, so nothing can escape."""

import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, Protocol, cast

from common.errors import BadInput

MAX_MEMBERS = 100_000
"""Files in a zip; its table of contents is held in memory (about 700 bytes each)."""


class Container(Protocol):
    """Files by name."""

    path: Path

    def names(self) -> Sequence[str]:
        """In a fixed order."""
        ...

    def size(self, name: str) -> int:
        """Bytes of a file, unpacked, as its directory says."""
        ...

    def open(self, name: str) -> BinaryIO:
        """A seekable stream of bytes."""
        ...


class Folder:
    """The files directly in a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def names(self) -> Sequence[str]:
        """Sorted, without hidden files."""
        return sorted(entry.name for entry in self.path.iterdir() if entry.is_file() and entry.name[0] != ".")

    def size(self, name: str) -> int:
        """From the file system."""
        return (self.path / name).stat().st_size

    def open(self, name: str) -> BinaryIO:
        """From the file system."""
        return (self.path / name).open("rb")


class ZipArchive:
    """The files of a zip, in whatever folders inside. A member never yields more bytes than its header says."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._zip = zipfile.ZipFile(path)
        except (zipfile.BadZipFile, OSError, NotImplementedError) as error:
            raise BadInput(f"{path}: not a readable zip file ({error})", public="zip damaged") from None
        self._members = {info.filename: info for info in self._zip.infolist() if _is_plain(info)}
        if len(self._members) > MAX_MEMBERS:
            raise BadInput(f"{path}: more than {MAX_MEMBERS} files in it", public="zip has too many files")
        if any(info.flag_bits & 1 for info in self._members.values()):
            raise BadInput(f"{path}: encrypted zip files are not read", public="zip encrypted")

    def names(self) -> Sequence[str]:
        """Sorted."""
        return sorted(self._members)

    def size(self, name: str) -> int:
        """From the zip's directory."""
        return self._members[name].file_size

    def open(self, name: str) -> BinaryIO:
        """Unpacked as it is read."""
        return cast(BinaryIO, self._zip.open(self._members[name]))


def _is_plain(info: zipfile.ZipInfo) -> bool:
    name = info.filename.rsplit("/", 1)[-1]
    return not info.is_dir() and not name.startswith(".") and "__MACOSX" not in info.filename


def is_zip(path: Path) -> bool:
    """By its name."""
    return path.suffix.lower() == ".zip"
