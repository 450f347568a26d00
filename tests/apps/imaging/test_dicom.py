"""DICOM folders: geometry, what is refused and in which words, and pixels."""

import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from apps.imaging.dicom import holds_dicom, open_series
from apps.imaging.studies import open_volume
from apps.imaging.volume import scaled
from common.errors import InputError
from tests.apps.imaging.helpers import random_model

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


@pytest.mark.parametrize(
    "orientation",
    [(1, 0, 0, 0, 1, 0), (0, 1, 0, 0, 0, -1), (-1, 0, 0, 0, 1, 0), OBLIQUE],
    ids=["axial", "sagittal", "mirrored", "oblique"],
)
def test_geometry_maps_every_voxel_to_its_millimetres(tmp_path: Path, orientation: Any) -> None:
    stored = series(tmp_path, orientation=orientation)
    volume = open_series(tmp_path)
    assert volume.shape == (12, 10, 6)
    np.testing.assert_array_equal(read(volume), stored - 1024.0)
    # DICOM PS3.3 C.7.6.2.1.1: column index steps along the row cosines by the column spacing.
    row, column = np.array(orientation[:3]), np.array(orientation[3:])
    normal = np.cross(row, column)
    for i, j, k in [(0, 0, 0), (11, 0, 0), (0, 9, 0), (3, 4, 5)]:
        expected = np.array([-40.0, 30.0, 12.0]) + row * 0.7 * i + column * 0.8 * j + normal * 2.5 * k
        found = (volume.affine @ [i, j, k, 1])[:3]
        np.testing.assert_allclose(found, expected * [-1, -1, 1], atol=1e-4)


def test_scales_that_differ_by_slice_are_applied_by_slice(tmp_path: Path) -> None:
    stored = series(tmp_path)
    import pydicom

    for number, path in enumerate(sorted(tmp_path.iterdir())):
        data = pydicom.dcmread(path)
        data.RescaleSlope, data.RescaleIntercept = 1 + number, -number
        data.save_as(path)
    volume = open_series(tmp_path)
    assert volume.dtype == np.float32
    order = [s.path.name for s in volume.slices]
    found = read(volume)
    for z, name in enumerate(order):
        number = int(name[:3])
        np.testing.assert_array_equal(found[..., z], stored[..., z] * (1.0 + number) - number)


def test_monochrome1_is_turned_over(tmp_path: Path) -> None:
    stored = series(tmp_path, PhotometricInterpretation="MONOCHROME1")
    np.testing.assert_array_equal(read(open_series(tmp_path)), (-1 - stored) - 1024.0)


def test_two_series_are_listed_and_picked(tmp_path: Path) -> None:
    series(tmp_path / "a", count=3)
    series(tmp_path / "b", count=5, SeriesInstanceUID="1.2.9", Modality="MR")
    both = tmp_path / "both"
    both.mkdir()
    for folder in "ab":
        for path in (tmp_path / folder).iterdir():
            path.rename(both / f"{folder}{path.name}")
    with pytest.raises(InputError, match=r"2 series \(1: CT, 3 slices; 2: MR, 5 slices\); --series N\|UID picks one"):
        open_series(both)
    assert open_series(both, "2").shape[2] == 5
    assert open_series(both, "1.2.3").shape[2] == 3
    with pytest.raises(InputError, match="no series '7'"):
        open_series(both, "7")


def _duplicate(folder: Path) -> None:
    series(folder)
    (folder / "copy.dcm").write_bytes((folder / "000.dcm").read_bytes())


def _mixed(folder: Path) -> None:
    series(folder)
    write_slice(folder / "scout.dcm", np.zeros((10, 12), np.int16), (0, 0, 0), (0, 1, 0, 0, 0, -1))


def _uneven(folder: Path) -> None:
    series(folder)
    write_slice(folder / "late.dcm", np.zeros((10, 12), np.int16), (-40, 30, 12 + 2.5 * 5 + 3.1), (1, 0, 0, 0, 1, 0))


def _tilted(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    for z in range(5):
        write_slice(folder / f"{z}.dcm", np.zeros((10, 12), np.int16), (0, 0.8 * z, 2.5 * z), (1, 0, 0, 0, 1, 0))


def _deflated(folder: Path) -> None:
    from pydicom.uid import DeflatedExplicitVRLittleEndian

    series(folder, count=2)
    import pydicom

    for path in folder.iterdir():
        data = pydicom.dcmread(path)
        data.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
        data.save_as(path)


DEFECTS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "missing": (
        lambda f: series(f, skip=(2,)),
        "a slice is missing between slices 2 and 3 of 5: 5.00 mm apart, 2.50 mm",
    ),
    "uneven": (_uneven, "uneven spacing: 3.10 mm between slices 6 and 7 of 7"),
    "duplicate": (_duplicate, "lie in the same place"),
    "mixed": (_mixed, "different orientations"),
    "tilted": (_tilted, "tilted gantry"),
    "single": (lambda f: series(f, count=1), "one slice is not a volume"),
    "empty": (lambda f: (f / "notes.txt").write_text("x"), "no DICOM images"),
    "deflated": (_deflated, "deflated"),
    "colour": (lambda f: series(f, SamplesPerPixel=3), "colour"),
    "position": (lambda f: series(f, ImagePositionPatient=None), "without ImageOrientation, ImagePosition"),
    "damaged": (lambda f: (f / "a.dcm").write_bytes(bytes(128) + b"DICM" + b"\x02\x00" * 90), "DICOM"),
}


@pytest.mark.parametrize("defect", DEFECTS)
def test_defects_are_refused_in_one_line_without_the_patients_name(tmp_path: Path, defect: str) -> None:
    make, says = DEFECTS[defect]
    make(tmp_path)
    with pytest.raises(InputError) as caught:
        open_series(tmp_path)
    line = str(caught.value)
    assert says in line and "\n" not in line
    assert "PLANTED" not in line and str(tmp_path) not in caught.value.public


def test_a_truncated_pixel_is_bad_input(tmp_path: Path) -> None:
    series(tmp_path)
    path = sorted(tmp_path.iterdir())[0]
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match="pixels cannot be decoded"):
        read(open_series(tmp_path))


@pytest.fixture(scope="session")
def archives(dataset: Any, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path]:
    """``archives("mr-t1", "SAG-anon")`` is a folder of a real archive, which is unpacked once."""
    unpacked: dict[str, Path] = {}

    def folder(archive: str, name: str) -> Path:
        if archive not in unpacked:
            unpacked[archive] = tmp_path_factory.mktemp("dicom")
            (found,) = dataset("dicom").glob(f"{archive}*.tar.xz")
            with tarfile.open(found) as tar:
                tar.extractall(unpacked[archive], filter="data")
        return unpacked[archive] / name

    return folder


def test_real_oblique_sagittal_series(archives: Callable[[str, str], Path]) -> None:
    volume = open_series(archives("mr-t1-siemens", "SAG-anon"))
    assert volume.shape == (256, 256, 192)
    from nibabel.orientations import aff2axcodes

    assert "".join(aff2axcodes(volume.affine)) == "PIR"
    edges = np.linalg.norm(volume.affine[:3, :3], axis=0)
    np.testing.assert_allclose(edges, [0.859375, 0.859375, 0.9], atol=1e-3)
    first, last = volume.slices[0], volume.slices[-1]
    for part, z in ((first, 0), (last, 191)):
        np.testing.assert_allclose((volume.affine @ [0, 0, z, 1])[:3], np.array(part.position) * [-1, -1, 1], atol=1e-3)


FAILING = "dicom2nifti/tests/data/"


@pytest.mark.parametrize(
    ("folder", "says"),
    [
        ("failing/sliceincrement/001", "a slice is missing"),
        ("failing/sliceorientation/001", "different orientations"),
        ("failing/notavolume/001", "same place"),
        ("failing/gantrytilting/001", "tilted gantry"),
        ("generic/compressed_jpegls/001", "JPEG-LS"),
        ("philips_enhanced/anatomical/001", "multi-frame"),
        ("generic/compressed_rle/001", None),
        ("generic/anatomical/001_implicit", None),
    ],
)
def test_real_defects(archives: Callable[[str, str], Path], folder: str, says: str | None) -> None:
    path = archives("weird", FAILING + folder)
    if says is None:
        assert np.isfinite(read(open_series(path))).all()
    else:
        with pytest.raises(InputError, match=says):
            open_series(path)


def test_rle_gives_the_pixels_of_the_plain_series(tmp_path: Path) -> None:
    import pydicom
    from pydicom.uid import RLELossless

    stored = series(tmp_path)
    for path in tmp_path.iterdir():
        data = pydicom.dcmread(path)
        data.compress(RLELossless)
        data.save_as(path)
    np.testing.assert_array_equal(read(open_series(tmp_path)), stored - 1024.0)


def test_infer_reads_a_series_and_keeps_its_geometry(run: Any, tmp_path: Path) -> None:
    import nibabel as nib

    series(tmp_path / "study", orientation=OBLIQUE)
    random_model(tmp_path / "model", patch=(8, 8, 4), spacing=(0.7, 0.8, 2.5))
    done = run(
        "apps.imaging",
        "infer",
        tmp_path / "study",
        "-m",
        tmp_path / "model",
        "-o",
        tmp_path / "out",
        "--preview",
        "--json",
    )
    assert done.code == 0, done.err
    written = nib.load(tmp_path / "out" / "study-0001.nii.gz")
    assert written.shape == (12, 10, 6)
    np.testing.assert_allclose(written.affine, open_volume(tmp_path / "study").affine, atol=1e-4)
    for name in ("run.json", "studies.csv", "study-0001.nii.gz", "study-0001.png"):
        assert b"PLANTED" not in (tmp_path / "out" / name).read_bytes()
    shown = run("apps.imaging", "inspect", tmp_path / "study")
    assert shown.code == 0 and "CT, 6 slices" in shown.out and "PLANTED" not in shown.out
    assert holds_dicom(tmp_path / "study")
