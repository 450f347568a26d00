"""The files of a model folder, held open: a server reads the same ones until it changes to another model.

A folder that is updated in place is another one from one moment to the next, and its old files have no names any more.
Here they have names that lead to the open files.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import weakref
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from common.errors import BadInput


class Pinned:
    """Open files of a folder, and a folder of links to them.

    Parameters
    ----------
    directory
        The folder.
    names
        Names of its files.

    Raises
    ------
    BadInput
        A file cannot be opened.
    """

    def __init__(self, directory: Path, names: Iterable[str]) -> None:
        self.directory = self.path = directory
        files: dict[str, int] = {}
        try:
            for name in names:
                files[name] = os.open(directory / name, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            _close(list(files.values()), None, 0)
            raise BadInput(f"{directory}: {error.strerror}", public="model incomplete") from None
        folder = None
        with suppress(OSError):  # nowhere to write: the files are read by their own names
            folder = tempfile.mkdtemp(prefix="peakline-serve-")
            for name, file in files.items():
                os.symlink(f"/proc/self/fd/{file}", os.path.join(folder, name))
            self.path = Path(folder)
        self._close = weakref.finalize(self, _close, list(files.values()), folder, os.getpid())

    def close(self) -> None:
        """Close the files; what was opened by the links stays open."""
        self._close()

    def named(self, error: BadInput) -> BadInput:
        """The same error with the folder's own name."""
        return BadInput(str(error).replace(str(self.path), str(self.directory)), public=error.public)


def _close(files: list[int], folder: str | None, owner: int) -> None:
    """Close files; the folder of links is removed by the process that made it, since its forks use it too."""
    for file in files:
        with suppress(OSError):
            os.close(file)
    if folder is not None and os.getpid() == owner:
        shutil.rmtree(folder, ignore_errors=True)
