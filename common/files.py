"""Outputs that appear whole or not at all: written beside their place, synced, renamed."""

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

from common.errors import UsageError

_HASH_BLOCK = 1 << 20
PATIENCE = 2.0
"""Seconds: what a killed command started needs a moment to end."""


def _beside(path: Path) -> Path:
    """A hidden neighbour on the same file system, so that the final rename is atomic."""
    return path.with_name(f".{path.name}.{os.getpid()}.part")


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path; when the block ends well it becomes ``path``, otherwise it is removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = _beside(path)
    try:
        yield part
        _sync(part)
        part.replace(path)
        _sync(path.parent)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Write a small text file atomically."""
    with atomic_file(path) as part:
        part.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON object atomically, indented, in UTF-8."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


@contextmanager
def sole_writer(directory: Path) -> Iterator[None]:
    """Hold a directory, which is made if need be, against other processes that write into it.

    The kernel lets go of it when the process ends, however it ends. A file system without locks is written to without.

    Raises
    ------
    UsageError
        If another process holds it.
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
    """Lock an open file; ``False`` if another process still holds it after a while."""
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
    """A private directory below ``parent`` that is gone when the block ends, however it ends."""
    path = _scratch(parent, name)
    path.mkdir(mode=0o700, parents=True)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


class Workspace:
    """A private directory below ``parent``, gone when the process ends in any way but a kill.

    Those that killed processes left under the same name are removed first.
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
    """Whether the process runs; one that waits to be reaped has no command line any more."""
    with suppress(OSError):
        return pid.isdigit() and bool(Path(f"/proc/{pid}/cmdline").read_bytes())
    return False


def digest(path: Path, algorithm: str) -> str:
    """Hex digest of a file by any algorithm of ``hashlib``, read in blocks of one MiB."""
    running = hashlib.new(algorithm)
    with path.open("rb") as stream:
        while block := stream.read(_HASH_BLOCK):
            running.update(block)
    return running.hexdigest()


def sha256(path: Path) -> str:
    """Hex SHA-256 of a file."""
    return digest(path, "sha256")
