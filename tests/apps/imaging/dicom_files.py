"""DICOM series that the imaging tests write for themselves."""

from pathlib import Path
from typing import Any

import numpy as np

from apps.imaging.volumes.volume import scaled

NAME = "PLANTED^NAME"
WHOLE = {
    "StudyInstanceUID": "1.2.826.0.1.1",
    "FrameOfReferenceUID": "1.2.826.0.1.2",
    "PatientID": "PLANTED-ID",
    "PatientSex": "O",
    "StudyDate": "20200102",
    "StudyTime": "101112",
    "SeriesNumber": 4,
}
"""Attributes of a study from a scanner, beyond its pixels."""


def write_slice(path: Path, pixels: np.ndarray, position: Any, orientation: Any, **more: Any) -> None:
    """One CT slice as a scanner would write it."""
    import pydicom
    from pydicom.dataset import FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

    data = pydicom.Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.SOPClassUID, data.SOPInstanceUID = CTImageStorage, generate_uid()
    data.file_meta.MediaStorageSOPClassUID, data.file_meta.MediaStorageSOPInstanceUID = (
        CTImageStorage,
        data.SOPInstanceUID,
    )
    data.PatientName, data.Modality, data.SeriesInstanceUID = NAME, "CT", "1.2.3"
    data.Rows, data.Columns = pixels.shape
    data.ImagePositionPatient, data.ImageOrientationPatient = (
        [float(p) for p in position],
        [float(o) for o in orientation],
    )
    data.PixelSpacing = [0.8, 0.7]  # between rows, between columns
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated, data.BitsStored, data.HighBit = 16, 16, 15
    data.PixelRepresentation = int(pixels.dtype.kind == "i")
    data.RescaleSlope, data.RescaleIntercept = 1, -1024
    data.PixelData = pixels.tobytes()
    for name, value in more.items():
        setattr(data, name, value)
    data.save_as(path, enforce_file_format=True)


def series(
    folder: Path,
    *,
    plane: tuple[int, int] = (12, 10),
    count: int = 6,
    seed: int = 0,
    orientation: Any = (1, 0, 0, 0, 1, 0),
    step: float = 2.5,
    skip: Any = (),
    **more: Any,
) -> np.ndarray:
    """A folder of slices, written in a shuffled order; returns the stored voxels (x, y, z)."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    voxels = random.integers(0, 3000, (*plane, count)).astype(np.int16)
    normal = np.cross(orientation[:3], orientation[3:])
    for place, z in enumerate(random.permutation(count)):
        if z not in skip:
            position = np.array([-40.0, 30.0, 12.0]) + z * step * normal
            write_slice(folder / f"{place:03d}.dcm", voxels[..., z].T.copy(), position, orientation, **more)
    return voxels


def recode(folder: Path, syntax: str) -> None:
    """Write a folder's files again in another transfer syntax, by its name in ``pydicom.uid``."""
    import pydicom

    uid = getattr(pydicom.uid, syntax)
    for path in folder.iterdir():
        data = pydicom.dcmread(path)
        if uid.is_compressed and not uid.is_deflated:
            data.compress(uid)
        elif uid.is_little_endian:
            data.file_meta.TransferSyntaxUID = uid
        else:
            data = _big_endian(data)
        data.save_as(path, enforce_file_format=True)


def _big_endian(little: Any) -> Any:
    import pydicom

    big = pydicom.Dataset()
    big.update({element.tag: element for element in little})
    big.PixelData = np.frombuffer(little.PixelData, "<i2").astype(">i2").tobytes()
    big.file_meta = little.file_meta
    big.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRBigEndian
    return big


def enhanced(path: Path, voxels: np.ndarray, orientation: Any = (1, 0, 0, 0, 1, 0), step: float = 2.5) -> None:
    """An enhanced multi-frame file of some voxels (x, y, z), its frames in a shuffled order, each with its scale."""
    import pydicom
    from pydicom.uid import EnhancedMRImageStorage

    normal = np.cross(orientation[:3], orientation[3:])
    order = np.random.default_rng(1).permutation(voxels.shape[2])
    frames = np.stack([voxels[..., z].T for z in order])
    write_slice(path, frames[0], (0, 0, 0), orientation, SOPClassUID=EnhancedMRImageStorage, Modality="MR")
    data = pydicom.dcmread(path)
    for name in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "RescaleSlope", "RescaleIntercept"):
        delattr(data, name)

    def group(name: str, **fields: Any) -> tuple[str, list[Any]]:
        item = pydicom.Dataset()
        for field, value in fields.items():
            setattr(item, field, value)
        return name, [item]

    shared, per_frame = pydicom.Dataset(), []
    for name, items in (
        group("PixelMeasuresSequence", PixelSpacing=[0.8, 0.7]),
        group("PlaneOrientationSequence", ImageOrientationPatient=[float(cosine) for cosine in orientation]),
        group("PixelValueTransformationSequence", RescaleSlope=1, RescaleIntercept=-1024, RescaleType="US"),
    ):
        setattr(shared, name, items)
    for z in order:
        position = np.array([-40.0, 30.0, 12.0]) + z * step * normal
        item = pydicom.Dataset()
        setattr(item, *group("PlanePositionSequence", ImagePositionPatient=[float(place) for place in position]))
        per_frame.append(item)
    data.SharedFunctionalGroupsSequence, data.PerFrameFunctionalGroupsSequence = [shared], per_frame
    data.NumberOfFrames, data.PixelData = len(frames), frames.tobytes()
    data.save_as(path, enforce_file_format=True)


def read(volume: Any) -> np.ndarray:
    """All voxels (x, y, z) in their own scale."""
    x, y, z = volume.shape
    stored = np.empty((z, y, x), volume.dtype)
    with volume.open() as reader:
        reader.read(stored[:2])
        reader.read(stored[2:])
    return scaled(volume, stored).transpose(2, 1, 0)


OBLIQUE = (0.9, 0.1, np.sqrt(1 - 0.82), *np.array([-0.1, 0.9, 0]) / np.sqrt(0.82))
"""Direction cosines of no axis."""
