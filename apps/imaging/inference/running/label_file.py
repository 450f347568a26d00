"""The label map that several networks share, on disk: each adds its classes to it, plane by plane."""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import numpy.typing as npt

from apps.imaging.inference.labeling.planes import Labels
from apps.imaging.volumes.volume import Shape
from common.files import write_json

LABEL_BYTES = 17
"""Bytes for each label while a table is made: the label, what it has of a bit, whether that is any."""


class LabelFile:
    """Labels of a volume, in planes (x, y). What is nowhere written is background.

    Attributes
    ----------
    shape
        Voxels along x, y, z.
    done
        Number of networks whose labels are complete in it.
    """

    def __init__(self, path: Path, shape: Shape, dtype: np.dtype[np.unsignedinteger], key: str) -> None:
        self._path, self._note, self._key = path, path.with_name(f"{path.name}.json"), key
        self.shape, self._dtype = shape, dtype
        self._handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        size = shape[0] * shape[1] * shape[2] * dtype.itemsize
        self.done = _done(self._note, key) if os.fstat(self._handle).st_size == size else 0
        if not self.done:
            os.ftruncate(self._handle, 0)
            os.ftruncate(self._handle, size)

    def add(
        self,
        slabs: Iterator[Labels],
        values: Mapping[int, int],
        source: np.dtype[np.unsignedinteger],
        *,
        bits: bool = False,
    ) -> None:
        """Write the classes of the next network over what is there.

        The same labels can be written again: a network whose labels are in the file in part begins anew.

        Parameters
        ----------
        slabs
            Label planes, (x, y, k), in order.
        values
            Label of the network -> label here; voxels of other labels stay as they are.
        source
            Data type of the network's labels.
        bits
            True if a label of the network has a bit for each class; the last class of the network that is found stays.
        """
        table = label_table(values, source, self._dtype, bits=bits)
        number = 0
        for slab in slabs:
            for k in range(slab.shape[2]):
                found = table[slab[..., k]]
                plane = self.plane(number)
                np.copyto(plane, found, where=found != 0)
                os.pwrite(self._handle, plane.data, number * plane.nbytes)
                number += 1
        os.fsync(self._handle)
        self.done += 1
        write_json(self._note, {"key": self._key, "done": self.done})

    def planes(self) -> Iterator[Labels]:
        """Yield the planes, (x, y, 1), in order."""
        for number in range(self.shape[2]):
            yield self.plane(number)[..., None]

    def plane(self, number: int) -> Labels:
        """Read one plane, (x, y)."""
        plane = np.empty(self.shape[:2], self._dtype)
        os.preadv(self._handle, [plane.data], number * plane.nbytes)
        return plane

    def close(self, *, remove: bool) -> None:
        """Close the file; ``remove`` it, or leave it to the next run."""
        os.close(self._handle)
        for path in (self._path, self._note) if remove else ():
            path.unlink(missing_ok=True)


@contextmanager
def label_file(path: Path, shape: Shape, dtype: np.dtype[np.unsignedinteger], key: str) -> Iterator[LabelFile]:
    """Open the label map of a study; it is removed at the end, and stays if the block is interrupted.

    Parameters
    ----------
    path
        The file; a further one beside it says how far it is.
    key
        Digest of the image and of all that decides its labels: a file of another one begins anew.
    """
    file, remove = LabelFile(path, shape, dtype, key), True
    try:
        yield file
    except KeyboardInterrupt:
        remove = False
        raise
    finally:
        file.close(remove=remove)


def label_table(
    values: Mapping[int, int],
    source: np.dtype[np.unsignedinteger],
    target: np.dtype[np.unsignedinteger],
    *,
    bits: bool = False,
) -> npt.NDArray[np.unsignedinteger]:
    """Table from labels of a network to those of the map, as for ``LabelFile.add``; 0 for all that the map has not."""
    labels = np.arange(np.iinfo(source).max + 1)
    table = np.zeros(len(labels), target)
    for value in sorted(values):
        table[(labels & value) != 0 if bits else labels == value] = values[value]
    return table


def merging_bytes(shape: Shape, itemsize: int, source: int) -> int:
    """Bytes of a plane that is merged: as it was, as it is found, where that is, and the table.

    Parameters
    ----------
    itemsize, source
        Bytes of a label here and of one of the network.
    """
    return shape[0] * shape[1] * (2 * itemsize + 1) + ((itemsize + LABEL_BYTES) << 8 * source)


def _done(note: Path, key: str) -> int:
    with suppress(OSError, ValueError, KeyError, TypeError):
        content = json.loads(note.read_text("utf-8"))
        return int(content["done"]) if content["key"] == key else 0
    return 0
