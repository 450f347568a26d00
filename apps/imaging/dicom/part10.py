"""Write a DICOM file in pieces: sequences item by item, pixels from a temporary file, never whole in memory.

All is little endian, and of explicit VR unless ``implicit``. Sequences have undefined length, so that nothing has to be
counted beforehand.
"""

import struct
from collections.abc import Iterable
from typing import IO, Any, BinaryIO

import numpy as np
import numpy.typing as npt

COPY_BYTES = 1 << 20
LARGEST_PIXELS = 0xFFFFFFFE
"""Most bytes of an uncompressed pixel element, whose length field has 32 bits."""

_ITEM, _ITEM_END, _SEQUENCE_END = (0xFFFE, 0xE000), (0xFFFE, 0xE00D), (0xFFFE, 0xE0DD)
_UNDEFINED = 0xFFFFFFFF


def begin_file(stream: BinaryIO, meta: Any) -> None:
    """Write preamble, mark and meta group; the preamble is zeros, so that nothing of a source's is carried over."""
    from pydicom.filebase import DicomIO
    from pydicom.filewriter import write_file_meta_info

    stream.write(bytes(128) + b"DICM")
    write_file_meta_info(DicomIO(stream), meta)


def write_elements(stream: BinaryIO, dataset: Any, first: int, last: int, *, implicit: bool = False) -> None:
    """Write the elements of ``dataset`` with ``first`` <= tag < ``last``."""
    from pydicom.dataset import Dataset

    chosen = Dataset()
    chosen.SpecificCharacterSet = dataset.SpecificCharacterSet
    for element in dataset:
        if first <= element.tag < last:
            chosen.add(element)
    content = encoded(chosen, implicit=implicit)
    if not first <= 0x00080005 < last:
        content = content[len(_charset(chosen, implicit)) :]
    stream.write(content)


def encoded(dataset: Any, *, implicit: bool = False) -> bytes:
    """Encode a data set's elements."""
    from pydicom.filebase import DicomBytesIO
    from pydicom.filewriter import write_dataset

    out = DicomBytesIO()
    out.is_implicit_VR, out.is_little_endian = implicit, True
    write_dataset(out, dataset)
    return out.getvalue()


def _charset(dataset: Any, implicit: bool) -> bytes:
    from pydicom.dataset import Dataset

    only = Dataset()
    only.SpecificCharacterSet = dataset.SpecificCharacterSet
    return encoded(only, implicit=implicit)


def item(content: bytes) -> bytes:
    """Encode an item of a sequence from its encoded elements."""
    return struct.pack("<HHL", *_ITEM, len(content)) + content


def begin_sequence(stream: BinaryIO, tag: int, *, implicit: bool = False) -> None:
    """Open a sequence of undefined length."""
    stream.write(struct.pack("<HH", tag >> 16, tag & 0xFFFF) + (b"" if implicit else b"SQ\0\0"))
    stream.write(struct.pack("<L", _UNDEFINED))


def begin_item(stream: BinaryIO) -> None:
    """Open an item of undefined length."""
    stream.write(struct.pack("<HHL", *_ITEM, _UNDEFINED))


def end_item(stream: BinaryIO) -> None:
    """Close an item of undefined length."""
    stream.write(struct.pack("<HHL", *_ITEM_END, 0))


def end_sequence(stream: BinaryIO) -> None:
    """Close a sequence of undefined length."""
    stream.write(struct.pack("<HHL", *_SEQUENCE_END, 0))


def write_sequence(stream: BinaryIO, tag: int, contents: Iterable[bytes]) -> None:
    """Write a sequence from the encoded elements of its items."""
    begin_sequence(stream, tag)
    for content in contents:
        stream.write(item(content))
    end_sequence(stream)


def begin_pixels(stream: BinaryIO, length: int, *, words: bool) -> None:
    """Write the pixel element's header; ``length`` bytes must follow, and a padding byte if that is odd."""
    stream.write(struct.pack("<HH2sHL", 0x7FE0, 0x0010, b"OW" if words else b"OB", 0, length + length % 2))


def copy(source: IO[bytes], stream: BinaryIO) -> None:
    """Copy a temporary file from its beginning."""
    source.seek(0)
    while block := source.read(COPY_BYTES):
        stream.write(block)


class BitPacker:
    """Packs frames of bits, the first bit lowest in a byte, without gaps between frames (PS3.5 8.1.1)."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._rest = np.empty(0, np.uint8)

    def write(self, frame: npt.NDArray[np.bool_]) -> None:
        """Append a frame; up to seven bits wait for the next frame."""
        bits = np.concatenate([self._rest, frame.reshape(-1).view(np.uint8)])
        whole = len(bits) // 8 * 8
        self._stream.write(np.packbits(bits[:whole], bitorder="little").tobytes())
        self._rest = bits[whole:]

    def close(self) -> None:
        """Fill the last byte with zeros."""
        self._stream.write(np.packbits(self._rest, bitorder="little").tobytes())
