"""Structure sets read back by pydicom and filled again: the voxels of the label file, in the series' own space."""

import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest

from apps.imaging.dicom.series import DicomVolume, open_series
from apps.imaging.dicom.writing.rtstruct import write_rtstruct
from apps.imaging.models.model_folder import ImagingModel, read_model
from common.errors import BadInput
from tests.apps.imaging.dicom.rasters import filled
from tests.apps.imaging.dicom_files import NAME, OBLIQUE, WHOLE, series
from tests.apps.imaging.helpers import output_file, random_model
from tests.conftest import absent
from tests.promise import kept

IMPLICIT = "1.2.840.10008.1.2"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ImagingModel:
    directory = tmp_path_factory.mktemp("model")
    random_model(directory, classes=4)
    return read_model(directory)


def written(folder: Path, volume: DicomVolume, model: ImagingModel, labels: np.ndarray) -> Any:
    """The structure set of some labels, as pydicom reads it."""
    path = folder / "out.dcm"
    with write_rtstruct(path, volume, model, "key") as writer:
        for start in range(0, labels.shape[2], 4):
            writer.write(labels[..., start : start + 4])
    return pydicom.dcmread(path)


def rasterised(dataset: Any, volume: DicomVolume) -> np.ndarray:
    """Labels (x, y, z) from contours in millimetres; structure n is label n here."""
    labels = np.zeros(volume.shape, np.uint8)
    to_voxels = np.linalg.inv(volume.affine) @ np.diag([-1.0, -1.0, 1.0, 1.0])
    for structure in dataset.ROIContourSequence:
        for contour in structure.get("ContourSequence", ()):
            assert contour.ContourGeometricType == "CLOSED_PLANAR"
            points = np.array(contour.ContourData, float).reshape(-1, 3)
            assert len(points) == contour.NumberOfContourPoints
            place = np.column_stack([points, np.ones(len(points))]) @ to_voxels.T
            np.testing.assert_allclose(place[:, 2], round(place[0, 2]), atol=1e-3)
            edges = place[:, :2] + 0.5
            np.testing.assert_allclose(edges, edges.round(), atol=1e-3)  # of a voxel of 0.7 mm
            z = round(place[0, 2])
            frame = volume.slices[z]
            assert contour.ContourImageSequence[0].ReferencedSOPInstanceUID == frame.instance
            inside = filled(edges.round().astype(int), (volume.shape[1], volume.shape[0])).T
            assert not labels[..., z][inside].any()
            labels[..., z][inside] = structure.ReferencedROINumber
    return labels


@pytest.mark.parametrize("orientation", [(1, 0, 0, 0, 1, 0), (-1, 0, 0, 0, -1, 0), OBLIQUE])
def test_filled_again_it_is_the_labels(tmp_path: Path, model: ImagingModel, orientation: Any) -> None:
    series(tmp_path / "in", count=9, orientation=orientation, **WHOLE)
    volume = open_series(tmp_path / "in")
    labels = np.random.default_rng(0).integers(0, 4, volume.shape).astype(np.uint8)
    labels[..., 3] = 0
    dataset = written(tmp_path, volume, model, labels)
    np.testing.assert_array_equal(rasterised(dataset, volume), labels)
    assert dataset.file_meta.TransferSyntaxUID == IMPLICIT
    assert dataset.PatientName == NAME and dataset.Modality == "RTSTRUCT"
    assert [item.ROIName for item in dataset.StructureSetROISequence] == [label.name for label in model.labels[1:]]
    referenced = dataset.ReferencedFrameOfReferenceSequence[0].RTReferencedStudySequence[0]
    images = referenced.RTReferencedSeriesSequence[0].ContourImageSequence
    assert {item.ReferencedSOPInstanceUID for item in images} == {frame.instance for frame in volume.slices}
    assert "research use only" in dataset.StructureSetDescription.lower()


def test_the_command_writes_it_within_its_plan(run, tmp_path: Path, model: ImagingModel) -> None:  # type: ignore[no-untyped-def]
    from tests.apps.imaging.helpers import read_labels

    series(tmp_path / "in", count=20, **WHOLE)
    done = run("apps.imaging", "infer", tmp_path / "in", "-m", model.directory, "-o", tmp_path / "out", "--json",
               "--output-type", "nifti,dicom-rtstruct")  # fmt: skip
    assert done.code == 0, done.err
    kept(done.record)
    dataset = pydicom.dcmread(output_file(tmp_path / "out", ending=".rtstruct.dcm"))
    labels = read_labels(output_file(tmp_path / "out"))
    np.testing.assert_array_equal(rasterised(dataset, open_series(tmp_path / "in")), labels)
    assert len(np.unique(labels)) > 1 and NAME not in done.err + done.out


def test_conforms(tmp_path: Path, model: ImagingModel) -> None:
    if shutil.which("dciodvfy") is None:
        absent("dciodvfy")
    series(tmp_path / "in", **WHOLE)
    volume = open_series(tmp_path / "in")
    labels = np.random.default_rng(0).integers(0, 3, volume.shape).astype(np.uint8)
    written(tmp_path, volume, model, labels)
    told = subprocess.run(["dciodvfy", tmp_path / "out.dcm"], capture_output=True, text=True).stderr
    assert "RTStructureSet" in told
    assert not [line for line in told.splitlines() if line.startswith("Error")], told


def test_noise_is_refused_and_leaves_nothing(
    tmp_path: Path, model: ImagingModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    from apps.imaging.dicom.writing import contours

    series(tmp_path / "in", **WHOLE)
    volume = open_series(tmp_path / "in")
    monkeypatch.setattr(contours, "MOST_CORNERS", 20)
    with pytest.raises(BadInput, match="dicom-seg"):
        written(tmp_path, volume, model, np.random.default_rng(0).integers(0, 4, volume.shape).astype(np.uint8))
    assert [path.name for path in tmp_path.iterdir()] == ["in"]
