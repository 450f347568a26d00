"""DICOM SEG written plane by plane.

highdicom makes an object with all modules and codes and no frames (``seg_header``). The item and the pixels of each
plane go to temporary files when the plane is finished, and these are joined into the object. A BINARY frame is one
segment in one plane, a LABELMAP frame one plane with a segment's number in each pixel. Empty frames are left out.
"""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from apps.imaging.dicom import part10
from apps.imaging.dicom.codes import Code, Concept
from apps.imaging.dicom.derived import dataset_of, plane_position
from apps.imaging.dicom.series import DicomVolume
from apps.imaging.models.model_folder import ImagingModel
from common.errors import BadInput
from common.files import atomic_file

MANY_SEGMENTS = 24
"""Most segments of a BINARY object, which has a frame for each segment in each plane; more make a LABELMAP."""
_REFERENCED_SERIES, _REFERENCED_INSTANCES = 0x00081115, 0x0008114A
_PER_FRAME, _PIXELS = 0x52009230, 0x7FE00010


class SegWriter:
    """Writer of a SEG's label planes, in order; made by ``write_seg``."""

    def __init__(self, volume: DicomVolume, model: ImagingModel, kind: str, items: BinaryIO, pixels: BinaryIO) -> None:
        self._volume, self._binary = volume, kind == "BINARY"
        self._values = [label.value for label in model.labels if label.value]
        self._items, self._pixels = items, pixels
        self._packer = part10.BitPacker(pixels)
        self._dtype = np.dtype("u1" if len(self._values) < 256 else "<u2")
        self._numbers = np.zeros(max(self._values) + 1, self._dtype)
        self._numbers[self._values] = np.arange(1, len(self._values) + 1)
        self._plane = self.frames = 0

    def write(self, slab: npt.NDArray[Any]) -> None:
        """Append finished planes, (x, y, k)."""
        for k in range(slab.shape[2]):
            self._write_plane(np.ascontiguousarray(slab[..., k].T))
            self._plane += 1

    def _write_plane(self, labels: npt.NDArray[Any]) -> None:
        present = np.bincount(labels.reshape(-1), minlength=len(self._numbers))[1:]
        values = [int(value) + 1 for value in np.flatnonzero(present)]
        if not values:
            return
        if self._binary:
            for value in values:
                self._add_frame(int(self._numbers[value]))
                self._packer.write(labels == value)
        else:
            self._add_frame(None)
            self._pixels.write(self._numbers[labels].tobytes())

    def finish(self) -> None:
        """Complete the temporary files; a segmentation without a voxel still has one frame."""
        if not self.frames:
            self._plane = 0
            self._add_frame(1 if self._binary else None)
            x, y, _ = self._volume.shape
            if self._binary:
                self._packer.write(np.zeros((y, x), bool))
            else:
                self._pixels.write(bytes(x * y * self._dtype.itemsize))
        self._packer.close()

    def _add_frame(self, segment: int | None) -> None:
        """Write a frame's item to its temporary file."""
        from pydicom.dataset import Dataset

        item, content, position = Dataset(), Dataset(), Dataset()
        position.ImagePositionPatient = [_decimal(value) for value in plane_position(self._volume, self._plane)]
        content.DimensionIndexValues = [*([] if segment is None else [segment]), self._plane + 1]
        item.FrameContentSequence, item.PlanePositionSequence = [content], [position]
        if segment is not None:
            number = Dataset()
            number.ReferencedSegmentNumber = segment
            item.SegmentIdentificationSequence = [number]
        if not self._volume.repaired:
            item.DerivationImageSequence = [self._derivation()]
        self._items.write(part10.item(part10.encoded(item)))
        self.frames += 1

    def _derivation(self) -> Any:
        """The image that was segmented in this plane."""
        from pydicom.dataset import Dataset

        frame = self._volume.slices[self._plane]
        derivation, source = Dataset(), Dataset()
        source.ReferencedSOPClassUID, source.ReferencedSOPInstanceUID = frame.attributes.sop_class, frame.instance
        if frame.frames > 1:
            source.ReferencedFrameNumber = frame.number + 1
        source.SpatialLocationsPreserved = "YES"
        source.PurposeOfReferenceCodeSequence = [_code(Concept.SOURCE_IMAGE.value)]
        derivation.SourceImageSequence = [source]
        derivation.DerivationCodeSequence = [_code(Concept.SEGMENTATION.value)]
        return derivation


@contextmanager
def write_seg(path: Path, volume: DicomVolume, model: ImagingModel, template: Any, kind: str) -> Iterator[SegWriter]:
    """Write a SEG that appears only when the block ends without an error.

    Parameters
    ----------
    template
        From ``seg_header``.
    kind
        ``"BINARY"`` or ``"LABELMAP"``.

    Raises
    ------
    BadInput
        If it has more pixels than an uncompressed DICOM object can hold.
    """
    with (
        tempfile.TemporaryFile(dir=path.parent) as items,
        tempfile.TemporaryFile(dir=path.parent) as pixels,
        atomic_file(path) as draft,
    ):
        writer = SegWriter(volume, model, kind, items, pixels)
        yield writer
        writer.finish()
        length = pixels.tell()
        if length > part10.LARGEST_PIXELS:
            message = f"{length} bytes of pixels are more than a DICOM object holds; --seg-type labelmap"
            raise BadInput(f"{path.name}: {message}", public="SEG too large")
        template.NumberOfFrames = writer.frames
        with draft.open("wb") as stream:
            _join(stream, template, volume, items, pixels, length)


def _join(stream: BinaryIO, dataset: Any, volume: DicomVolume, items: Any, pixels: Any, length: int) -> None:
    """Write header, references to all images, frames' items and pixels, in the order of their tags."""
    part10.begin_file(stream, dataset.file_meta)
    part10.write_elements(stream, dataset, 0x00080000, _REFERENCED_SERIES)
    part10.begin_sequence(stream, _REFERENCED_SERIES)
    part10.begin_item(stream)
    part10.write_sequence(stream, _REFERENCED_INSTANCES, _references(volume))
    stream.write(part10.encoded(dataset_of(SeriesInstanceUID=volume.slices[0].attributes.series)))
    part10.end_item(stream)
    part10.end_sequence(stream)
    part10.write_elements(stream, dataset, _REFERENCED_SERIES + 1, _PER_FRAME)
    part10.begin_sequence(stream, _PER_FRAME)
    part10.copy(items, stream)
    part10.end_sequence(stream)
    part10.begin_pixels(stream, length, words=dataset.BitsAllocated == 16)
    part10.copy(pixels, stream)
    stream.write(bytes(length % 2))


def _references(volume: DicomVolume) -> Iterator[bytes]:
    once = dict.fromkeys((frame.attributes.sop_class, frame.instance) for frame in volume.slices)
    for sop_class, instance in once:
        yield part10.encoded(dataset_of(ReferencedSOPClassUID=sop_class, ReferencedSOPInstanceUID=instance))


def _code(code: Code) -> Any:
    return dataset_of(CodeValue=code.value, CodingSchemeDesignator=code.scheme, CodeMeaning=code.meaning)


def _decimal(value: float) -> str:
    """The nearest decimal string of at most 16 characters (PS3.5 6.2)."""
    for digits in range(16, 0, -1):
        text = f"{value:.{digits}g}"
        if len(text) <= 16:
            return text
    return text


def choose_kind(seg_type: str, model: ImagingModel) -> str:
    """Segmentation type for ``--seg-type``; ``auto``: BINARY, which every viewer reads, unless segments are many."""
    if seg_type != "auto":
        return seg_type.upper()
    return "BINARY" if len(model.labels) - 1 <= MANY_SEGMENTS else "LABELMAP"


def seg_bytes(volume: DicomVolume) -> int:
    """Bytes of writing a SEG: one plane's labels, mask and bits, and blocks of the temporary files."""
    x, y, _ = volume.shape
    return x * y * 5 + 4 * part10.COPY_BYTES
