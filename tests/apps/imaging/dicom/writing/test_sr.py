"""Measurements as a structured report: the numbers, segments and images that were put in, by highdicom and dciodvfy."""

import json
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from apps.imaging.dicom.codes import Modality
from apps.imaging.dicom.series import DicomVolume, open_series
from apps.imaging.dicom.writing.seg_header import file_bytes
from apps.imaging.dicom.writing.sr import measures_of, write_sr
from apps.imaging.dicom.writing.sr_header import build, sr_question
from apps.imaging.models.model_folder import ImagingModel, Label, read_model
from tests.apps.imaging.dicom_files import NAME, WHOLE, series
from tests.apps.imaging.helpers import output_file, random_model, write_nifti
from tests.conftest import absent
from tests.promise import kept

LABELS = (
    Label(0, "background"),
    Label(3, "liver", ("SCT", "10200004", "Liver"), (200, 80, 60)),
    Label(9, "nothing here", None, (0, 0, 255)),
    Label(12, "spleen", ("SCT", "78961009", "Spleen"), (10, 160, 90)),
)
WAYS = ("Mean", "Standard Deviation", "Minimum", "Median", "Maximum")
NUMBERS = {"mean": 40.25, "sd": 11.5, "min": -3.0, "median": 41.0, "max": 1e-7 + 90}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ImagingModel:
    directory = tmp_path_factory.mktemp("model")
    random_model(directory, classes=4, patch=(8, 8, 4), spacing=(0.7, 0.8, 2.5))
    return replace(read_model(directory), labels=LABELS)


def rows(voxels: Sequence[int]) -> list[dict[str, Any]]:
    """Statistics of segments of so many voxels."""
    none = dict.fromkeys(NUMBERS)
    return [{"voxels": n, "volume_ml": n * 0.0014, **(NUMBERS if n else none)} for n in voxels]


def write(path: Path, volume: DicomVolume, model: ImagingModel, voxels: Sequence[int], kind: str = "BINARY") -> Any:
    import highdicom as hd

    measures = [measure[1:] for measure in measures_of(volume)]
    template = file_bytes(build(json.loads(json.dumps(sr_question(volume, model, "key", kind, measures)))))
    write_sr(path, volume, template, rows(voxels))
    return hd.sr.srread(path)


def test_highdicom_reads_every_number_of_every_segment(tmp_path: Path, model: ImagingModel) -> None:
    series(tmp_path / "study", **WHOLE)
    volume = open_series(tmp_path / "study")
    report = write(tmp_path / "out.sr.dcm", volume, model, (500, 0, 70))
    groups = report.content.get_volumetric_roi_measurement_groups()
    assert [group.tracking_identifier for group in groups] == ["liver", "spleen"]
    assert [group.finding_type.value for group in groups] == ["10200004", "78961009"]
    for group, voxels, number in zip(groups, (500, 70), (1, 3), strict=True):
        found = {m.derivation.meaning if m.derivation else m.name.meaning: m for m in group.get_measurements()}
        values = [found[key].value for key in ("Volume", *WAYS)]
        assert values == pytest.approx([voxels * 0.0014, *NUMBERS.values()], rel=1e-9)
        assert found["Volume"].unit.value == "cm3" and found["Mean"].unit.value == "[hnsf'U]"
        assert found["Mean"].name.meaning == "Attenuation Coefficient"
        segment = group.referenced_segment
        assert segment[0].ReferencedSOPSequence[0].ReferencedSegmentNumber == number
        assert segment.source_series_for_segmentation.value == "1.2.3"
    (study,) = report.CurrentRequestedProcedureEvidenceSequence
    instances = {one.SeriesInstanceUID: len(one.ReferencedSOPSequence) for one in study.ReferencedSeriesSequence}
    assert sorted(instances.values()) == [1, len(volume.slices)] and instances["1.2.3"] == len(volume.slices)
    assert report.SeriesInstanceUID not in instances
    content = (tmp_path / "out.sr.dcm").read_bytes()
    assert content.count(NAME.encode()) == 1 and content.count(b"PLANTED-ID") == 1 and content[:128] == bytes(128)
    write(tmp_path / "again.sr.dcm", volume, model, (500, 0, 70))
    assert (tmp_path / "again.sr.dcm").read_bytes() == content


def test_of_nothing_found_each_segment_has_the_volume_0(tmp_path: Path, model: ImagingModel) -> None:
    series(tmp_path / "study", **WHOLE)
    report = write(tmp_path / "out.sr.dcm", open_series(tmp_path / "study"), model, (0, 0, 0))
    groups = report.content.get_volumetric_roi_measurement_groups()
    assert [[m.value for m in group.get_measurements()] for group in groups] == [[0.0]] * 3


@pytest.mark.parametrize("modality", ["MR", "US"])
def test_units_are_those_of_the_modality(tmp_path: Path, model: ImagingModel, modality: str) -> None:
    series(tmp_path / "study", **WHOLE, Modality=modality)
    volume = open_series(tmp_path / "study")
    assert volume.slices[0].attributes.modality is Modality(modality)
    report = write(tmp_path / "out.sr.dcm", volume, model, (5, 5, 5))
    group = report.content.get_volumetric_roi_measurement_groups()[0]
    names = [measurement.name.meaning for measurement in group.get_measurements()]
    assert names == ["Volume", *(["MR signal intensity"] * 5 if modality == "MR" else [])]


@pytest.mark.parametrize("found", [True, False])
def test_dciodvfy_finds_no_error(tmp_path: Path, model: ImagingModel, found: bool) -> None:
    if shutil.which("dciodvfy") is None:
        absent("dciodvfy (Debian package dicom3tools)")
    series(tmp_path / "study", **WHOLE)
    write(tmp_path / "out.sr.dcm", open_series(tmp_path / "study"), model, (9 * found, 0, 4 * found))
    told = subprocess.run(["dciodvfy", tmp_path / "out.sr.dcm"], capture_output=True, text=True)
    assert "Error" not in told.stderr + told.stdout and "EnhancedSR" in told.stderr + told.stdout


def test_the_command_writes_what_its_statistics_have(run: Any, tmp_path: Path) -> None:
    import highdicom as hd

    random_model(tmp_path / "model", classes=4, patch=(8, 8, 4), spacing=(0.7, 0.8, 2.5))
    series(tmp_path / "study", **WHOLE)
    words = ("apps.imaging", "infer", tmp_path / "study", "-m", tmp_path / "model", "-o", tmp_path / "out")
    done = run(*words, "--output-type", "dicom-seg,dicom-sr", "--statistics", "--memory", "1GiB", "--json")
    assert done.code == 0, done.err
    kept(done.record)
    report = hd.sr.srread(output_file(tmp_path / "out", ending=".sr.dcm"))
    seg = hd.seg.segread(output_file(tmp_path / "out", ending=".seg.dcm"))
    table = json.loads(output_file(tmp_path / "out", ending="-statistics.json").read_text())["classes"]
    expected = {row["name"]: row for row in table if row["voxels"]}
    groups = report.content.get_volumetric_roi_measurement_groups()
    assert len(groups) == len(expected) > 1
    for group in groups:
        row, values = expected[group.tracking_identifier], [m.value for m in group.get_measurements()]
        assert values == pytest.approx([row[name] for name in ("volume_ml", "mean", "sd", "min", "median", "max")])
        number = group.referenced_segment[0].ReferencedSOPSequence[0]
        assert number.ReferencedSOPInstanceUID == seg.SOPInstanceUID
        (described,) = [s for s in seg.SegmentSequence if s.SegmentNumber == number.ReferencedSegmentNumber]
        assert described.SegmentLabel == group.tracking_identifier
        counted = int(np.count_nonzero(seg.get_volume(segment_numbers=[described.SegmentNumber]).array))
        assert counted == row["voxels"]


def test_without_a_seg_it_is_refused(quick: Any, tmp_path: Path) -> None:
    image = write_nifti(tmp_path / "image.nii.gz", np.ones((8, 8, 8), np.int16))
    words = ("apps.imaging", "infer", image, "-m", "hippocampus", "-o", tmp_path / "out")
    done = quick(*words, "--output-type", "dicom-sr")
    assert done.code == 2 and "dicom-seg,dicom-sr" in done.err
