"""Prepared cases as files of compressed chunks, for data sets larger than memory and nearly larger than the disk.

A file is a line of JSON, the chunks' places and check sums, and the chunks, which Blosc compresses without loss (bytes
of the same weight together, then Zstandard). A patch reads the chunks that it touches. A later run of the same training
finds the cases as they were prepared.

The library is ``blosc``, which adds 2 MiB to a training; with ``zarr`` it would be 10, with ``blosc2`` 21.
"""

import hashlib
import json
import os
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from apps.imaging.training.data.dataset import Dataset, LabelledCase
from apps.imaging.volumes.volume import Shape
from common.errors import BadInput
from common.files import read_at, write_at
from common.memory.process import libraries

VERSION = 1
"""Of the files' form; those of another version are prepared again."""
EDGE = 32
"""Voxels of a chunk along each axis. (Edges of 64 take up to 6 % fewer bytes; a patch then reads twice the voxels.)"""
LEVEL = 3
"""Zstandard's level. (5 takes half as long again to write, for less than 1 % of the bytes.)"""
CHUNK_BYTES = 3 * 4 * EDGE**3
"""Bytes of a chunk while it is written or read, with its compressed form and a copy."""
LIBRARY_BYTES = 3 << 20
"""The library with its buffers (measured 2.1 MiB, on one thread)."""
SUFFIX = ".case"
_HEAD = 1 << 13
"""Bytes in front of the index: the line of JSON, filled up."""
_ROW = np.dtype([("end", "<i8"), ("crc", "<u4"), ("unused", "<u4")])
"""Entry of the index: where a chunk ends in the file, and the check sum of its compressed bytes."""

Box = tuple[slice, ...]


@dataclass(frozen=True, slots=True)
class Header:
    """The line of JSON of a file."""

    key: str
    """Digest of all that decides what was prepared (``case_key``)."""
    shape: Shape
    channels: int
    store: str
    """Type of the image's numbers."""
    spacing: tuple[float, float, float]
    points: Sequence[Sequence[int]]
    """Places of some labelled voxels."""
    size: int
    """Bytes of the file."""
    version: int = VERSION

    @property
    def grid(self) -> Shape:
        """Chunks along each axis."""
        x, y, z = (-(-size // EDGE) for size in self.shape)
        return x, y, z


def case_key(case: LabelledCase, dataset: Dataset, chosen: Sequence[Any]) -> str:
    """Digest of a case's files, of how they are read, and of other choices (as JSON); no voxel is read."""
    files = []
    for volume in (*case.images, case.label):
        path = volume.data or volume.path
        state = path.stat()
        files.append([str(path.resolve()), state.st_size, state.st_mtime_ns, volume.number, volume.affine.tolist()])
    data = [dataset.spacing, list(dataset.labels), dataset.ignored, dataset.table.sha256 if dataset.table else ""]
    return hashlib.sha256(json.dumps([files, data, chosen], sort_keys=True).encode()).hexdigest()


def _library() -> Any:
    """Blosc on one thread; it comes after the warm-up, as a term of the plan has it."""
    import blosc

    libraries.priced("blosc")
    blosc.set_nthreads(1)
    return blosc


def write_case(path: Path, header: Header, image: npt.NDArray[np.floating], classes: npt.NDArray[np.uint8]) -> None:
    """Write a case beside ``path``, and rename it.

    Parameters
    ----------
    header
        Its ``size`` does not matter.
    image, classes
        (channels, x, y, z) in the header's ``store``, and (x, y, z).

    Raises
    ------
    OSError
        The disk is full; nothing of the case stays.
    """
    blosc = _library()
    grid = header.grid
    index = np.zeros(((header.channels + 1) * prod(grid)), _ROW)
    temporary = path.with_suffix(".part")
    place, row = _HEAD + index.nbytes, 0
    try:
        with temporary.open("wb", buffering=0) as stream:
            for array in (*image, classes):
                for box in _boxes(header.shape):
                    chunk = np.ascontiguousarray(array[box])
                    packed = blosc.compress_ptr(
                        chunk.ctypes.data, chunk.size, chunk.itemsize, LEVEL, blosc.SHUFFLE, "zstd"
                    )
                    write_at(stream.fileno(), memoryview(packed), place)
                    place += len(packed)
                    index[row] = place, zlib.crc32(packed), 0
                    row += 1
            line = json.dumps(asdict(header) | {"size": place}).encode()
            assert len(line) < _HEAD
            write_at(stream.fileno(), memoryview(line.ljust(_HEAD)), 0)
            write_at(stream.fileno(), index.view(np.uint8).data, _HEAD)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def read_header(path: Path) -> Header | None:
    """The header of a whole file of this version; ``None`` if there is another version, or a part of a file."""
    try:
        with path.open("rb") as stream:
            fields = json.loads(stream.read(_HEAD))
        if fields["version"] != VERSION or fields["size"] != path.stat().st_size:
            return None
        x, y, z = fields["shape"]
        return Header(**{**fields, "shape": (x, y, z), "spacing": tuple(fields["spacing"])})
    except (OSError, ValueError, KeyError, TypeError):
        return None


def read_chunks(path: Path, header: Header, channel: int, box: Box, out: npt.NDArray[Any]) -> None:
    """Read a region of a channel, or of the classes, which are the last channel.

    Raises
    ------
    BadInput
        The file is shorter than it was, or a chunk is not what was written.
    """
    blosc = _library()
    chunks = prod(header.grid)
    index = np.empty((header.channels + 1) * chunks + 1, _ROW)  # one in front: where the first chunk begins
    index[0] = _HEAD + (len(index) - 1) * _ROW.itemsize, 0, 0
    try:
        with path.open("rb", buffering=0) as stream:
            file = stream.fileno()
            read_at(file, index[1:].view(np.uint8).data, _HEAD)
            for cell in product(*(range(part.start // EDGE, -(-part.stop // EDGE)) for part in box)):
                row = channel * chunks + int(np.ravel_multi_index(cell, header.grid))
                start, end = int(index["end"][row]), int(index["end"][row + 1])
                packed = bytearray(max(0, min(end, header.size) - start))
                read_at(file, memoryview(packed), start)
                if zlib.crc32(packed) != index["crc"][row + 1]:
                    raise OSError("a chunk is damaged")
                corner = [number * EDGE for number in cell]
                edges = [min(EDGE, size - low) for size, low in zip(header.shape, corner, strict=True)]
                _copy(np.frombuffer(blosc.decompress(packed), out.dtype).reshape(edges), corner, box, out)
    except (OSError, ValueError, blosc.blosc_extension.error):
        raise BadInput(
            f"{path}: a prepared case is damaged; remove {path.parent} and give the same command again",
            public="prepared case damaged",
        ) from None


def _copy(chunk: npt.NDArray[Any], corner: Sequence[int], box: Box, out: npt.NDArray[Any]) -> None:
    """Copy what a chunk has of a region."""
    source, target = [], []
    for low, size, part in zip(corner, chunk.shape, box, strict=True):
        first, last = max(low, part.start), min(low + size, part.stop)
        source.append(slice(first - low, last - low))
        target.append(slice(first - part.start, last - part.start))
    out[tuple(target)] = chunk[tuple(source)]


def _boxes(shape: Shape) -> Iterator[Box]:
    """The chunks of a volume in C order, each as slices."""
    for corner in product(*(range(0, size, EDGE) for size in shape)):
        yield tuple(slice(low, low + EDGE) for low in corner)


def reading_bytes(shape: Shape, channels: int) -> int:
    """Bytes of ``write_case`` and ``read_chunks`` besides the case or the region itself."""
    return CHUNK_BYTES + _ROW.itemsize * (channels + 1) * prod(-(-size // EDGE) for size in shape)


def disk_bytes(folder: Path) -> int:
    """Bytes of all prepared cases in a folder."""
    return sum(os.stat(path).st_size for path in folder.glob(f"*{SUFFIX}"))
