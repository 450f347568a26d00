"""DICOM SEG: the voxels, places and codes that were put in, as highdicom and dciodvfy read them."""

import json
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from apps.imaging.dicom.derived import STATEMENT, dicom_series
from apps.imaging.dicom.series import DicomVolume, open_series
from apps.imaging.dicom.writing.seg import choose_kind, write_seg
from apps.imaging.dicom.writing.seg_header import build, seg_question
from apps.imaging.models.model_folder import ImagingModel, Label, read_model
from common.errors import BadInput
from tests.apps.imaging.dicom_files import NAME, OBLIQUE, WHOLE, read, series
from tests.apps.imaging.helpers import output_file, random_model, write_nifti
from tests.conftest import absent
from tests.messages import refused, says
from tests.promise import kept

LABELS = (
    Label(0, "background"),
    Label(3, "liver", ("SCT", "10200004", "Liver"), (200, 80, 60)),
    Label(9, "nothing here", None, (0, 0, 255)),
    Label(300, "spleen", ("SCT", "78961009", "Spleen"), (10, 160, 90)),
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ImagingModel:
    from dataclasses import replace

    directory = tmp_path_factory.mktemp("model")
    random_model(directory, classes=4, patch=(8, 8, 4), spacing=(0.7, 0.8, 2.5))
    return replace(read_model(directory), labels=LABELS)


def write(path: Path, volume: DicomVolume, model: ImagingModel, labels: np.ndarray, kind: str) -> Path:
    """Write labels (x, y, z) in slabs of two planes."""
    template = build(json.loads(json.dumps(seg_question(volume, model, "key", kind))))
    with write_seg(path, volume, model, template, kind) as writer:
        for start in range(0, labels.shape[2], 2):
            writer.write(labels[..., start : start + 2])
    return path


def some_labels(shape: Sequence[int]) -> np.ndarray:
    """Blocks of two of the three classes, and planes without any."""
    labels = np.zeros(shape, np.uint16)
    labels[2:7, 3:9, 1:4], labels[6:11, 1:5, 3:5] = 3, 300
    return labels


def numbers(labels: np.ndarray) -> np.ndarray:
    """The segment number of each label."""
    return np.select([labels == label.value for label in LABELS[1:]], [1, 2, 3], 0)


ORIENTATIONS = {
    "axial": (1, 0, 0, 0, 1, 0),
    "sagittal": (0, 1, 0, 0, 0, -1),
    "mirrored": (-1, 0, 0, 0, 1, 0),
    "reversed": (1, 0, 0, 0, -1, 0),
    "oblique": OBLIQUE,
}


@pytest.mark.parametrize("kind", ["BINARY", "LABELMAP"])
@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_highdicom_reads_back_every_voxel_in_its_place(
    tmp_path: Path, model: ImagingModel, kind: str, orientation: str
) -> None:
    import highdicom as hd

    series(tmp_path / "study", orientation=ORIENTATIONS[orientation], **WHOLE)
    volume = open_series(tmp_path / "study")
    labels = some_labels(volume.shape)
    seg = hd.seg.segread(write(tmp_path / "seg.dcm", volume, model, labels, kind))
    assert seg.segmentation_type.value == kind and list(seg.segment_numbers) == [1, 2, 3]
    found = seg.get_volume(combine_segments=True, skip_overlap_checks=True)
    assert found.coordinate_system.value == "PATIENT"
    for z in range(found.spatial_shape[0]):
        for row, column in ((0, 0), (9, 11), (4, 7)):
            place = (found.affine @ [z, row, column, 1])[:3]
            ours = np.linalg.inv(volume.affine) @ [*(place * [-1, -1, 1]), 1]
            index = np.rint(ours[:3]).astype(int)
            np.testing.assert_allclose((volume.affine @ [*index, 1])[:3] * [-1, -1, 1], place, atol=1e-3)
    # Voxel by voxel: each of ours, looked up by its millimetres.
    x, y, z = np.nonzero(labels)
    places = (volume.affine @ np.stack([x, y, z, np.ones_like(x)]))[:3] * [[-1], [-1], [1]]
    index = np.rint((np.linalg.inv(found.affine) @ [*places, np.ones(len(x))])[:3]).astype(int)
    np.testing.assert_array_equal(found.array[tuple(index)], numbers(labels)[x, y, z])
    assert np.count_nonzero(found.array) == len(x)


def test_codes_colours_and_references_are_there_and_the_name_is_in_the_patient_module_only(
    tmp_path: Path, model: ImagingModel
) -> None:
    import highdicom as hd
    import pydicom

    series(tmp_path / "study", **WHOLE)
    volume = open_series(tmp_path / "study")
    path = write(tmp_path / "seg.dcm", volume, model, some_labels(volume.shape), "BINARY")
    data = pydicom.dcmread(path)
    assert data.PatientName == NAME and data.PatientID == "PLANTED-ID"
    content = path.read_bytes()
    assert content.count(NAME.encode()) == 1 and content.count(b"PLANTED-ID") == 1
    assert content[:128] == bytes(128)
    assert data.FrameOfReferenceUID == WHOLE["FrameOfReferenceUID"]
    assert data.ContentDescription == STATEMENT
    first, second, third = data.SegmentSequence
    assert first.SegmentLabel == "liver" and first.SegmentedPropertyTypeCodeSequence[0].CodeValue == "10200004"
    assert second.SegmentedPropertyTypeCodeSequence[0].CodeMeaning == "Tissue"
    made = third.SegmentationAlgorithmIdentificationSequence[0]
    assert model.network_sha256 in made.AlgorithmParameters and made.AlgorithmName == "peakline segresnet"
    color = hd.color.CIELabColor.from_dicom_value(first.RecommendedDisplayCIELabValue)
    np.testing.assert_allclose(color.to_rgb(), (200, 80, 60), atol=1)
    references = data.ReferencedSeriesSequence[0].ReferencedInstanceSequence
    instances = {frame.instance for frame in volume.slices}
    assert {item.ReferencedSOPInstanceUID for item in references} == instances
    sources = [item.DerivationImageSequence[0].SourceImageSequence[0] for item in data.PerFrameFunctionalGroupsSequence]
    places = [item.PlanePositionSequence[0].ImagePositionPatient for item in data.PerFrameFunctionalGroupsSequence]
    by_instance = {frame.instance: frame.position for frame in volume.slices}
    for source, place in zip(sources, places, strict=True):
        np.testing.assert_allclose(place, by_instance[source.ReferencedSOPInstanceUID], atol=1e-3)
    again = write(tmp_path / "again.dcm", volume, model, some_labels(volume.shape), "BINARY")
    assert again.read_bytes() == content


@pytest.mark.parametrize("found", [True, False])
def test_dciodvfy_finds_no_error(tmp_path: Path, model: ImagingModel, found: bool) -> None:
    if shutil.which("dciodvfy") is None:
        absent("dciodvfy (Debian package dicom3tools)")
    series(tmp_path / "study", **WHOLE)
    volume = open_series(tmp_path / "study")
    labels = some_labels(volume.shape) * found
    path = write(tmp_path / "seg.dcm", volume, model, labels, "BINARY")
    done = subprocess.run(["dciodvfy", path], capture_output=True, text=True)
    assert "Error" not in done.stderr + done.stdout and "Segmentation" in done.stderr + done.stdout


def test_a_real_enhanced_multi_frame_series(
    archives: Callable[[str, str], Path], tmp_path: Path, model: ImagingModel
) -> None:
    import highdicom as hd

    volume = dicom_series(open_series(archives("enhanced-mr", "xa30/In/5_anat-T1w_acq-tfl")), tmp_path)
    labels = some_labels(volume.shape)
    seg = hd.seg.segread(write(tmp_path / "seg.dcm", volume, model, labels, "LABELMAP"))
    frames = seg.PerFrameFunctionalGroupsSequence
    assert [item.DerivationImageSequence[0].SourceImageSequence[0].ReferencedFrameNumber for item in frames] == [
        volume.slices[z].number + 1 for z in (1, 2, 3, 4)
    ]
    stored = np.stack([seg.get_stored_frame(number + 1) for number in range(len(frames))])
    np.testing.assert_array_equal(stored.transpose(2, 1, 0), numbers(labels)[..., 1:5])


def test_many_segments_are_a_labelmap(model: ImagingModel) -> None:
    from dataclasses import replace

    many = replace(model, labels=tuple(Label(value, f"class {value}") for value in range(118)))
    assert (choose_kind("auto", model), choose_kind("auto", many)) == ("BINARY", "LABELMAP")
    assert choose_kind("binary", many) == "BINARY"


def test_a_big_endian_source_with_damaged_attributes(tmp_path: Path, model: ImagingModel) -> None:
    """Found by fuzzing: pydicom writes a header only in the byte order it was read in, and fails on unknown types and
    on attributes of messages."""
    import pydicom
    from pydicom.uid import ExplicitVRBigEndian

    stored = series(tmp_path / "study", ProtocolName="damaged", StudyDescription="moved", **WHOLE)
    for path in (tmp_path / "study").iterdir():
        little = pydicom.dcmread(path)
        big = pydicom.Dataset()
        big.update({element.tag: element for element in little})
        big.PixelData = np.frombuffer(little.PixelData, "<i2").astype(">i2").tobytes()
        big.RequestAttributesSequence = [pydicom.Dataset()]
        big.RequestAttributesSequence[0].ScheduledProcedureStepID = "step"
        big.file_meta = little.file_meta
        big.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
        big.save_as(path, enforce_file_format=True)
        content = path.read_bytes()
        assert content.count(b"\x00\x18\x10\x30LO") == 1
        content = content.replace(b"\x00\x18\x10\x30LO", b"\x00\x18\x10\x30LM")
        assert content.count(b"\x00\x08\x10\x30LO") == 1
        path.write_bytes(content.replace(b"\x00\x08\x10\x30LO", b"\x00\x00\xee\xeeLO"))
    volume = open_series(tmp_path / "study")
    np.testing.assert_array_equal(read(volume), stored - 1024.0)
    path = write(tmp_path / "seg.dcm", volume, model, some_labels(volume.shape), "BINARY")
    data = pydicom.dcmread(path)
    assert data.PatientName == NAME and data.FrameOfReferenceUID == WHOLE["FrameOfReferenceUID"]


def test_nifti_and_series_without_uids_cannot_give_it(quick: Any, tmp_path: Path, model: ImagingModel) -> None:
    series(tmp_path / "bare")
    with refused(BadInput, "StudyInstanceUID", "FrameOfReferenceUID"):
        dicom_series(open_series(tmp_path / "bare"), tmp_path)
    path = write_nifti(tmp_path / "image.nii.gz", np.zeros((12, 10, 6), np.int16))
    done = quick(
        "apps.imaging", "infer", path, "-m", model.directory, "-o", tmp_path / "out", "--output-type", "dicom-seg"
    )
    assert done.code == 4 and len(done.err.strip().splitlines()) == 1
    says(done.err, "NIfTI", "patient", "study", "frame of reference")


def test_infer_writes_all_it_is_asked_for(run: Any, tmp_path: Path, model: ImagingModel) -> None:
    """From the command line, under a ceiling, with the priced child; the planted name stays where it belongs."""
    import csv

    import highdicom as hd

    from tests.apps.imaging.helpers import read_labels

    stored = series(tmp_path / "study", **WHOLE)
    out = tmp_path / "out"
    done = run("apps.imaging", "infer", tmp_path / "study", "-m", model.directory, "-o", out, "--json", "--preview",
               "--output-type", "nifti,dicom-seg", "--statistics", "--roi-subset", "class 1,class 3",
               "--memory", "600MiB")  # fmt: skip
    assert done.code == 0, done.err
    record = done.record
    kept(record)
    labels = read_labels(output_file(out))
    assert set(np.unique(labels)) <= {0, 1, 3}
    with output_file(out, ending="-statistics.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [row["name"] for row in rows] == ["class 1", "class 3"]
    for row in rows:
        inside = (stored - 1024.0)[labels == int(row["value"])]
        assert int(row["voxels"]) == inside.size
        assert float(row["volume_ml"]) == pytest.approx(inside.size * 0.7 * 0.8 * 2.5 / 1000, abs=1e-3)
        if inside.size:
            assert [float(row["mean"]), float(row["sd"])] == pytest.approx([inside.mean(), inside.std()], abs=1e-2)
    assert json.loads(output_file(out, ending="-statistics.json").read_text())["classes"][0]["name"] == "class 1"
    seg = hd.seg.segread(output_file(out, ending=".seg.dcm"))
    planes = seg.get_volume(combine_segments=True, skip_overlap_checks=True).array
    assert np.count_nonzero(planes == 1) == (labels == 1).sum()
    for path in out.iterdir():
        assert (b"PLANTED" in path.read_bytes()) == (path.suffix == ".dcm"), path.name
    assert "PLANTED" not in done.err + done.out
