"""DICOM headers as table rows: a few hundred bytes a slice whatever the file holds, single-frame and enhanced.

Only the elements below are read, values are bounded, and the per-frame groups of an enhanced file are read item by
item, because pydicom's data sets take 56 KiB a slice. Values are read here and checked in ``series``.
"""

import logging
import re
import struct
import warnings
import zlib
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any, BinaryIO, NamedTuple, TypeVar, cast

from pydicom.tag import Tag
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RawDataStorage,
    RTStructureSetStorage,
)

from apps.imaging.dicom.codes import Modality
from apps.imaging.dicom.defects import Defect, Refusal
from apps.imaging.dicom.selection import variants
from apps.imaging.dicom.selection.variants import Variant, first_item, values_of
from apps.imaging.volumes.archive import Container

MARK = b"DICM"
PREAMBLE = 128
VALUE_LIMIT = 1 << 20
"""Bytes of one header value; larger ones are skipped (none of those that are read comes near it)."""
HEADER_LIMIT = 4 << 20
"""Inflated bytes of a deflated file within which its pixels must begin."""
MAX_FRAMES = 100_000
UNDEFINED = 0xFFFFFFFF
"""Length of an element whose end is marked instead."""

_SHARED, _PER_FRAME, _PIXELS = 0x52009229, 0x52009230, 0x7FE00010
_PIXEL_ELEMENTS = (0x7FE00008, 0x7FE00009, _PIXELS)
_CHARACTER_SET = 0x00080005
_KEYWORDS = """
ImageType SOPClassUID SOPInstanceUID Modality SeriesInstanceUID ImagePositionPatient ImageOrientationPatient
FrameOfReferenceUID SamplesPerPixel PhotometricInterpretation NumberOfFrames Rows Columns PixelSpacing BitsAllocated
BitsStored HighBit PixelRepresentation RescaleIntercept RescaleSlope SharedFunctionalGroupsSequence InstanceNumber
"""
"""Elements that are read of a header, besides those of ``variants.NAMES``."""
_BOMB = f"its pixels do not begin within {HEADER_LIMIT >> 20} MiB of inflated header"
_NOT_IMAGES = (RawDataStorage, RTStructureSetStorage, "1.2.840.10008.5.1.4.1.1.88")
"""SOP classes that begin so are raw data, segmentations and registrations, structure sets, and reports: no images."""
_UID = re.compile(r"[0-9.]{1,64}")

Value = TypeVar("Value", bound=Hashable)


@dataclass(frozen=True, slots=True)
class SeriesAttributes:
    """Attributes that all frames of a volume have in common; one object for all of them."""

    series: str
    """SeriesInstanceUID."""
    modality: Modality
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
    """One plane of pixels and its position."""

    name: str
    """Name of the file in its container."""
    instance: str
    """SOPInstanceUID."""
    number: int
    """Number of the frame within its file, from 0."""
    frames: int
    """Frames of its file."""
    offset: int
    """Bytes before the pixel element's value in the file; in a deflated file, of the inflated data set."""
    attributes: SeriesAttributes
    position: tuple[float, ...] | None
    """Centre of the first pixel in millimetres, on DICOM's axes (left, posterior, superior)."""
    orientation: tuple[float, ...] | None
    """Direction cosines of a row and of a column, six numbers."""
    pixel_spacing: tuple[float, ...] | None
    """Millimetres between rows, between columns."""
    slope: float
    intercept: float
    polyglot: bool
    """True if the preamble is that of a program or a document."""
    instance_number: int = 0
    variant: Variant | None = None
    """Values of ``variants.NAMES``."""


def pydicom_module() -> Any:
    """pydicom without its warnings: they quote the values that they complain about, which may identify a patient."""
    import pydicom

    logging.getLogger("pydicom").setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", module="pydicom")
    return pydicom


def is_dicom(container: Container, name: str) -> bool:
    """Tell a DICOM file by the mark after its preamble; an old file without one by its name's ending."""
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
        self._shared: dict[Hashable, Hashable] = {}

    def _intern(self, value: Value) -> Value:
        return cast(Value, self._shared.setdefault(value, value))

    def frames(self, name: str) -> Sequence[FrameHeader]:
        """The frames of one file; none if it is not an image.

        Raises
        ------
        Refusal
            For a file that cannot be parsed, or ends before its pixels.
        """
        try:
            with self._container.open(name) as stream:
                return list(self._parse(name, stream))
        except Refusal:
            raise
        except Exception as error:  # pydicom raises many types for a damaged header
            message = f"not a readable DICOM file ({type(error).__name__})"
            raise Refusal(self._container.path / name, Defect.CORRUPT, message) from None

    def _parse(self, name: str, file: BinaryIO) -> Iterator[FrameHeader]:
        from pydicom.filereader import read_dataset

        where = self._container.path / name
        pydicom_module()
        polyglot = _is_foreign(file.read(4))
        meta = begin(file)
        syntax = meta.syntax
        implicit, little = syntax == ImplicitVRLittleEndian, syntax != ExplicitVRBigEndian
        stream: BinaryIO = file
        size = self._container.size(name)
        if syntax == DeflatedExplicitVRLittleEndian:
            data, ended = inflate(file, HEADER_LIMIT)
            stream, size = BytesIO(data), len(data) if ended else UNDEFINED
        head = read_dataset(
            stream,
            implicit,
            little,
            stop_when=lambda tag, vr, length: tag >= _PER_FRAME,
            defer_size=VALUE_LIMIT,
            specific_tags=[Tag(keyword) for keyword in (*_KEYWORDS.split(), *variants.NAMES)],
        )
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
            stream,
            implicit,
            little,
            stop_when=lambda tag, vr, length: tag in _PIXEL_ELEMENTS,
            defer_size=VALUE_LIMIT,
            specific_tags=[_CHARACTER_SET],
        )
        element = _element(stream, implicit, little)
        if element is None or element[0] not in _PIXEL_ELEMENTS:
            defect, message = Defect.TRUNCATED, "truncated: it ends before its pixels"
            raise Refusal(where, *((Defect.BOMB, _BOMB) if bomb else (defect, message)))
        tag, length = element
        attributes = self._attributes(head, syntax, sop_class, float_pixels=tag != _PIXELS)
        count = int(head.get("NumberOfFrames", 1) or 1)
        offset = stream.tell()
        if not 1 <= count <= MAX_FRAMES:
            raise Refusal(where, Defect.CORRUPT, f"{count} frames in one file")
        pixels = count * attributes.rows * attributes.columns * attributes.samples
        needed = pixels * attributes.allocated // 8
        if length != UNDEFINED and (length < needed or offset + needed > size):
            message = "truncated: fewer pixels than Rows, Columns and frames say"
            raise Refusal(where, Defect.TRUNCATED, message)
        shared = first_item(head, "SharedFunctionalGroupsSequence")
        common = FrameGeometry.of(head) if shared is None else FrameGeometry.of_groups(shared)
        instance = str(head.get("SOPInstanceUID", "")) or meta.instance or name
        for number in range(count):
            geometry = common.overlaid(per_frame[number]) if number < len(per_frame) else common
            yield FrameHeader(
                name=name,
                instance=instance,
                number=number,
                frames=count,
                offset=offset,
                attributes=attributes,
                position=geometry.position,
                orientation=self._intern(geometry.orientation),
                pixel_spacing=self._intern(geometry.pixel_spacing),
                slope=self._intern(1.0 if geometry.slope is None else geometry.slope),
                intercept=self._intern(geometry.intercept or 0.0),
                polyglot=polyglot,
                instance_number=int(_number(head, "InstanceNumber") or 0),
                variant=self._intern(geometry.variant),
            )

    def _per_frame(self, stream: BinaryIO, implicit: bool, little: bool) -> Iterator["FrameGeometry"]:
        """Geometry by frame, if the per-frame groups are next in the stream."""
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

    def _attributes(self, head: Any, syntax: str, sop_class: str, *, float_pixels: bool) -> SeriesAttributes:
        allocated = int(head.get("BitsAllocated", 0))
        stored = int(head.get("BitsStored", allocated))
        modality = str(head.get("Modality", ""))
        return self._intern(
            SeriesAttributes(
                series=str(head.get("SeriesInstanceUID", "")),
                modality=Modality(modality) if modality in Modality.__members__.values() else Modality.OTHER,
                sop_class=sop_class,
                frame_of_reference=str(head.get("FrameOfReferenceUID", "")),
                localizer="LOCALIZER" in [str(value).upper() for value in values_of(head, "ImageType")],
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
        )


@dataclass(frozen=True, slots=True)
class FrameGeometry:
    """Position and scale of a frame, from a plain header or from functional groups; ``None`` for missing elements."""

    position: tuple[float, ...] | None = None
    orientation: tuple[float, ...] | None = None
    pixel_spacing: tuple[float, ...] | None = None
    slope: float | None = None
    intercept: float | None = None
    variant: Variant | None = None

    @classmethod
    def of(cls, head: Any) -> "FrameGeometry":
        """Read a plain header."""
        return cls._read(head, head, head, head, variants.of_header(head))

    @classmethod
    def of_groups(cls, groups: Any) -> "FrameGeometry":
        """Read an item of functional groups."""
        names = ("PlanePositionSequence", "PlaneOrientationSequence", "PixelMeasuresSequence")
        position, orientation, measures = (first_item(groups, name) for name in names)
        scale = first_item(groups, "PixelValueTransformationSequence")
        return cls._read(position, orientation, measures, scale, variants.of_groups(groups))

    @classmethod
    def _read(
        cls, position: Any, orientation: Any, measures: Any, scale: Any, variant: Variant | None
    ) -> "FrameGeometry":
        return cls(
            _floats(position, "ImagePositionPatient", 3),
            _floats(orientation, "ImageOrientationPatient", 6),
            _floats(measures, "PixelSpacing", 2),
            _number(scale, "RescaleSlope"),
            _number(scale, "RescaleIntercept"),
            variant,
        )

    def overlaid(self, over: "FrameGeometry") -> "FrameGeometry":
        """``over``, completed by what it lacks from here."""
        pairs = ((getattr(over, name), getattr(self, name)) for name in self.__slots__)
        return FrameGeometry(*(ours if theirs is None else theirs for theirs, ours in pairs))


def _is_foreign(start: bytes) -> bool:
    """True if a preamble begins like a program, a document or an archive (TIFF is allowed, PS3.10 7.1)."""
    return start[:2] in (b"MZ", b"PK", b"#!") or start in (b"\x7fELF", b"%PDF")


class Meta(NamedTuple):
    """The elements in front of the data set."""

    syntax: str
    """Transfer syntax UID."""
    sop_class: str = ""
    instance: str = ""
    """SOPInstanceUID."""


def begin(stream: BinaryIO) -> Meta:
    """Read preamble and meta group, up to the data set; without a meta group the transfer syntax is guessed."""
    from pydicom.filereader import read_dataset

    stream.seek(0)
    start = PREAMBLE + len(MARK) if stream.read(PREAMBLE + len(MARK))[PREAMBLE:] == MARK else 0
    stream.seek(start)
    first = stream.read(8)
    stream.seek(start)
    if first[:2] != b"\x02\x00":
        return Meta(ExplicitVRLittleEndian if first[4:6].isupper() else ImplicitVRLittleEndian)
    meta = read_dataset(stream, False, True, stop_when=lambda tag, vr, length: tag >> 16 != 2, defer_size=VALUE_LIMIT)
    names = ("MediaStorageSOPClassUID", "MediaStorageSOPInstanceUID")
    syntax = str(meta.get("TransferSyntaxUID", ImplicitVRLittleEndian))
    return Meta(syntax, *(str(meta.get(name, "")) for name in names))


def _element(stream: BinaryIO, implicit: bool, little: bool) -> tuple[int, int] | None:
    """Tag and length of the sequence or pixel element that is next; the stream is then at its value."""
    order = "<" if little else ">"
    start = stream.read(8)
    if len(start) < 8:
        return None
    group, number = struct.unpack(order + "HH", start[:4])
    length = start[4:] if implicit else stream.read(4)
    return (group << 16 | number, struct.unpack(order + "L", length)[0]) if len(length) == 4 else None


def inflate(stream: BinaryIO, limit: int) -> tuple[bytes, bool]:
    """Inflate at most ``limit`` bytes of a raw deflate stream; also says if that was all of it."""
    engine = zlib.decompressobj(-zlib.MAX_WBITS)
    out = bytearray()
    while len(out) < limit and not engine.eof:
        block = engine.unconsumed_tail or stream.read(1 << 16)
        if not block:
            break
        out += engine.decompress(block, limit - len(out))
    return bytes(out), engine.eof


def _floats(dataset: Any, name: str, count: int) -> tuple[float, ...] | None:
    values = values_of(dataset, name)
    return tuple(float(value) for value in values) if len(values) == count else None


def _number(dataset: Any, name: str) -> float | None:
    value = dataset.get(name) if dataset is not None else None
    return None if value is None or value == "" else float(value)
