"""A scratch file for arrays that are written once and read once; freed space is reused."""

import os
import tempfile
from collections import defaultdict
from collections.abc import Hashable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from common.files import read_at, write_at

Array = npt.NDArray[np.float32]


class SpillFile:
    """A store for float32 arrays on disk. The file has no name, so it disappears with the process however that ends.

    Parameters
    ----------
    directory
        A directory on a disk, not on a memory file system.
    """

    def __init__(self, directory: Path) -> None:
        self._file = tempfile.TemporaryFile(dir=directory, buffering=0)  # noqa: SIM115
        self._slots: dict[Hashable, tuple[int, int]] = {}
        self._free: defaultdict[int, list[int]] = defaultdict(list)
        self.size = 0

    def close(self) -> None:
        """Close the file, which frees the disk space."""
        self._file.close()

    def write(self, key: Hashable, array: Array) -> None:
        """Write a C-contiguous array under ``key``."""
        length = array.nbytes
        free = self._free[length]
        offset = free.pop() if free else self.size
        self.size = max(self.size, offset + length)
        self._slots[key] = offset, length
        write_at(self._file.fileno(), array.reshape(-1).view(np.uint8).data, offset)

    def read(self, key: Hashable, shape: tuple[int, ...]) -> Array:
        """Read the array ``key``, free its slot, and drop its pages from the page cache.

        Raises
        ------
        KeyError
            No such array.
        OSError
            The file is shorter than it should be.
        """
        offset, length = self._slots.pop(key)
        self._free[length].append(offset)
        array = np.empty(shape, np.float32)
        read_at(self._file.fileno(), array.reshape(-1).view(np.uint8).data, offset)
        os.posix_fadvise(self._file.fileno(), offset, length, os.POSIX_FADV_DONTNEED)
        return array
