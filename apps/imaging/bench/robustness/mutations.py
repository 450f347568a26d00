"""Damaged DICOM and NIfTI files, each generated from its number; ``hostile`` reads them.

A valid file is drawn (NIfTI plain and gzipped, DICOM in every transfer syntax of pydicom's own test files, single- and
multi-frame) and then damaged in one to three ways: bits, runs of bytes, lengths, cuts, moved pieces, and elements with
values that no scanner would write. In a DICOM series one slice of three is damaged.
"""

import gzip
import io
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from common.bench.forced.damage import damaged

PLANTED = "PLANTED^NAME"
"""The patient's name in every DICOM file."""
SLICES = 3
DICOM_SEEDS = (
    "MR_small.dcm", "MR_small_implicit.dcm", "MR_small_bigendian.dcm", "MR_small_RLE.dcm",
    "MR_small_jp2klossless.dcm", "MR_small_jpeg_ls_lossless.dcm", "JPEG-lossy.dcm", "CT_small.dcm",
)  # fmt: skip
NIFTI_SEEDS = tuple((dtype, ending) for dtype in ("int16", "float32", "uint8") for ending in (".nii", ".nii.gz"))
DICOM_SHARE = 0.6
"""Share of the files that are DICOM."""
ELEMENTS: dict[str, tuple[Any, ...]] = {
    "Rows": (0, 1, 63, 65535),
    "Columns": (0, 65535),
    "BitsAllocated": (0, 1, 7, 12, 64, 65535),
    "BitsStored": (0, 1, 17, 65535),
    "HighBit": (0, 65535),
    "PixelRepresentation": (1, 2, 65535),
    "SamplesPerPixel": (0, 3, 65535),
    "NumberOfFrames": ("0", "-1", "2", "99999999999", "1e9"),
    "PhotometricInterpretation": ("MONOCHROME1", "RGB", "PALETTE COLOR", ""),
    "PixelSpacing": ([0, 0], [-1, 1], ["1e300", "1e300"], ["1e-300", "1e-300"], ["nan", "1"], [1]),
    "ImagePositionPatient": (["1e300"] * 3, ["nan", "0", "0"], [0, 0], ["inf", "0", "0"]),
    "ImageOrientationPatient": ([0] * 6, [1, 0, 0, 1, 0, 0], ["nan"] * 6, [1, 0, 0]),
    "RescaleSlope": ("0", "1e300", "nan", "-1"),
    "RescaleIntercept": ("inf", "-1e300"),
    "SOPInstanceUID": ("", "x" * 64, "1." * 32),
    "SeriesInstanceUID": ("", "1.2"),
    "Modality": ("", "PLAN" * 4),
    "ImageType": ("LOCALIZER", ["ORIGINAL", "PRIMARY", "LOCALIZER"]),
}
"""Values by element; one of them is written into a valid header."""

Random = np.random.Generator


def write_case(folder: Path, number: int) -> Path:
    """Write the damaged input with this number below ``folder``; returns the study's path, a file or a folder."""
    random = np.random.default_rng([20, number])
    if random.random() >= DICOM_SHARE:
        dtype, ending = NIFTI_SEEDS[int(random.integers(len(NIFTI_SEEDS)))]
        path = folder / f"{number:05d}{ending}"
        path.write_bytes(_damaged_nifti(valid_nifti(dtype), ending, random))
        return path
    path = folder / f"{number:05d}"
    path.mkdir(parents=True, exist_ok=True)
    seed = str(random.choice((*DICOM_SEEDS, "enhanced", "deflated")))
    names = ("0.dcm",) if seed == "enhanced" else tuple(f"{index}.dcm" for index in range(SLICES))
    hit = int(random.integers(len(names)))
    for index, name in enumerate(names):
        content = valid_dicom(seed, index)
        (path / name).write_bytes(_damaged_dicom(content, random) if index == hit else content)
    return path


def _damaged_nifti(content: bytes, ending: str, random: Random) -> bytes:
    if ending == ".nii":
        return damaged(content, random, header=352)
    if random.random() < 0.5:  # a valid gzip stream of a damaged file
        return gzip.compress(damaged(content, random, header=352), mtime=0)
    return damaged(gzip.compress(content, mtime=0), random, header=32)


def _damaged_dicom(content: bytes, random: Random) -> bytes:
    if random.random() < 0.3:
        import pydicom

        dataset = pydicom.dcmread(io.BytesIO(content))
        keyword = str(random.choice(sorted(ELEMENTS)))
        choices = ELEMENTS[keyword]
        value = choices[int(random.integers(len(choices)))]
        dataset[keyword] = pydicom.DataElement(keyword, _vr(keyword), value, validation_mode=0)
        return _saved(dataset)
    return damaged(content, random, header=2000)


def _vr(keyword: str) -> str:
    import pydicom

    return pydicom.datadict.dictionary_VR(keyword)


@cache
def valid_nifti(dtype: str) -> bytes:
    """Return a small NIfTI file of 14x12x10 voxels."""
    import nibabel as nib

    values = np.random.default_rng(0).integers(0, 200, (14, 12, 10)).astype(dtype)
    image: Any = nib.Nifti1Image(values, np.diag([1.0, 1.0, 2.0, 1.0]))
    image.header["descrip"] = PLANTED.encode()
    content: bytes = image.to_bytes()
    return content


@cache
def valid_dicom(seed: str, index: int) -> bytes:
    """Return one slice of a series made from one of pydicom's test files; ``enhanced`` contains all slices."""
    import pydicom
    from pydicom.data import get_testdata_file
    from pydicom.uid import DeflatedExplicitVRLittleEndian

    dataset: Any = pydicom.dcmread(str(get_testdata_file("MR_small.dcm" if seed in _MADE else seed, download=False)))
    dataset.PatientName = dataset.PatientID = PLANTED
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.FrameOfReferenceUID = "1.2.1", "1.2.2", "1.2.3"
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = f"1.2.4.{index + 1}"
    dataset.ImageOrientationPatient, dataset.PixelSpacing = [1, 0, 0, 0, 1, 0], [1, 1]
    dataset.ImagePositionPatient = [0, 0, index]
    if seed == "enhanced":
        _make_enhanced(dataset)
    if seed == "deflated":
        dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    return _saved(dataset)


_MADE = ("enhanced", "deflated")


def _make_enhanced(dataset: Any) -> None:
    """Turn the slice into a multi-frame object."""
    from pydicom.dataset import Dataset
    from pydicom.uid import EnhancedMRImageStorage

    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = EnhancedMRImageStorage
    dataset.NumberOfFrames, dataset.PixelData = SLICES, SLICES * dataset.PixelData
    shared, orientation, measures = Dataset(), Dataset(), Dataset()
    orientation.ImageOrientationPatient, measures.PixelSpacing = [1, 0, 0, 0, 1, 0], [1, 1]
    shared.PlaneOrientationSequence, shared.PixelMeasuresSequence = [orientation], [measures]
    dataset.SharedFunctionalGroupsSequence = [shared]
    dataset.PerFrameFunctionalGroupsSequence = []
    for index in range(SLICES):
        item, position = Dataset(), Dataset()
        position.ImagePositionPatient = [0, 0, index]
        item.PlanePositionSequence = [position]
        dataset.PerFrameFunctionalGroupsSequence.append(item)


def _saved(dataset: Any) -> bytes:
    out = io.BytesIO()
    dataset.save_as(out)
    return out.getvalue()
