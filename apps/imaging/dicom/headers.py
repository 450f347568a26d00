"""DICOM headers as table rows: a few hundred bytes a slice, whatever the file holds, single-frame and enhanced.

Only the elements below are read, values are bounded, and the per-frame groups of an enhanced file are read item by
item, because pydicom's own data sets cost 56 KiB a slice. What a header says is not believed here; ``dicom`` checks it.
"""

import logging
import re
import struct
import warnings
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any, BinaryIO, NamedTuple

from apps.imaging.dicom.defects import Defect, Refusal
from apps.imaging.volumes.archive import Container

MARK = b"DICM"
PREAMBLE = 128
VALUE_LIMIT = 1 << 20
"""Bytes of one header value; larger ones are stepped over (none of those read here comes near it)."""
HEADER_LIMIT = 4 << 20
"""Inflated bytes of a deflated file within which its pixels must begin."""
MAX_FRAMES = 100_000
UNDEFINED = 0xFFFFFFFF

DEFLATED = "1.2.840.10008.1.2.1.99"
IMPLICIT = "1.2.840.10008.1.2"
EXPLICIT = "1.2.840.10008.1.2.1"
BIG_ENDIAN = "1.2.840.10008.1.2.2"

_SHARED, _PER_FRAME, _PIXELS = 0x52009229, 0x52009230, 0x7FE00010
_PIXEL_ELEMENTS = (0x7FE00008, 0x7FE00009, _PIXELS)
_TAGS = [
    0x00080008,  # ImageType
    0x00080016,  # SOPClassUID
    0x00080018,  # SOPInstanceUID
    0x00080060,  # Modality
    0x0020000E,  # SeriesInstanceUID
    0x00200032,  # ImagePositionPatient
    0x00200037,  # ImageOrientationPatient
    0x00200052,  # FrameOfReferenceUID
    0x00280002,  # SamplesPerPixel
    0x00280004,  # PhotometricInterpretation
    0x00280008,  # NumberOfFrames
    0x00280010,  # Rows
    0x00280011,  # Columns
    0x00280030,  # PixelSpacing
    0x00280100,  # BitsAllocated
    0x00280101,  # BitsStored
    0x00280102,  # HighBit
    0x00280103,  # PixelRepresentation
    0x00281052,  # RescaleIntercept
    0x00281053,  # RescaleSlope
    _SHARED,
]
_BOMB = f"its pixels do not begin within {HEADER_LIMIT >> 20} MiB of inflated header"
_NOT_IMAGES = ("1.2.840.10008.5.1.4.1.1.66", "1.2.840.10008.5.1.4.1.1.481.3", "1.2.840.10008.5.1.4.1.1.88")
"""SOP classes that begin so hold segmentations, registrations, structure sets and reports: never a source image."""

MODALITIES = frozenset(
    ("CT", "MR", "PT", "NM", "US", "CR", "DX", "MG", "XA", "RF", "OCT", "OPT", "IVUS", "IVOCT", "OP", "RTIMAGE", "SM")
)
"""Those of images; any other is shown as OT, so that what is shown cannot be somebody's name."""
_UID = re.compile(r"[0-9.]{1,64}")


@dataclass(frozen=True, slots=True)
class SeriesAttributes:
    """What all frames of a volume have in common; one object for all of them."""

    series: str
    modality: str
    sop_class: str
    frame_of_reference: str
    localizer: bool
    rows: int
    columns: int
    samples: int
    photometric: str
    allocated: int
    """Bits of a stored value's cell."""
    stored: int
    """Bits that are used."""
    high_bit: int
    signed: bool
    syntax: str
    """Transfer syntax UID."""
    float_pixels: bool


@dataclass(frozen=True, slots=True)
class FrameHeader:
    """One plane of pixels and where it lies."""

    name: str
    """In its container."""
    instance: str
    """SOPInstanceUID."""
    number: int
    """Within its file, from 0."""
    frames: int
    """How many its file has."""
    offset: int
    """Where the pixel element's value begins in the file (in the inflated data set, where that is deflated)."""
    kind: SeriesAttributes
    position: tuple[float, ...] | None
    """Centre of the first pixel in millimetres, DICOM's axes (left, posterior, superior)."""
    orientation: tuple[float, ...] | None
    pixel_spacing: tuple[float, ...] | None
    """Between rows, between columns."""
    slope: float
    intercept: float
    polyglot: bool
    """Whether the preamble is that of a program or a document."""


def pydicom_module() -> Any:
    """pydicom, without its warnings: they quote the values they complain about, which may identify a patient."""
    import pydicom

    logging.getLogger("pydicom").setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", module="pydicom")
    return pydicom


def is_dicom(container: Container, name: str) -> bool:
    """By the mark after the preamble; old files without one are taken by their name's ending."""
    if name.rsplit("/", 1)[-1].upper() == "DICOMDIR":
        return False
    with container.open(name) as stream:
        start = stream.read(PREAMBLE + len(MARK))
    if start[PREAMBLE:] == MARK:
        return True
    return name.lower().endswith((".dcm", ".ima")) and len(start) == PREAMBLE + len(MARK)


class HeaderReader:
    """Reads the headers of a container's files; equal values become one object."""

    def __init__(self, container: Container) -> None:
        self._container = container
        self._shared: dict[Any, Any] = {}

    def _one(self, value: Any) -> Any:
        return self._shared.setdefault(value, value)

    def frames(self, name: str) -> Sequence[FrameHeader]:
        """The frames of one file; empty for what is not an image.

        Raises
        ------
        Refusal
            For a file that cannot be parsed, or ends before its pixels.
        """
        where = self._container.path / name
        try:
            with self._container.open(name) as stream:
                found = list(self._parse(name, stream))
        except Refusal:
            raise
        except Exception as error:  # whatever pydicom makes of a damaged header
            line = f"not a readable DICOM file ({type(error).__name__})"
            raise Refusal(where, Defect.CORRUPT, line) from None
        return found

    def _parse(self, name: str, file: BinaryIO) -> Iterator[FrameHeader]:
        from pydicom.filereader import read_dataset

        where = self._container.path / name
        pydicom_module()
        polyglot = _is_foreign(file.read(4))
        meta = begin(file)
        syntax = meta.syntax
        implicit, little = syntax == IMPLICIT, syntax != BIG_ENDIAN
        stream: BinaryIO = file
        size = self._container.size(name)
        if syntax == DEFLATED:
            data, ended = inflate(file, HEADER_LIMIT)
            stream, size = BytesIO(data), len(data) if ended else UNDEFINED
        options = {"is_implicit_VR": implicit, "is_little_endian": little, "defer_size": VALUE_LIMIT}
        head = read_dataset(stream, stop_when=lambda tag, vr, length: tag >= _PER_FRAME, specific_tags=_TAGS, **options)
        bomb = size == UNDEFINED
        if "Rows" not in head and bomb:
            raise Refusal(where, Defect.BOMB, _BOMB)
        sop_class = str(head.get("SOPClassUID", "")) or meta.sop_class
        if "Rows" not in head and not _UID.fullmatch(sop_class):
            raise Refusal(where, Defect.CORRUPT, "not a readable DICOM file (neither an image nor another object)")
        if "Rows" not in head or sop_class.startswith(_NOT_IMAGES):
            return
        per_frame = list(self._per_frame(stream, implicit, little))
        read_dataset(
            stream, stop_when=lambda tag, vr, length: tag in _PIXEL_ELEMENTS, specific_tags=[0x00080005], **options
        )
        element = _element(stream, implicit, little)
        if element is None or element[0] not in _PIXEL_ELEMENTS:
            defect, line = (Defect.BOMB, _BOMB) if bomb else (Defect.TRUNCATED, "truncated: it ends before its pixels")
            raise Refusal(where, defect, line)
        tag, length = element
        kind = self._kind(head, syntax, sop_class, float_pixels=tag != _PIXELS)
        count = int(head.get("NumberOfFrames", 1) or 1)
        offset = stream.tell()
        if not 1 <= count <= MAX_FRAMES:
            raise Refusal(where, Defect.CORRUPT, f"{count} frames in one file")
        needed = count * kind.rows * kind.columns * kind.samples * kind.allocated // 8
        if length != UNDEFINED and (length < needed or offset + needed > size):
            line = "truncated: fewer pixels than Rows, Columns and frames say"
            raise Refusal(where, Defect.TRUNCATED, line)
        shared = _first(head, "SharedFunctionalGroupsSequence")
        whole = FrameGeometry.of(head) if shared is None else FrameGeometry.of_groups(shared)
        instance = str(head.get("SOPInstanceUID", "")) or meta.instance or name
        for number in range(count):
            place = whole.overlaid(per_frame[number]) if number < len(per_frame) else whole
            orientation, spacing = self._one(place.orientation), self._one(place.pixel_spacing)
            slope, intercept = self._one(1.0 if place.slope is None else place.slope), self._one(place.intercept or 0.0)
            yield FrameHeader(
                name, instance, number, count, offset, kind, place.position, orientation, spacing, slope, intercept,
                polyglot,
            )  # fmt: skip

    def _per_frame(self, stream: BinaryIO, implicit: bool, little: bool) -> Iterator["FrameGeometry"]:
        """Items of the per-frame groups, if the stream stands before them."""
        from pydicom.filereader import read_sequence_item

        before = stream.tell()
        element = _element(stream, implicit, little)
        if element is None or element[0] != _PER_FRAME:
            stream.seek(before)
            return
        end = None if element[1] == UNDEFINED else stream.tell() + element[1]
        while end is None or stream.tell() < end:
            item = read_sequence_item(stream, implicit, little, "iso8859")
            if item is None:
                return
            yield FrameGeometry.of_groups(item)

    def _kind(self, head: Any, syntax: str, sop_class: str, *, float_pixels: bool) -> SeriesAttributes:
        allocated = int(head.get("BitsAllocated", 0))
        stored = int(head.get("BitsStored", allocated))
        kind = SeriesAttributes(
            series=str(head.get("SeriesInstanceUID", "")),
            modality=modality if (modality := str(head.get("Modality", ""))) in MODALITIES else "OT",
            sop_class=sop_class,
            frame_of_reference=str(head.get("FrameOfReferenceUID", "")),
            localizer="LOCALIZER" in [str(value).upper() for value in _values(head, "ImageType")],
            rows=int(head.Rows),
            columns=int(head.get("Columns", 0)),
            samples=int(head.get("SamplesPerPixel", 1)),
            photometric=str(head.get("PhotometricInterpretation", "")),
            allocated=allocated,
            stored=stored,
            high_bit=int(head.get("HighBit", stored - 1)),
            signed=bool(int(head.get("PixelRepresentation", 0))),
            syntax=syntax,
            float_pixels=float_pixels,
        )
        result: SeriesAttributes = self._one(kind)
        return result


@dataclass(frozen=True, slots=True)
class FrameGeometry:
    """Geometry and scale, from a plain header or from functional groups."""

    position: tuple[float, ...] | None = None
    orientation: tuple[float, ...] | None = None
    pixel_spacing: tuple[float, ...] | None = None
    slope: float | None = None
    intercept: float | None = None

    @classmethod
    def of(cls, head: Any) -> "FrameGeometry":
        return cls._read(head, head, head, head)

    @classmethod
    def of_groups(cls, groups: Any) -> "FrameGeometry":
        places = ("PlanePositionSequence", "PlaneOrientationSequence", "PixelMeasuresSequence")
        return cls._read(*(_first(groups, name) for name in (*places, "PixelValueTransformationSequence")))

    @classmethod
    def _read(cls, position: Any, orientation: Any, measures: Any, scale: Any) -> "FrameGeometry":
        return cls(
            _floats(position, "ImagePositionPatient", 3),
            _floats(orientation, "ImageOrientationPatient", 6),
            _floats(measures, "PixelSpacing", 2),
            _number(scale, "RescaleSlope"),
            _number(scale, "RescaleIntercept"),
        )

    def overlaid(self, over: "FrameGeometry") -> "FrameGeometry":
        """``over``, with what it lacks from here."""
        pairs = ((getattr(over, name), getattr(self, name)) for name in self.__slots__)
        return FrameGeometry(*(ours if theirs is None else theirs for theirs, ours in pairs))


def _is_foreign(start: bytes) -> bool:
    """Whether a preamble is the head of a program, a document or an archive (TIFF is allowed there, PS3.10 7.1)."""
    return start[:2] in (b"MZ", b"PK", b"#!") or start in (b"\x7fELF", b"%PDF")


class Meta(NamedTuple):
    """What stands before the data set."""

    syntax: str
    sop_class: str = ""
    instance: str = ""


def begin(stream: BinaryIO) -> Meta:
    """Pass over preamble and meta group, to the data set; without them the transfer syntax is guessed."""
    from pydicom.filereader import read_dataset

    stream.seek(0)
    start = PREAMBLE + len(MARK) if stream.read(PREAMBLE + len(MARK))[PREAMBLE:] == MARK else 0
    stream.seek(start)
    first = stream.read(8)
    stream.seek(start)
    if first[:2] != b"\x02\x00":
        return Meta(EXPLICIT if first[4:6].isupper() else IMPLICIT)
    meta = read_dataset(stream, False, True, stop_when=lambda tag, vr, length: tag >> 16 != 2, defer_size=VALUE_LIMIT)
    names = ("MediaStorageSOPClassUID", "MediaStorageSOPInstanceUID")
    return Meta(str(meta.get("TransferSyntaxUID", IMPLICIT)), *(str(meta.get(name, "")) for name in names))


def _element(stream: BinaryIO, implicit: bool, little: bool) -> tuple[int, int] | None:
    """Tag and length of the sequence or pixel element that begins here; the stream then stands at its value."""
    order = "<" if little else ">"
    start = stream.read(8)
    if len(start) < 8:
        return None
    group, number = struct.unpack(order + "HH", start[:4])
    length = start[4:] if implicit else stream.read(4)
    return (group << 16 | number, struct.unpack(order + "L", length)[0]) if len(length) == 4 else None


def inflate(stream: BinaryIO, limit: int) -> tuple[bytes, bool]:
    """At most ``limit`` bytes of a raw deflate stream, and whether that was all of it."""
    engine = zlib.decompressobj(-zlib.MAX_WBITS)
    out = bytearray()
    while len(out) < limit and not engine.eof:
        block = engine.unconsumed_tail or stream.read(1 << 16)
        if not block:
            break
        out += engine.decompress(block, limit - len(out))
    return bytes(out), engine.eof


def _first(dataset: Any, name: str) -> Any:
    sequence = dataset.get(name) if dataset is not None else None
    return sequence[0] if sequence else None


def _values(dataset: Any, name: str) -> list[Any]:
    value = dataset.get(name) if dataset is not None else None
    if value is None:
        return []
    return [value] if isinstance(value, str | int | float) else list(value)


def _floats(dataset: Any, name: str, count: int) -> tuple[float, ...] | None:
    values = _values(dataset, name)
    return tuple(float(value) for value in values) if len(values) == count else None


def _number(dataset: Any, name: str) -> float | None:
    value = dataset.get(name) if dataset is not None else None
    return None if value is None or value == "" else float(value)
