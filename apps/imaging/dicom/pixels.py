"""Pixels of one frame at a time, from every transfer syntax, never more bytes than the header's arithmetic allows.

Uncompressed pixels are read in one piece from where they lie. Compressed ones are first asked how large they are, in
their own header, and are decoded only if that agrees with the data set: so what a decoder allocates is in the plan,
and the ceiling is also the limit for hostile files.
"""

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from apps.imaging.dicom.defects import Defect, Refusal
from apps.imaging.dicom.headers import (
    BIG_ENDIAN,
    DEFLATED,
    EXPLICIT,
    HEADER_LIMIT,
    IMPLICIT,
    UNDEFINED,
    FrameHeader,
    SeriesAttributes,
    begin,
    inflate,
    pydicom_module,
)
from apps.imaging.volumes.archive import Container
from common.errors import BadInput

Array = npt.NDArray[Any]

RLE = "1.2.840.10008.1.2.5"
NATIVE = (IMPLICIT, EXPLICIT, BIG_ENDIAN)
JPEG = ("1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51", "1.2.840.10008.1.2.4.57", "1.2.840.10008.1.2.4.70")
JPEG_LS = ("1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.81")
JPEG_2000 = ("1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.91", "1.2.840.10008.1.2.4.201", "1.2.840.10008.1.2.4.202",
             "1.2.840.10008.1.2.4.203")  # fmt: skip
DECODERS = {
    **dict.fromkeys(JPEG, "pylibjpeg pylibjpeg-libjpeg"),
    **dict.fromkeys(JPEG_LS, "pyjpegls"),
    **dict.fromkeys(JPEG_2000, "pylibjpeg pylibjpeg-openjpeg"),
}
"""What ``pip install`` brings for each compressed syntax that is not decoded here."""

LARGEST_FRAME = 2
"""A compressed frame may be this many times its pixels, and ``FRAME_OVERHEAD``: no codec grows noise by more."""
FRAME_OVERHEAD = 1 << 16
DECODER_PIXEL_BYTES = 12
"""What a decoder holds for each pixel beside input and output (measured at 3000 x 3000: JPEG 2000 and JPEG-LS 6)."""
DECODER_BYTES = 2 << 20
"""Its library, loaded at its first frame (measured 0.4 to 1.2 MiB)."""
MAX_FRAGMENTS = 1 << 16


def check_syntax(path: Path, kind: SeriesAttributes) -> None:
    """Refuse at once what cannot be decoded here, with what to install."""
    if kind.syntax in (*NATIVE, DEFLATED, RLE):
        return
    from pydicom.uid import UID

    name = UID(kind.syntax).name
    if kind.syntax not in DECODERS:
        line = f"transfer syntax {name!r} is not read"
        raise BadInput(f"{path}: {line}", public="DICOM transfer syntax")
    if not _decoder(kind.syntax).is_available:
        line = f"transfer syntax {name!r} needs a decoder: pip install {DECODERS[kind.syntax]}"
        raise BadInput(f"{path}: {line}", public="DICOM transfer syntax")


def _decoder(syntax: str) -> Any:
    pydicom_module()
    from pydicom.pixels import get_decoder

    return get_decoder(syntax)


def reader_bytes(kind: SeriesAttributes) -> int:
    """What reading one frame holds: input, decoded pixels, and their final form."""
    pixels = kind.rows * kind.columns
    cell = kind.allocated // 8
    if kind.syntax in NATIVE:
        return 2 * pixels * cell
    if kind.syntax == DEFLATED:
        return 2 * HEADER_LIMIT + 3 * pixels * cell
    largest = LARGEST_FRAME * pixels * cell + FRAME_OVERHEAD
    decoder = 0 if kind.syntax == RLE else DECODER_BYTES + pixels * DECODER_PIXEL_BYTES
    return 2 * largest + pixels * 2 * cell + decoder


@dataclass(slots=True)
class PixelReader:
    """Frames of a container; the last file stays open for its next frame. Use ``close``."""

    container: Container
    _name: str = ""
    _stream: BinaryIO | None = None
    _fragments: list[tuple[int, int]] | None = None

    def close(self) -> None:
        """Close the last file."""
        if self._stream is not None:
            self._stream.close()
        self._stream, self._name = None, ""

    def read(self, frame: FrameHeader) -> Array:
        """(rows, columns) in the stored type, unused bits cleared.

        Raises
        ------
        BadInput
            If the pixels are damaged, short, or not what the header says.
        """
        where = self.container.path / frame.name
        try:
            array = self._read(frame)
        except BadInput:
            raise
        except MemoryError:
            raise
        except Exception as error:  # decoders and zlib raise many types; what they mean here is the same
            reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
            raise Refusal(where, Defect.CORRUPT, f"pixels cannot be decoded ({reason})") from None
        kind = frame.kind
        if array.shape != (kind.rows, kind.columns):
            raise Refusal(where, Defect.CORRUPT, f"pixels are not {kind.rows} rows of {kind.columns}")
        return clear_unused_bits(array.astype(stored_dtype(kind), copy=False), kind.stored)

    def _read(self, frame: FrameHeader) -> Array:
        kind = frame.kind
        if kind.syntax in NATIVE:
            return self._native(frame)
        if kind.syntax == DEFLATED:
            return self._deflated(frame)
        data = self._compressed(frame)
        if kind.syntax == RLE:
            return decode_rle(data, kind)
        check_codestream(data, kind)
        from pydicom.encaps import encapsulate

        array, _ = _decoder(kind.syntax).as_array(
            encapsulate([data]),
            index=0,
            raw=True,
            rows=kind.rows,
            columns=kind.columns,
            number_of_frames=1,
            samples_per_pixel=1,
            photometric_interpretation="MONOCHROME2",
            bits_allocated=kind.allocated,
            bits_stored=kind.stored,
            pixel_representation=int(kind.signed),
            pixel_keyword="PixelData",
        )
        return np.asarray(array)

    def _open(self, frame: FrameHeader) -> BinaryIO:
        if self._stream is None or self._name != frame.name:
            self.close()
            self._stream, self._name, self._fragments = self.container.open(frame.name), frame.name, None
        return self._stream

    def _native(self, frame: FrameHeader) -> Array:
        kind = frame.kind
        order = ">" if kind.syntax == BIG_ENDIAN else "<"
        array = np.empty((kind.rows, kind.columns), stored_dtype(kind).newbyteorder(order))
        stream = self._open(frame)
        stream.seek(frame.offset + frame.number * array.nbytes)
        view = memoryview(array.reshape(-1).view(np.uint8))
        while view:
            count = stream.readinto(view)  # type: ignore[attr-defined]
            if not count:
                raise Refusal(self.container.path / frame.name, Defect.TRUNCATED, "truncated: its pixels end early")
            view = view[count:]
        return array

    def _deflated(self, frame: FrameHeader) -> Array:
        """Inflate up to this frame's end, and no further."""
        kind = frame.kind
        dtype = stored_dtype(kind)
        count = kind.rows * kind.columns * dtype.itemsize
        start = frame.offset + frame.number * count
        stream = self._open(frame)
        begin(stream)
        data, _ = inflate(stream, start + count)
        if len(data) < start + count:
            raise Refusal(self.container.path / frame.name, Defect.TRUNCATED, "truncated: its pixels end early")
        return np.frombuffer(data, dtype, kind.rows * kind.columns, start).reshape(kind.rows, kind.columns)

    def _compressed(self, frame: FrameHeader) -> bytes:
        """The bytes of one encapsulated frame."""
        kind, where = frame.kind, self.container.path / frame.name
        stream = self._open(frame)
        if self._fragments is None:
            self._fragments = _fragments(stream, frame.offset)
        if frame.frames == 1:
            parts = self._fragments
        elif len(self._fragments) == frame.frames:
            parts = [self._fragments[frame.number]]
        else:
            line = "frames in several fragments each are not read"
            raise BadInput(f"{where}: {line}", public="DICOM fragments")
        largest = LARGEST_FRAME * kind.rows * kind.columns * kind.allocated // 8 + FRAME_OVERHEAD
        if sum(length for _, length in parts) > largest:
            raise Refusal(where, Defect.BOMB, f"a compressed frame is larger than {largest} bytes")
        data = bytearray()
        for offset, length in parts:
            stream.seek(offset)
            data += stream.read(length)
        return bytes(data)


def stored_dtype(kind: SeriesAttributes) -> np.dtype[Any]:
    """Of one stored value."""
    return np.dtype(f"{'int' if kind.signed else 'uint'}{kind.allocated}")


def clear_unused_bits(array: Array, stored: int) -> Array:
    """Bits above ``stored`` may hold anything (overlays, flags): they are replaced by the sign."""
    unused = 8 * array.dtype.itemsize - stored
    if not unused:
        return array
    result: Array = np.left_shift(array, unused)
    np.right_shift(result, unused, out=result)  # of signed numbers: repeats the sign
    return result


def _fragments(stream: BinaryIO, offset: int) -> list[tuple[int, int]]:
    """Offset and length of each item after the (ignored) offset table."""
    found: list[tuple[int, int]] = []
    stream.seek(offset)
    while len(found) <= MAX_FRAGMENTS:
        header = stream.read(8)
        if len(header) < 8 or header[:4] != b"\xfe\xff\x00\xe0":
            break
        length = struct.unpack("<L", header[4:])[0]
        if length == UNDEFINED:
            break
        found.append((stream.tell(), length))
        stream.seek(length, 1)
    return found[1:]


def check_codestream(data: bytes, kind: SeriesAttributes) -> None:
    """Compare the size that a codec's own header declares with the data set's. Raises ``ValueError``."""
    rows, columns, samples = _jpeg_2000_size(data) if kind.syntax in JPEG_2000 else _jpeg_size(data)
    if (rows, columns, samples) != (kind.rows, kind.columns, 1):
        line = f"the compressed image is {rows} x {columns} x {samples}, not {kind.rows} x {kind.columns}"
        raise ValueError(line)


def _jpeg_2000_size(data: bytes) -> tuple[int, int, int]:
    """From the SIZ segment, which is the first after the start of the codestream (ISO 15444-1, A.5.1)."""
    at = data.find(b"\xff\x4f\xff\x51")
    if at < 0 or len(data) < at + 44:
        raise ValueError("no JPEG 2000 codestream")
    right, bottom, left, top = struct.unpack(">4L", data[at + 8 : at + 24])
    return bottom - top, right - left, struct.unpack(">H", data[at + 40 : at + 42])[0]


def _jpeg_size(data: bytes) -> tuple[int, int, int]:
    """From the frame header, SOF0 to SOF15 or JPEG-LS's SOF55 (ISO 10918-1, B.2.2)."""
    at = 2
    while at + 10 <= len(data) and data[at] == 0xFF:
        marker, length = data[at + 1], struct.unpack(">H", data[at + 2 : at + 4])[0]
        if marker == 0xFF:  # a fill byte
            at += 1
            continue
        if marker == 0xF7 or (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)):
            rows, columns = struct.unpack(">HH", data[at + 5 : at + 9])
            return rows, columns, data[at + 9]
        at += 2 + length
    raise ValueError("no JPEG frame header")


def decode_rle(data: bytes, kind: SeriesAttributes) -> Array:
    """RLE lossless (PS3.5 annex G): one segment for each byte of a value, the most significant first."""
    cell, pixels = kind.allocated // 8, kind.rows * kind.columns
    count, *starts = struct.unpack("<16L", data[:64])
    if count != cell:
        raise ValueError(f"{count} RLE segments, {cell} expected")
    stops = [*starts[1:cell], len(data)]
    planes = np.empty((pixels, cell), np.uint8)
    for place, (start, stop) in enumerate(zip(starts[:cell], stops, strict=True)):
        planes[:, cell - 1 - place] = np.frombuffer(_unpack_bits(data[start:stop], pixels), np.uint8)
    little = stored_dtype(kind).newbyteorder("<")
    return planes.view(little).reshape(kind.rows, kind.columns)


def _unpack_bits(segment: bytes, expected: int) -> bytearray:
    """PackBits, stopped at ``expected`` bytes. Raises ``ValueError`` where there are fewer."""
    out, at, end = bytearray(), 0, len(segment)
    while len(out) < expected and at < end:
        control = segment[at]
        if control < 128:
            out += segment[at + 1 : at + 2 + control]
            at += 2 + control
        elif control > 128:
            out += segment[at + 1 : at + 2] * (257 - control)
            at += 2
        else:
            at += 1
    if len(out) < expected:
        raise ValueError("an RLE segment ends early")
    return out[:expected]
