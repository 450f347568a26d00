"""Pixels of one frame at a time, from every transfer syntax, in no more bytes than follow from the header.

Uncompressed pixels are read in one piece from their offset. A compressed frame is decoded only if the size in the
codec's own header agrees with the data set's: so the plan knows what a decoder allocates, and the ceiling is also the
limit for hostile files.
"""

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
from pydicom.uid import (
    HTJ2K,
    JPEG2000,
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)

from apps.imaging.dicom.defects import Defect, Refusal
from apps.imaging.dicom.headers import (
    HEADER_LIMIT,
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

NATIVE = (ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian)
"""Transfer syntaxes of uncompressed pixels."""
JPEG = (JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLossless, JPEGLosslessSV1)
JPEG_LS = (JPEGLSLossless, JPEGLSNearLossless)
JPEG_2000 = (JPEG2000Lossless, JPEG2000, HTJ2KLossless, HTJ2KLosslessRPCL, HTJ2K)
DECODERS = {
    **dict.fromkeys(JPEG, "jpeg"),
    **dict.fromkeys((*JPEG_LS, *JPEG_2000), "dicom"),
}
"""Extra of peakline with a decoder for each compressed syntax that is not decoded here."""

LARGEST_FRAME = 2
"""Most bytes of a compressed frame, over its pixels' and ``FRAME_OVERHEAD``: no codec makes noise larger than that."""
FRAME_OVERHEAD = 1 << 16
DECODER_PIXEL_BYTES = 12
"""Bytes of a decoder for each pixel, without input and output (measured at 3000 x 3000: 6, JPEG 2000 and JPEG-LS)."""
DECODER_BYTES = 2 << 20
"""A decoder's library, loaded at the first frame (measured 0.4 to 1.2 MiB)."""
MAX_FRAGMENTS = 1 << 16
PIECE_BYTES = 1 << 18
"""Bytes asked of a stream at once: one in a zip makes copies of all that it unpacks for one request."""


def check_syntax(path: Path, attributes: SeriesAttributes) -> None:
    """Check that the pixels of a series can be decoded here.

    Raises
    ------
    BadInput
        Naming the transfer syntax, and the extra to install if there is one.
    """
    if attributes.syntax in (*NATIVE, DeflatedExplicitVRLittleEndian, RLELossless):
        return
    name = UID(attributes.syntax).name
    if attributes.syntax not in DECODERS:
        message = f"transfer syntax {name!r} is not read"
        raise BadInput(f"{path}: {message}", public="DICOM transfer syntax")
    if not _has_decoder(attributes):
        extra = DECODERS[UID(attributes.syntax)]
        message = f"transfer syntax {name!r} needs the extra {extra!r}: pip install 'peakline[{extra}]'"
        raise BadInput(f"{path}: {message}", public="DICOM transfer syntax")


def _has_decoder(attributes: SeriesAttributes) -> bool:
    """True if a decoder is installed for a series; Pillow decodes extended JPEG of 8 bits only."""
    names = set(_decoder(attributes.syntax).available_plugins)
    only_8_bits = {"pillow"} if attributes.syntax == JPEGExtended12Bit and attributes.stored != 8 else set()
    return bool(names - only_8_bits)


def _decoder(syntax: str) -> Any:
    pydicom_module()
    from pydicom.pixels.decoders.base import get_decoder

    return get_decoder(syntax)


def frame_bytes(attributes: SeriesAttributes) -> int:
    """Bytes of reading one frame: input, decoded pixels, and their final form."""
    pixels = attributes.rows * attributes.columns
    cell = attributes.allocated // 8
    if attributes.syntax in NATIVE:
        return 2 * pixels * cell
    if attributes.syntax == DeflatedExplicitVRLittleEndian:
        return 2 * HEADER_LIMIT + 3 * pixels * cell
    largest = LARGEST_FRAME * pixels * cell + FRAME_OVERHEAD
    decoder = 0 if attributes.syntax == RLELossless else DECODER_BYTES + pixels * DECODER_PIXEL_BYTES
    return 2 * largest + pixels * 2 * cell + decoder


@dataclass(slots=True)
class PixelReader:
    """Reads frames of a container. The last file stays open for its next frame, until ``close``."""

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
        """Read and decode a frame.

        Returns
        -------
        array (rows, columns)
            In the stored type, with unused bits cleared.

        Raises
        ------
        BadInput
            If the pixels are damaged, too few, or not what the header says.
        """
        where = self.container.path / frame.name
        try:
            array = self._read(frame)
        except BadInput:
            raise
        except MemoryError:
            raise
        except Exception as error:  # decoders and zlib raise many types with the same meaning
            reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
            raise Refusal(where, Defect.CORRUPT, f"pixels cannot be decoded ({reason})") from None
        attributes = frame.attributes
        if array.shape != (attributes.rows, attributes.columns):
            raise Refusal(where, Defect.CORRUPT, f"pixels are not {attributes.rows} rows of {attributes.columns}")
        return clear_unused_bits(array.astype(stored_dtype(attributes), copy=False), attributes.stored)

    def _read(self, frame: FrameHeader) -> Array:
        attributes = frame.attributes
        if attributes.syntax in NATIVE:
            return self._native(frame)
        if attributes.syntax == DeflatedExplicitVRLittleEndian:
            return self._deflated(frame)
        data = self._compressed(frame)
        if attributes.syntax == RLELossless:
            return decode_rle(data, attributes)
        check_codestream(data, attributes)
        from pydicom.encaps import encapsulate

        array, _ = _decoder(attributes.syntax).as_array(
            encapsulate([data]),
            index=0,
            raw=True,
            rows=attributes.rows,
            columns=attributes.columns,
            number_of_frames=1,
            samples_per_pixel=1,
            photometric_interpretation="MONOCHROME2",
            bits_allocated=attributes.allocated,
            bits_stored=attributes.stored,
            pixel_representation=int(attributes.signed),
            pixel_keyword="PixelData",
        )
        return np.asarray(array)

    def _open(self, frame: FrameHeader) -> BinaryIO:
        if self._stream is None or self._name != frame.name:
            self.close()
            self._stream, self._name, self._fragments = self.container.open(frame.name), frame.name, None
        return self._stream

    def _native(self, frame: FrameHeader) -> Array:
        attributes = frame.attributes
        dtype = stored_dtype(attributes)
        dtype = dtype.newbyteorder(">") if attributes.syntax == ExplicitVRBigEndian else dtype.newbyteorder("<")
        array = np.empty((attributes.rows, attributes.columns), dtype)
        stream = self._open(frame)
        stream.seek(frame.offset + frame.number * array.nbytes)
        view = array.reshape(-1).view(np.uint8).data
        while view:
            count = stream.readinto(view[:PIECE_BYTES])  # type: ignore[attr-defined]
            if not count:
                raise Refusal(self.container.path / frame.name, Defect.TRUNCATED, "truncated: its pixels end early")
            view = view[count:]
        return array

    def _deflated(self, frame: FrameHeader) -> Array:
        """Inflate the file up to this frame's end."""
        attributes = frame.attributes
        dtype = stored_dtype(attributes)
        count = attributes.rows * attributes.columns * dtype.itemsize
        start = frame.offset + frame.number * count
        stream = self._open(frame)
        begin(stream)
        data, _ = inflate(stream, start + count)
        if len(data) < start + count:
            raise Refusal(self.container.path / frame.name, Defect.TRUNCATED, "truncated: its pixels end early")
        return np.frombuffer(data, dtype, attributes.rows * attributes.columns, start).reshape(
            attributes.rows, attributes.columns
        )

    def _compressed(self, frame: FrameHeader) -> bytes:
        """The bytes of one encapsulated frame."""
        attributes, where = frame.attributes, self.container.path / frame.name
        stream = self._open(frame)
        if self._fragments is None:
            self._fragments = _fragments(stream, frame.offset)
        if frame.frames == 1:
            fragments = self._fragments
        elif len(self._fragments) == frame.frames:
            fragments = [self._fragments[frame.number]]
        else:
            raise BadInput(f"{where}: frames in several fragments each are not read", public="DICOM fragments")
        largest = LARGEST_FRAME * attributes.rows * attributes.columns * attributes.allocated // 8 + FRAME_OVERHEAD
        if sum(length for _, length in fragments) > largest:
            raise Refusal(where, Defect.BOMB, f"a compressed frame is larger than {largest} bytes")
        data = bytearray()
        for offset, length in fragments:
            stream.seek(offset)
            data += stream.read(length)
            if stream.tell() < offset + length:  # some decoders fill up what is absent without a word
                raise Refusal(where, Defect.TRUNCATED, "truncated: its pixels end early")
        return bytes(data)


def stored_dtype(attributes: SeriesAttributes) -> np.dtype[Any]:
    """Type of one stored value."""
    return np.dtype(f"{'int' if attributes.signed else 'uint'}{attributes.allocated}")


def clear_unused_bits(array: Array, stored: int) -> Array:
    """Replace the bits above the lowest ``stored`` ones, which may hold overlays or flags, by the sign."""
    unused = 8 * array.dtype.itemsize - stored
    if not unused:
        return array
    result: Array = np.left_shift(array, unused)
    np.right_shift(result, unused, out=result)  # of signed numbers: repeats the sign
    return result


def _fragments(stream: BinaryIO, offset: int) -> list[tuple[int, int]]:
    """Offset and length of each fragment, after the offset table, which is not used."""
    items: list[tuple[int, int]] = []
    stream.seek(offset)
    while len(items) <= MAX_FRAGMENTS:
        header = stream.read(8)
        if len(header) < 8 or header[:4] != b"\xfe\xff\x00\xe0":
            break
        length = struct.unpack("<L", header[4:])[0]
        if length == UNDEFINED:
            break
        items.append((stream.tell(), length))
        stream.seek(length, 1)
    return items[1:]


def check_codestream(data: bytes, attributes: SeriesAttributes) -> None:
    """Compare the size in a codec's own header with the data set's.

    Raises
    ------
    ValueError
        If they differ, or there is no such header.
    """
    rows, columns, samples = _jpeg_2000_size(data) if attributes.syntax in JPEG_2000 else _jpeg_size(data)
    if (rows, columns, samples) != (attributes.rows, attributes.columns, 1):
        raise ValueError(
            f"the compressed image is {rows} x {columns} x {samples}, not {attributes.rows} x {attributes.columns}"
        )


def _jpeg_2000_size(data: bytes) -> tuple[int, int, int]:
    """Rows, columns and samples from the SIZ segment, the first of the codestream (ISO 15444-1, A.5.1)."""
    at = data.find(b"\xff\x4f\xff\x51")
    if at < 0 or len(data) < at + 44:
        raise ValueError("no JPEG 2000 codestream")
    right, bottom, left, top = struct.unpack(">4L", data[at + 8 : at + 24])
    return bottom - top, right - left, struct.unpack(">H", data[at + 40 : at + 42])[0]


def _jpeg_size(data: bytes) -> tuple[int, int, int]:
    """Rows, columns and samples from the frame header, SOF0 to SOF15 or JPEG-LS's SOF55 (ISO 10918-1, B.2.2)."""
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


def decode_rle(data: bytes, attributes: SeriesAttributes) -> Array:
    """Decode RLE lossless (PS3.5 annex G): a segment for each byte of a value, the most significant first.

    Returns
    -------
    array (rows, columns)

    Raises
    ------
    ValueError
        A wrong number of segments, or one that is too short.
    """
    cell, pixels = attributes.allocated // 8, attributes.rows * attributes.columns
    count, *starts = struct.unpack("<16L", data[:64])
    if count != cell:
        raise ValueError(f"{count} RLE segments, {cell} expected")
    stops = [*starts[1:cell], len(data)]
    planes = np.empty((pixels, cell), np.uint8)
    for number, (start, stop) in enumerate(zip(starts[:cell], stops, strict=True)):
        planes[:, cell - 1 - number] = np.frombuffer(_unpack_bits(data[start:stop], pixels), np.uint8)
    little = stored_dtype(attributes).newbyteorder("<")
    return planes.view(little).reshape(attributes.rows, attributes.columns)


def _unpack_bits(segment: bytes, expected: int) -> bytearray:
    """Decode PackBits up to ``expected`` bytes; raises ``ValueError`` if there are fewer."""
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
