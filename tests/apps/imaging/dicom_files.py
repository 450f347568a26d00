"""DICOM series that the imaging tests write for themselves."""

from pathlib import Path
from typing import Any

import numpy as np

from apps.imaging.volumes.volume import scaled

NAME = "PLANTED^NAME"


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
    count: int = 6,
    orientation: Any = (1, 0, 0, 0, 1, 0),
    step: float = 2.5,
    skip: Any = (),
    **more: Any,
) -> np.ndarray:
    """A folder of slices, written in a shuffled order; returns the stored voxels (x, y, z)."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    voxels = random.integers(0, 3000, (12, 10, count)).astype(np.int16)
    normal = np.cross(orientation[:3], orientation[3:])
    for place, z in enumerate(random.permutation(count)):
        if z not in skip:
            position = np.array([-40.0, 30.0, 12.0]) + z * step * normal
            write_slice(folder / f"{place:03d}.dcm", voxels[..., z].T.copy(), position, orientation, **more)
    return voxels


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
