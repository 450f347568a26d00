"""The files of a study: in a folder, or in a zip that is read in place. Nothing is unpacked, so nothing can escape."""

import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO, Protocol, cast

from common.errors import BadInput

MAX_MEMBERS = 100_000
"""Files in a zip; its table of contents is kept in memory (about 700 bytes each)."""
SEEK_BYTES = 1 << 16
"""Bytes that are unpacked at once to move forward in a member; ``zipfile`` takes 16 MiB."""


class Container(Protocol):
    """Files by name."""

    path: Path

    def names(self) -> Sequence[str]:
        """List the files in a fixed order."""
        ...

    def size(self, name: str) -> int:
        """Read a file's unpacked size, in bytes, from the directory."""
        ...

    def open(self, name: str) -> BinaryIO:
        """Open a seekable stream of bytes."""
        ...


class Folder:
    """The files directly in a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def names(self) -> Sequence[str]:
        """List the files by name, without hidden ones."""
        return sorted(entry.name for entry in self.path.iterdir() if entry.is_file() and entry.name[0] != ".")

    def size(self, name: str) -> int:
        """Read a file's size from the file system."""
        return (self.path / name).stat().st_size

    def open(self, name: str) -> BinaryIO:
        """Open a file of the file system."""
        return (self.path / name).open("rb")


class ZipArchive:
    """The files of a zip, whatever folders they are in. A member never yields more bytes than its header says.

    Parameters
    ----------
    folder
        Only files directly in this folder of the zip; ``None``: all.

    Raises
    ------
    BadInput
        If it is damaged, encrypted, or has more than ``MAX_MEMBERS`` files.
    """

    def __init__(self, path: Path, folder: str | None = None) -> None:
        self.path = path
        try:
            self._zip = zipfile.ZipFile(path)
        except (zipfile.BadZipFile, OSError, NotImplementedError) as error:
            raise BadInput(f"{path}: not a readable zip file ({error})", public="zip damaged") from None
        self._members = {info.filename: info for info in self._zip.infolist() if _is_plain(info)}
        if len(self._members) > MAX_MEMBERS:
            raise BadInput(f"{path}: more than {MAX_MEMBERS} files in it", public="zip has too many files")
        if folder is not None:
            self._members = {name: info for name, info in self._members.items() if folder_of(name) == folder}
        if any(info.flag_bits & 1 for info in self._members.values()):
            raise BadInput(f"{path}: encrypted zip files are not read", public="zip encrypted")

    def names(self) -> Sequence[str]:
        """List the files by name, without folders and hidden files."""
        return sorted(self._members)

    def size(self, name: str) -> int:
        """Read a file's size from the zip's directory."""
        return self._members[name].file_size

    def open(self, name: str) -> BinaryIO:
        """Open a stream that unpacks as it is read."""
        stream: Any = self._zip.open(self._members[name])
        stream.MAX_SEEK_READ = SEEK_BYTES
        return cast(BinaryIO, stream)


def _is_plain(info: zipfile.ZipInfo) -> bool:
    name = info.filename.rsplit("/", 1)[-1]
    return not info.is_dir() and not name.startswith(".") and "__MACOSX" not in info.filename


def folder_of(name: str) -> str:
    """The folder of a zip's member; empty for one at the top."""
    return name.rpartition("/")[0]


def zip_of(path: Path) -> tuple[Path, str | None] | None:
    """The zip that a path leads into, with the folder inside it; ``None`` for any other path.

    The folder is ``None`` for the zip itself.
    """
    for one in (path, *path.parents):
        if is_zip(one) and one.is_file():
            return one, None if one == path else path.relative_to(one).as_posix()
    return None


def is_zip(path: Path) -> bool:
    """Tell a zip by its name."""
    return path.suffix.lower() == ".zip"
