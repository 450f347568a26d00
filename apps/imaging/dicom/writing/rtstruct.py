"""RT Structure Set written plane by plane: the outlines of each class as closed planar contours.

Each structure's contours go to a temporary file when a plane is finished, and these are joined into the object, whose
sequences nest by structure. It has implicit VR, because an explicit decimal string ends at 64 KiB and a contour may be
longer. Outlines follow voxel edges, so that filling them gives the same voxels; holes are keyholes (``contours``).
"""

import struct
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any, BinaryIO

import numpy as np
import numpy.typing as npt
from pydicom.uid import UID, ImplicitVRLittleEndian, RTStructureSetStorage

from apps.imaging.dicom import part10
from apps.imaging.dicom.derived import (
    MANUFACTURER,
    STATEMENT,
    algorithm,
    dataset_of,
    derived_uid,
    fix_dates,
    plane_position,
    source_header,
)
from apps.imaging.dicom.series import DicomVolume
from apps.imaging.dicom.writing.contours import CORNER_BYTES, MOST_CORNERS, Points, TooRagged, outlines
from apps.imaging.models.model_folder import ImagingModel, Label
from common import __version__
from common.errors import BadInput, UsageError
from common.files import atomic_file

STUDY_CLASS = UID("1.2.840.10008.3.1.2.3.1")
"""Detached study management: retired, but the standard still refers to a study by it."""
MOST_STRUCTURES = 400
"""Each has a temporary file of its own open while labels are written."""
SPOOL_BYTES = 1 << 13
"""Buffer of a temporary file."""
_REFERENCED_FRAME, _STRUCTURES, _CONTOURS = 0x30060010, 0x30060020, 0x30060039
_STUDY, _SERIES, _IMAGES = 0x30060012, 0x30060014, 0x30060016
_CONTOUR_SEQUENCE = 0x30060040


class RtstructWriter:
    """Writer of a structure set's label planes, in order; made by ``write_rtstruct``."""

    def __init__(self, volume: DicomVolume, spools: Mapping[int, IO[bytes]]) -> None:
        self._volume, self._spools = volume, spools
        self._counts = dict.fromkeys(spools, 0)
        self._plane = 0
        # On DICOM's axes; a voxel's centre is half a voxel from its edges.
        turn = np.diag([-1.0, -1.0, 1.0]) @ volume.affine[:3, :2]
        self._along_columns, self._along_rows = turn.T

    def write(self, slab: npt.NDArray[Any]) -> None:
        """Append finished planes, (x, y, k).

        Raises
        ------
        BadInput
            If a class has more than ``MOST_CORNERS`` corners in one plane: that is noise.
        """
        for k in range(slab.shape[2]):
            labels = np.ascontiguousarray(slab[..., k].T)
            for value in np.flatnonzero(np.bincount(labels.reshape(-1))).tolist():
                if value in self._spools:
                    self._write_structure(value, labels == value)
            self._plane += 1

    def _write_structure(self, value: int, mask: npt.NDArray[np.bool_]) -> None:
        try:
            contours = outlines(mask)
        except TooRagged:
            message = f"a class has more than {MOST_CORNERS} corners in one plane; use dicom-seg"
            raise BadInput(f"{self._volume.path}: {message}", public="too ragged for contours") from None
        for points in contours:
            self._counts[value] += 1
            self._spools[value].write(self._contour(points, self._counts[value]))

    def _contour(self, points: Points, number: int) -> bytes:
        """One item of a structure's contour sequence."""
        columns, rows = points[:, :1] - 0.5, points[:, 1:] - 0.5
        corner = np.array(plane_position(self._volume, self._plane))
        positions = corner + columns * self._along_columns + rows * self._along_rows
        data = "\\".join(f"{value:.4f}".rstrip("0").rstrip(".") for value in positions.reshape(-1).tolist())
        elements = [(0x30060042, "CLOSED_PLANAR"), (0x30060046, str(len(points))), (0x30060048, str(number))]
        content = b"" if self._volume.repaired else self._image()
        content += b"".join(_element(tag, text) for tag, text in (*elements, (0x30060050, data)))
        return part10.item(content)

    def _image(self) -> bytes:
        """The slice in whose plane a contour lies."""
        frame = self._volume.slices[self._plane]
        reference = dataset_of(
            ReferencedSOPClassUID=frame.attributes.sop_class, ReferencedSOPInstanceUID=frame.instance
        )
        if frame.frames > 1:
            reference.ReferencedFrameNumber = frame.number + 1
        content = part10.item(part10.encoded(reference, implicit=True))
        return struct.pack("<HHL", _IMAGES >> 16, _IMAGES & 0xFFFF, len(content)) + content


def _element(tag: int, text: str) -> bytes:
    """A string in implicit VR, padded with a space to an even length."""
    value = text.encode("ascii")
    value += b" " * (len(value) % 2)
    return struct.pack("<HHL", tag >> 16, tag & 0xFFFF, len(value)) + value


@contextmanager
def write_rtstruct(path: Path, volume: DicomVolume, model: ImagingModel, key: str) -> Iterator[RtstructWriter]:
    """Write a structure set that appears only when the block ends without an error.

    Parameters
    ----------
    key
        Digest from which UIDs are derived.
    """
    labels = structures(model.labels)
    with ExitStack() as stack:
        spools = {
            label.value: stack.enter_context(tempfile.TemporaryFile(dir=path.parent, buffering=SPOOL_BYTES))
            for label in labels
        }
        draft = stack.enter_context(atomic_file(path))
        yield RtstructWriter(volume, spools)
        with draft.open("wb") as stream:
            _join(stream, _header(volume, model, key), volume, labels, spools)


def structures(labels: Sequence[Label]) -> list[Label]:
    """The classes that become structures: all but background.

    Raises
    ------
    UsageError
        If they are more than ``MOST_STRUCTURES``.
    """
    classes = [label for label in labels if label.value]
    if len(classes) > MOST_STRUCTURES:
        raise UsageError(
            f"--output-type dicom-rtstruct: {len(classes)} classes, at most {MOST_STRUCTURES}; --roi-subset picks some"
        )
    return classes


def _header(volume: DicomVolume, model: ImagingModel, key: str) -> Any:
    """The object without the sequences that grow with the volume."""
    from pydicom.dataset import Dataset, FileMetaDataset

    head, made = source_header(volume), algorithm(model)
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = RTStructureSetStorage
    instance = UID(derived_uid(key, "rtstruct"))
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = instance
    dataset.SpecificCharacterSet = "ISO_IR 192"
    for keyword in ("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "PatientAge", "StudyInstanceUID",
                    "StudyDate", "StudyTime", "StudyID", "StudyDescription", "AccessionNumber",
                    "ReferringPhysicianName", "FrameOfReferenceUID"):  # fmt: skip
        if keyword in head:
            setattr(dataset, keyword, head[keyword].value)
    dataset.Modality, dataset.SeriesInstanceUID = "RTSTRUCT", UID(derived_uid(key, "rtstruct series"))
    dataset.SeriesNumber, dataset.InstanceNumber = 2000 + int(head.get("SeriesNumber", None) or 0), 1
    dataset.SeriesDescription = f"Structures, {model.kind}"[:64]
    dataset.OperatorsName = dataset.PositionReferenceIndicator = ""
    dataset.Manufacturer, dataset.ManufacturerModelName = MANUFACTURER, "imaging infer"
    dataset.SoftwareVersions, dataset.DeviceSerialNumber = __version__, model.network_sha256[:16]
    fix_dates(dataset, head)
    dataset.StructureSetLabel, dataset.StructureSetName = "SEGMENTATION", made["name"]
    dataset.StructureSetDescription = f"{STATEMENT} {made['name']} {made['version']}, {made['parameters']}"
    dataset.StructureSetDate, dataset.StructureSetTime = dataset.ContentDate, dataset.ContentTime
    del dataset.ContentDate, dataset.ContentTime
    dataset.StructureSetROISequence, dataset.RTROIObservationsSequence = [], []
    frame_of_reference = str(head.FrameOfReferenceUID)
    for number, label in enumerate(structures(model.labels), start=1):
        dataset.StructureSetROISequence.append(
            dataset_of(
                ROINumber=number,
                ReferencedFrameOfReferenceUID=frame_of_reference,
                ROIName=label.name[:64],
                ROIGenerationAlgorithm="AUTOMATIC",
                ROIGenerationDescription=f"{made['name']} {made['version']}"[:64],
            )
        )
        observation = dataset_of(ObservationNumber=number, ReferencedROINumber=number)
        observation.RTROIInterpretedType, observation.ROIInterpreter = "", ""
        if label.code:
            scheme, value, meaning = label.code
            code = dataset_of(CodeValue=value, CodingSchemeDesignator=scheme, CodeMeaning=meaning[:64])
            observation.RTROIIdentificationCodeSequence = [code]
        dataset.RTROIObservationsSequence.append(observation)
    dataset.ApprovalStatus = "UNAPPROVED"
    return dataset


def _join(
    stream: BinaryIO, dataset: Any, volume: DicomVolume, labels: list[Label], spools: Mapping[int, IO[bytes]]
) -> None:
    """Write the object in the order of its tags."""
    part10.begin_file(stream, dataset.file_meta)
    part10.write_elements(stream, dataset, 0x00080000, _REFERENCED_FRAME, implicit=True)
    _write_references(stream, dataset, volume)
    part10.write_elements(stream, dataset, _STRUCTURES, _CONTOURS, implicit=True)
    part10.begin_sequence(stream, _CONTOURS, implicit=True)
    for number, label in enumerate(labels, start=1):
        part10.begin_item(stream)
        stream.write(part10.encoded(dataset_of(ROIDisplayColor=list(label.color)), implicit=True))
        if spools[label.value].tell():
            part10.begin_sequence(stream, _CONTOUR_SEQUENCE, implicit=True)
            part10.copy(spools[label.value], stream)
            part10.end_sequence(stream)
        stream.write(part10.encoded(dataset_of(ReferencedROINumber=number), implicit=True))
        part10.end_item(stream)
    part10.end_sequence(stream)
    part10.write_elements(stream, dataset, _CONTOURS + 1, 0x7FE00000, implicit=True)


def _write_references(stream: BinaryIO, dataset: Any, volume: DicomVolume) -> None:
    """Write the references to frame of reference, study, series and all images, nested in each other."""
    first = volume.slices[0]
    part10.begin_sequence(stream, _REFERENCED_FRAME, implicit=True)
    part10.begin_item(stream)
    stream.write(part10.encoded(dataset_of(FrameOfReferenceUID=dataset.FrameOfReferenceUID), implicit=True))
    part10.begin_sequence(stream, _STUDY, implicit=True)
    part10.begin_item(stream)
    study = dataset_of(ReferencedSOPClassUID=STUDY_CLASS, ReferencedSOPInstanceUID=dataset.StudyInstanceUID)
    stream.write(part10.encoded(study, implicit=True))
    part10.begin_sequence(stream, _SERIES, implicit=True)
    part10.begin_item(stream)
    stream.write(part10.encoded(dataset_of(SeriesInstanceUID=first.attributes.series), implicit=True))
    part10.begin_sequence(stream, _IMAGES, implicit=True)
    for sop_class, instance in dict.fromkeys((frame.attributes.sop_class, frame.instance) for frame in volume.slices):
        image = dataset_of(ReferencedSOPClassUID=sop_class, ReferencedSOPInstanceUID=instance)
        stream.write(part10.item(part10.encoded(image, implicit=True)))
    part10.end_sequence(stream)
    for _ in (_SERIES, _STUDY, _REFERENCED_FRAME):
        part10.end_item(stream)
        part10.end_sequence(stream)


def rtstruct_bytes(volume: DicomVolume, classes: int) -> int:
    """Bytes of writing a structure set: one plane's labels and mask, its corners, buffers of the temporary files."""
    x, y, _ = volume.shape
    corners = min(MOST_CORNERS, 2 * (x + 1) * (y + 1))
    return x * y * 16 + CORNER_BYTES * corners + SPOOL_BYTES * classes + 2 * part10.COPY_BYTES
