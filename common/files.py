"""Atomic outputs, locks on output folders, and scratch folders.

An output is written to a temporary file in the same folder, synced, and renamed.
"""

import errno
import fcntl
import hashlib
import json
import os
import shutil
import time
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from common.errors import UsageError, lacks_room

_HASH_BLOCK = 1 << 20
_LARGE = 64 << 20
"""Free bytes from which a lack of room is a limit of the file's size or a quota rather than a full disk."""
PATIENCE = 2.0
"""Seconds to wait for a lock: children of a killed command need a moment to end."""


def _temporary(path: Path) -> Path:
    """Return a hidden name in the same folder, hence on the same file system, so that the final rename is atomic."""
    return path.with_name(f".{path.name}.{os.getpid()}.part")


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def no_room(error: BaseException, place: Path | None = None) -> str | None:
    """A line that says where room for a file was missing, if that is why writing failed; else ``None``.

    Parameters
    ----------
    error
        What was raised.
    place
        Where the file was written, if the error does not say so.
    """
    if not isinstance(error, OSError) or not lacks_room(error):
        return None
    named = isinstance(error.filename, str | bytes) and error.filename
    path = Path(os.fsdecode(error.filename)) if named else place
    if path is None:
        return "no space left where the output goes"
    folder = next((one for one in (path, *path.absolute().parents) if one.is_dir()), Path("/"))
    state = os.statvfs(folder)
    free = state.f_bavail * state.f_frsize
    if error.errno == errno.EFBIG or free > _LARGE:
        return f"no room to write on in {folder}: the size of files there, or what you may store, is limited"
    return f"no space left on the disk of {folder} ({free >> 10:,} KiB free): what was written there is removed"


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path. It is renamed to ``path`` if the block succeeds, and removed if it raises.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with atomic_file(Path(folder) / "a.txt") as temporary:
    ...         _ = temporary.write_text("complete")
    ...     (Path(folder) / "a.txt").read_text()
    'complete'
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path)
    try:
        yield temporary
        _sync(temporary)
        temporary.replace(path)
        _sync(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_at(descriptor: int, view: memoryview, offset: int) -> None:
    """Write all bytes of ``view`` at ``offset`` of an open file."""
    while view:
        count = os.pwrite(descriptor, view, offset)
        view, offset = view[count:], offset + count


def read_at(descriptor: int, view: memoryview, offset: int) -> None:
    """Fill ``view`` with the bytes at ``offset`` of an open file.

    Raises
    ------
    OSError
        The file is shorter than that.
    """
    while view:
        count = os.preadv(descriptor, [view], offset)
        if not count:
            raise OSError("the scratch file ends early")
        view, offset = view[count:], offset + count


def write_text(path: Path, text: str) -> None:
    """Write a small text file atomically."""
    with atomic_file(path) as temporary:
        # Names of files may have bytes that are not UTF-8; what replaces them is JSON's own notation.
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON object atomically, indented, in UTF-8."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


@contextmanager
def sole_writer(directory: Path) -> Iterator[None]:
    """Lock a directory, which is created if it does not exist, against other commands.

    The kernel releases the lock when the process ends, however that ends. On a file system without locks there is none.

    Raises
    ------
    UsageError
        The directory cannot be opened, or another process has locked it.
    """
    made = not directory.exists()
    try:
        directory.mkdir(parents=True, exist_ok=True)
        handle = os.open(directory, os.O_RDONLY)
    except OSError as error:
        raise UsageError(f"{directory}: {error.strerror}") from None
    try:
        if not _locked(handle):
            raise UsageError(f"{directory}: another command is writing there; wait for it, or choose another folder")
        yield
    finally:
        os.close(handle)
        if made:
            with suppress(OSError):
                directory.rmdir()  # nothing was written


def _locked(handle: int) -> bool:
    """Lock an open file; returns False if another process has still locked it after ``PATIENCE`` seconds."""
    until = time.monotonic() + PATIENCE
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > until:
                return False
            time.sleep(0.05)
        except OSError:
            return True
        else:
            return True


@contextmanager
def scratch_directory(parent: Path, name: str) -> Iterator[Path]:
    """Yield a private directory below ``parent``, which is removed at the end of the block."""
    path = _scratch(parent, name)
    path.mkdir(mode=0o700, parents=True)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


class Workspace:
    """A private directory below ``parent``, removed when the process ends, unless it is killed.

    Directories that killed processes left under the same name are removed first.
    """

    def __init__(self, parent: Path, name: str) -> None:
        for old in parent.glob(f".{name}.*.scratch"):
            if not _alive(old.name.split(".")[-2]):
                shutil.rmtree(old, ignore_errors=True)
        self.path = _scratch(parent, name)
        self.path.mkdir(mode=0o700)
        self._remove = weakref.finalize(self, shutil.rmtree, self.path, ignore_errors=True)

    def close(self) -> None:
        """Remove the directory now."""
        self._remove()


def _scratch(parent: Path, name: str) -> Path:
    return parent / f".{name}.{os.getpid()}.scratch"


def _alive(pid: str) -> bool:
    """Return True if the process runs; a zombie has no command line any more."""
    with suppress(OSError):
        return pid.isdigit() and bool(Path(f"/proc/{pid}/cmdline").read_bytes())
    return False


def digest(path: Path, algorithm: str) -> str:
    """Return the hex digest of a file by an algorithm of ``hashlib``, reading blocks of one MiB."""
    running = hashlib.new(algorithm)
    with path.open("rb") as stream:
        while block := stream.read(_HASH_BLOCK):
            running.update(block)
    return running.hexdigest()


def sha256(path: Path) -> str:
    """Return the hex SHA-256 of a file."""
    return digest(path, "sha256")
