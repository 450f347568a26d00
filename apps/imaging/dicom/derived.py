"""What an object derived from a series takes over from it: patient, study, frame of reference, and fixed UIDs.

The one full header that is read stays in this process; patient data goes from it into the object and nowhere else.
"""

import uuid
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from apps.imaging.dicom.headers import (
    BIG_ENDIAN,
    DEFLATED,
    EXPLICIT,
    HEADER_LIMIT,
    IMPLICIT,
    VALUE_LIMIT,
    begin,
    inflate,
    pydicom_module,
)
from apps.imaging.dicom.series import DicomVolume
from apps.imaging.models.model_folder import ImagingModel
from apps.imaging.volumes.volume import Volume, spacing
from common import __version__
from common.errors import BadInput

MANUFACTURER = "peakline"
STATEMENT = "Research use only. Not a medical device."
_NEEDED = ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID")
_PLAIN_CLASS = {
    "CT": "1.2.840.10008.5.1.4.1.1.2",
    "MR": "1.2.840.10008.5.1.4.1.1.4",
    "PT": "1.2.840.10008.5.1.4.1.1.128",
}


def dicom_series(volume: Volume, path: Path) -> DicomVolume:
    """The volume, if DICOM objects can be derived from it.

    Raises
    ------
    BadInput
        For NIfTI, and for a series without the UIDs by which an object would refer to it.
    """
    if not isinstance(volume, DicomVolume):
        line = f"{path}: a NIfTI file has no patient, study or frame of reference; DICOM output needs a DICOM series"
        raise BadInput(line, public="DICOM output from NIfTI")
    head = source_header(volume)
    absent = [name for name in _NEEDED if not str(head.get(name, ""))]
    if absent:
        raise BadInput(f"{path}: without {', '.join(absent)} no DICOM object can refer to it", public="UIDs absent")
    return volume


def source_header(volume: DicomVolume) -> Any:
    """The first slice's header as a plain single-frame image of two pixels squared, without pixels.

    The plane's own geometry stands in it whatever form the file has, so that highdicom can derive from it.
    """
    pydicom_module()
    from pydicom.dataset import FileMetaDataset
    from pydicom.filereader import read_dataset

    frame = volume.slices[0]
    with volume.container.open(frame.name) as stream:
        meta = begin(stream)
        implicit, little = meta.syntax == IMPLICIT, meta.syntax != BIG_ENDIAN
        if meta.syntax == DEFLATED:
            stream = BytesIO(inflate(stream, HEADER_LIMIT)[0])
        head = read_dataset(stream, implicit, little, stop_when=_beyond, defer_size=VALUE_LIMIT)
    for keyword in ("NumberOfFrames", "SharedFunctionalGroupsSequence", "DimensionIndexSequence"):
        head.pop(keyword, None)
    head = _copied(head)
    head.file_meta = FileMetaDataset()
    head.file_meta.TransferSyntaxUID = EXPLICIT
    kind = frame.kind
    head.SOPClassUID, head.SOPInstanceUID = _PLAIN_CLASS.get(kind.modality, kind.sop_class), frame.instance
    head.ImageOrientationPatient, head.ImagePositionPatient = list(frame.orientation or ()), list(frame.position or ())
    head.PixelSpacing = list(frame.pixel_spacing or ())
    head.SliceThickness = spacing(volume.affine)[2]
    head.Rows = head.Columns = 2
    for keyword in ("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID",
                    "AccessionNumber", "ReferringPhysicianName"):  # fmt: skip
        if keyword not in head:  # type 2: present, perhaps empty
            setattr(head, keyword, "")
    return head


def _copied(head: Any) -> Any:
    """Its public attributes that have a value, in a dataset that no longer knows in which byte order it was read.

    Groups below 0008 are of messages, file headers and directories; a damaged file may have them anywhere.
    """
    from pydicom import Dataset

    copy = Dataset()
    for tag in list(head.keys()):
        try:
            element = head[tag]
        except Exception:  # whatever pydicom makes of a damaged value: it says so on first use
            continue
        if tag.group >= 0x0008 and not tag.is_private and element.value is not None:
            copy[tag] = element
    return copy


def _beyond(tag: int, vr: str | None, length: int) -> bool:
    return tag >= 0x52009230


def derived_uid(key: str, what: str) -> str:
    """A UID that the same input, model and settings give every time (PS3.5 B.2)."""
    return f"2.25.{uuid.uuid5(uuid.NAMESPACE_OID, f'{key}/{what}').int}"


def fix_dates(dataset: Any, head: Any) -> None:
    """Take the source's dates instead of today's: the same run gives the same bytes, as its UIDs promise."""
    date = str(head.get("SeriesDate", "") or head.get("StudyDate", "") or "19700101")
    time = str(head.get("SeriesTime", "") or head.get("StudyTime", "") or "000000")
    for name, value in (("ContentDate", date), ("ContentTime", time), ("InstanceCreationDate", date),
                        ("InstanceCreationTime", time)):  # fmt: skip
        setattr(dataset, name, value)
    for equipment in dataset.get("ContributingEquipmentSequence", []):
        if "ContributionDateTime" in equipment:
            equipment.ContributionDateTime = date + time.split(".")[0]


def dataset_of(**elements: Any) -> Any:
    """A data set of these elements."""
    from pydicom.dataset import Dataset

    dataset = Dataset()
    for keyword, value in elements.items():
        setattr(dataset, keyword, value)
    return dataset


def algorithm(model: ImagingModel) -> dict[str, str]:
    """Name, version and digest of what made the labels, as the standard's attributes hold them."""
    return {
        "name": f"{MANUFACTURER} {model.kind}"[:64],
        "version": __version__,
        "parameters": f"network sha256={model.network_sha256}, weights sha256={model.weights_sha256}",
    }


def plane_position(volume: DicomVolume, plane: int) -> list[float]:
    """Of a plane of the grid, DICOM's axes: the slice's own, or the repaired grid's."""
    if not volume.repaired:
        return list(volume.slices[plane].position or ())
    place: list[float] = (volume.affine @ [0, 0, plane, 1])[:3] * [-1, -1, 1]
    return [round(float(value), 6) for value in np.asarray(place)]


@contextmanager
def without_warnings() -> Iterator[None]:
    """Without highdicom's and pydicom's warnings: they quote the patient's name."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
