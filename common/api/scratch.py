"""Files that a Python caller and the commands it runs hand to each other, in a private folder that does not stay."""

import fcntl
import os
import shutil
import tempfile
import weakref
from contextlib import suppress
from pathlib import Path

PREFIX = "peakline-"
LOCK = ".lock"
"""A file in the folder that its owner keeps locked. The kernel lets go of it when the owner ends, however it ends."""


class Scratch:
    """A folder below ``tempfile.gettempdir()`` that only this user can read.

    It is removed by ``close``, at the end of a ``with`` block, when the object is collected, and when the interpreter
    ends. The folder of a killed process is removed when the next folder is made.
    """

    def __init__(self) -> None:
        base = Path(tempfile.gettempdir())
        _remove_abandoned(base)
        self.path = Path(tempfile.mkdtemp(prefix=PREFIX, dir=base))
        handle = _locked(self.path / f"{LOCK}.new")
        # Renamed when it is locked: nobody sees a lock that nobody holds, unless its owner has ended.
        (self.path / f"{LOCK}.new").rename(self.path / LOCK)
        self._remove = weakref.finalize(self, _remove, self.path, handle, os.getpid())

    def close(self) -> None:
        """Remove the folder now."""
        self._remove()

    def __enter__(self) -> Path:
        return self.path

    def __exit__(self, *error: object) -> None:
        self.close()


def _locked(path: Path) -> int | None:
    """A new locked file; ``None`` where the file system has no locks."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        return None
    return handle


def _remove(path: Path, handle: int | None, owner: int) -> None:
    if os.getpid() != owner:
        return  # a fork of the owner has ended, not the owner
    shutil.rmtree(path, ignore_errors=True)
    if handle is not None:
        os.close(handle)


def _remove_abandoned(base: Path) -> None:
    """Remove the folders of this user whose owners have ended."""
    for lock in base.glob(f"{PREFIX}*/{LOCK}"):
        with suppress(OSError):
            if lock.stat().st_uid != os.getuid():
                continue
            handle = os.open(lock, os.O_RDWR | os.O_CLOEXEC)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)  # raises while the owner lives
                shutil.rmtree(lock.parent, ignore_errors=True)
            finally:
                os.close(handle)
