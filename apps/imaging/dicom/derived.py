"""Attributes that a derived DICOM object takes from its series: patient, study, frame of reference, reproducible UIDs.

One full header is read and stays in this process. Patient data goes from it into the object and nowhere else.
"""

import uuid
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

from pydicom.uid import (
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    MRImageStorage,
    PositronEmissionTomographyImageStorage,
)

from apps.imaging.dicom.codes import Modality
from apps.imaging.dicom.headers import HEADER_LIMIT, VALUE_LIMIT, begin, inflate, pydicom_module
from apps.imaging.dicom.series import DicomVolume
from apps.imaging.models.model_folder import ImagingModel
from apps.imaging.volumes.volume import Volume, spacing
from common import __version__
from common.errors import BadInput

MANUFACTURER = "peakline"
STATEMENT = "Research use only. Not a medical device."
_NEEDED = ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID")
_SINGLE_FRAME_CLASS = {
    Modality.COMPUTED_TOMOGRAPHY: CTImageStorage,
    Modality.MAGNETIC_RESONANCE: MRImageStorage,
    Modality.POSITRON_EMISSION_TOMOGRAPHY: PositronEmissionTomographyImageStorage,
}


def dicom_series(volume: Volume, path: Path) -> DicomVolume:
    """Return the volume if DICOM objects can be derived from it.

    Raises
    ------
    BadInput
        For NIfTI, and for a series without the UIDs by which an object would refer to it.
    """
    if not isinstance(volume, DicomVolume):
        message = "a NIfTI file has no patient, study or frame of reference; DICOM output needs a DICOM series"
        raise BadInput(f"{path}: {message}", public="DICOM output from NIfTI")
    head = source_header(volume)
    absent = [name for name in _NEEDED if not str(head.get(name, ""))]
    if absent:
        raise BadInput(f"{path}: without {', '.join(absent)} no DICOM object can refer to it", public="UIDs absent")
    return volume


def source_header(volume: DicomVolume) -> Any:
    """The first slice's header as that of a single-frame image of 2 x 2 pixels, without pixels.

    It holds the plane's geometry as plain elements whatever form the file has, so that highdicom can derive from it.
    """
    pydicom_module()
    from pydicom.dataset import FileMetaDataset
    from pydicom.filereader import read_dataset

    frame = volume.slices[0]
    with volume.container.open(frame.name) as stream:
        meta = begin(stream)
        implicit, little = meta.syntax == ImplicitVRLittleEndian, meta.syntax != ExplicitVRBigEndian
        if meta.syntax == DeflatedExplicitVRLittleEndian:
            stream = BytesIO(inflate(stream, HEADER_LIMIT)[0])
        head = read_dataset(stream, implicit, little, stop_when=_beyond, defer_size=VALUE_LIMIT)
    for keyword in ("NumberOfFrames", "SharedFunctionalGroupsSequence", "DimensionIndexSequence"):
        head.pop(keyword, None)
    head = _copied(head)
    head.file_meta = FileMetaDataset()
    head.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    attributes = frame.attributes
    head.SOPClassUID = _SINGLE_FRAME_CLASS.get(attributes.modality, attributes.sop_class)
    head.SOPInstanceUID = frame.instance
    head.ImageOrientationPatient, head.ImagePositionPatient = list(frame.orientation or ()), list(frame.position or ())
    head.PixelSpacing = list(frame.pixel_spacing or ())
    head.SliceThickness = spacing(volume.affine)[2]
    head.Rows = head.Columns = 2
    for keyword in ("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID",
                    "AccessionNumber", "ReferringPhysicianName"):  # fmt: skip
        if keyword not in head:  # type 2: must be present, may be empty
            setattr(head, keyword, "")
    return head


def _copied(head: Any) -> Any:
    """Copy the public elements that have a value into a data set that may be written in any byte order.

    Groups below 0008, of messages, file headers and directories, are left out; a damaged file may have them anywhere.
    """
    from pydicom import Dataset

    copy = Dataset()
    for tag in list(head.keys()):
        try:
            element = head[tag]
        except Exception:  # pydicom raises many types at the first use of a damaged value
            continue
        if tag.group >= 0x0008 and not tag.is_private and element.value is not None:
            copy[tag] = element
    return copy


def _beyond(tag: int, vr: str | None, length: int) -> bool:
    return tag >= 0x52009230


def derived_uid(key: str, what: str) -> str:
    """Make a UID (PS3.5 B.2) that is the same for the same digest ``key`` and the same ``what``."""
    return f"2.25.{uuid.uuid5(uuid.NAMESPACE_OID, f'{key}/{what}').int}"


def fix_dates(dataset: Any, head: Any) -> None:
    """Replace today's dates by the source's, so that a repeated run writes the same bytes under the same UIDs."""
    date = str(head.get("SeriesDate", "") or head.get("StudyDate", "") or "19700101")
    time = str(head.get("SeriesTime", "") or head.get("StudyTime", "") or "000000")
    for name, value in (("ContentDate", date), ("ContentTime", time), ("InstanceCreationDate", date),
                        ("InstanceCreationTime", time)):  # fmt: skip
        setattr(dataset, name, value)
    for equipment in dataset.get("ContributingEquipmentSequence", []):
        if "ContributionDateTime" in equipment:
            equipment.ContributionDateTime = date + time.split(".")[0]


def dataset_of(**elements: Any) -> Any:
    """Make a data set of elements by keyword."""
    from pydicom.dataset import Dataset

    dataset = Dataset()
    for keyword, value in elements.items():
        setattr(dataset, keyword, value)
    return dataset


def algorithm(model: ImagingModel) -> dict[str, str]:
    """Name, version and digests of what made the labels, for the standard's attributes."""
    return {
        "name": f"{MANUFACTURER} {model.kind}"[:64],
        "version": __version__,
        "parameters": f"network sha256={model.network_sha256}, weights sha256={model.weights_sha256}",
    }


def plane_position(volume: DicomVolume, plane: int) -> list[float]:
    """ImagePositionPatient of a plane in millimetres: the slice's own, or the interpolated grid's."""
    if not volume.repaired:
        return list(volume.slices[plane].position or ())
    x, y, z, _ = (volume.affine @ [0, 0, plane, 1]).tolist()
    return [round(value, 6) for value in (-x, -y, z)]


@contextmanager
def without_warnings() -> Iterator[None]:
    """Suppress highdicom's and pydicom's warnings in the block: they quote the patient's name."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
