"""Volumes, DICOM series and training sets of ordinary kinds, each written from its description."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from apps.imaging.bench.peers import nnunet_folder

DTYPES = ("int16", "uint8", "uint16", "float32", "float64")
ORIENTATIONS = ("RAS", "LPS", "LAS", "PIR", "SRA")
PATCH = (16, 32, 32)
"""Patch (z, y, x) of the nnU-Net models that are written here."""


@dataclass(frozen=True)
class Volume:
    """One NIfTI file or DICOM series, described."""

    shape: tuple[int, int, int] = (30, 40, 30)
    spacing: tuple[float, float, float] = (1.0, 1.0, 1.0)
    dtype: str = "int16"
    orientation: str = "RAS"
    tilt: float = 0.0
    """Angle in radians about the first axis."""
    form: str = "nii.gz"
    """``nii``, ``nii.gz`` or ``dicom``."""
    scaled: bool = False
    seed: int = 0

    def write(self, folder: Path, name: str) -> Path:
        """Write it below ``folder`` and return its path, a file or a folder."""
        if self.form == "dicom":
            return self._write_dicom(folder / name)
        return self._write_nifti(folder / f"{name}.{self.form}")

    def voxels(self) -> npt.NDArray[np.float64]:
        """A bright blob in noise, between 0 and 250."""
        random = np.random.default_rng(self.seed)
        axes = np.meshgrid(*(np.linspace(-1, 1, size) for size in self.shape), indexing="ij", sparse=True)
        blob = np.exp(-4 * sum(axis**2 for axis in axes))
        return np.asarray(200 * blob + random.integers(0, 50, self.shape), np.float64)

    def _write_nifti(self, path: Path) -> Path:
        import nibabel as nib

        sine, cosine = np.sin(self.tilt), np.cos(self.tilt)
        turn = np.array([[1, 0, 0], [0, cosine, -sine], [0, sine, cosine]])
        affine = np.eye(4)
        affine[:3, :3] = turn @ np.diag(self.spacing)
        image: Any = nib.Nifti1Image(self.voxels().astype(self.dtype), affine)
        if self.scaled:
            image.header.set_slope_inter(2.0, -10.0)
        wanted = nib.orientations.axcodes2ornt(self.orientation)
        nib.save(
            image.as_reoriented(nib.orientations.ornt_transform(nib.orientations.axcodes2ornt("RAS"), wanted)), path
        )
        return path

    def _write_dicom(self, folder: Path) -> Path:
        import pydicom
        from pydicom.dataset import FileMetaDataset
        from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

        folder.mkdir(parents=True)
        voxels = self.voxels().astype(np.int16)
        study, series, frame = generate_uid(), generate_uid(), generate_uid()
        for z in range(self.shape[2]):
            data = pydicom.Dataset()
            data.file_meta = FileMetaDataset()
            data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
            data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = CTImageStorage
            data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = generate_uid()
            data.PatientName, data.PatientID, data.Modality = "RANDOM^STUDY", "1", "CT"
            data.StudyInstanceUID, data.SeriesInstanceUID, data.FrameOfReferenceUID = study, series, frame
            data.Columns, data.Rows = self.shape[:2]
            data.PixelSpacing = [self.spacing[1], self.spacing[0]]
            data.ImageOrientationPatient, data.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [0, 0, z * self.spacing[2]]
            data.SamplesPerPixel, data.PhotometricInterpretation, data.PixelRepresentation = 1, "MONOCHROME2", 1
            data.BitsAllocated, data.BitsStored, data.HighBit = 16, 16, 15
            data.RescaleSlope, data.RescaleIntercept = 1, -10 if self.scaled else 0
            data.PixelData = np.ascontiguousarray(voxels[..., z].T).tobytes()
            data.save_as(folder / f"{z:04d}.dcm", enforce_file_format=True)
        return folder


@dataclass(frozen=True)
class Model:
    """An nnU-Net folder with random weights, or an installed model by name."""

    name: str = "hippocampus"
    classes: int = 3
    spacing: tuple[float, float, float] = (1.0, 1.0, 1.0)
    folds: int = 1

    def write(self, folder: Path) -> str:
        """Write it below ``folder``, unless it is installed; returns what ``-m`` takes."""
        if self.name != "nnunet":
            return self.name
        path = folder / "nnunet"
        nnunet_folder.write(
            path, seeds=range(self.folds), classes=self.classes, patch_size=list(PATCH), spacing=list(self.spacing)
        )
        return str(path)


def write_training_set(folder: Path, *, cases: int, side: int, classes: int) -> Path:
    """Write a Decathlon folder of shells around a bright ball; returns it."""
    import nibabel as nib

    for index in range(cases):
        volume = Volume(shape=(side, side + 2, side), seed=index)
        values = volume.voxels()
        label = np.digitize(values, np.linspace(80, 220, classes)[:-1]).astype(np.uint8)
        for part, content in (("imagesTr", values.astype(np.int16)), ("labelsTr", label)):
            (folder / part).mkdir(parents=True, exist_ok=True)
            nib.save(nib.Nifti1Image(content, np.eye(4)), folder / part / f"case_{index}.nii.gz")
    labels = {str(number): f"class {number}" for number in range(classes)}
    (folder / "dataset.json").write_text(json.dumps({"modality": {"0": "MRI"}, "labels": labels}))
    return folder
