"""SUVs by body weight: numbers computed by hand, and what is refused by its name."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from apps.imaging.dicom.series import open_series
from apps.imaging.dicom.suv import in_suv
from apps.imaging.dicom.writing.sr import measures_of
from apps.imaging.volumes.nifti import open_nifti
from apps.imaging.volumes.volume import blocks
from common.errors import BadInput
from tests.apps.imaging import in_process
from tests.apps.imaging.dicom_files import WHOLE, series
from tests.apps.imaging.helpers import output_file, random_model, write_nifti

HALF_LIFE = 6586.2
"""Of fluorine-18, in seconds."""
DRUG = {
    "RadionuclideTotalDose": 370e6,
    "RadionuclideHalfLife": HALF_LIFE,
    "RadiopharmaceuticalStartTime": "101500.00",
}
PET: dict[str, Any] = {
    **WHOLE,
    "Modality": "PT",
    "Units": "BQML",
    "DecayCorrection": "START",
    "CorrectedImage": ["NORM", "ATTN", "SCAT", "DECY"],
    "PatientWeight": "74.0",
    "SeriesDate": "20200102",
    "SeriesTime": "111500",
    "AcquisitionDate": "20200102",
    "AcquisitionTime": "111500.000000",
    "RescaleIntercept": 0,
    "RescaleSlope": 2.5,
}
HOUR = 74_000 / (370e6 * 2 ** (-3600 / HALF_LIFE))
"""74 kg, 370 MBq, an hour before the scan: SUVbw of 1 Bq/ml."""


def written(folder: Path, drug: dict[str, Any] | None = None, **changes: Any) -> np.ndarray:
    """A PET series; ``None`` leaves an element out."""
    import pydicom

    item = pydicom.Dataset()
    for name, value in {**DRUG, **(drug or {})}.items():
        if value is not None:
            setattr(item, name, value)
    elements = {name: value for name, value in {**PET, **changes}.items() if value is not None}
    return series(folder, **{"RadiopharmaceuticalInformationSequence": [item], **elements})


CASES: dict[str, tuple[dict[str, Any], dict[str, Any], float]] = {
    "an hour after": ({}, {}, HOUR),
    "to the injection": ({}, {"DecayCorrection": "ADMIN"}, 74_000 / 370e6),
    "over midnight": (
        {"RadiopharmaceuticalStartTime": "234500"}, {"SeriesTime": "004500", "AcquisitionTime": "004500"}, HOUR,
    ),
    "date and time": (
        {"RadiopharmaceuticalStartTime": None, "RadiopharmaceuticalStartDateTime": "20200102101500.00+0100"}, {}, HOUR,
    ),
    "processed again": ({}, {"SeriesTime": "150000"}, HOUR),
    "a later bed first": ({}, {"AcquisitionTime": "113000"}, HOUR),
    "no time of the series": ({}, {"SeriesTime": None}, HOUR),
    "SUVs already": ({}, {"Units": "GML", "SUVType": "BW", "PatientWeight": None}, 1.0),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_the_factor_is_that_of_the_hand(tmp_path: Path, case: str) -> None:
    drug, changes, expected = CASES[case]
    stored = written(tmp_path, drug, **changes)
    plain = open_series(tmp_path)
    volume = in_suv(plain)
    assert volume.suv == pytest.approx(expected, rel=1e-9)
    values = np.concatenate([block.copy() for block in blocks(volume)]).T
    np.testing.assert_allclose(values, stored * 2.5 * expected, rtol=1e-6)
    assert volume.identity() != plain.identity()
    assert measures_of(volume)[1].unit.value == "{SUVbw}g/ml" and len(measures_of(plain)) == 1


def test_slices_of_different_scales(tmp_path: Path) -> None:
    import pydicom

    stored = written(tmp_path)
    for number, path in enumerate(sorted(tmp_path.iterdir())):
        data = pydicom.dcmread(path)
        data.RescaleSlope = 1 + number
        data.save_as(path)
    plain, volume = open_series(tmp_path), in_suv(open_series(tmp_path))
    assert plain.dtype == np.float32 and stored.max() > 0
    for one, other in zip(blocks(plain), blocks(volume), strict=True):
        np.testing.assert_allclose(other, one * HOUR, rtol=1e-6)


REFUSED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "PatientWeight is missing": ({}, {"PatientWeight": None}),
    "PatientWeight is 0": ({}, {"PatientWeight": "0"}),
    "RadionuclideTotalDose is missing": ({"RadionuclideTotalDose": None}, {}),
    "RadionuclideHalfLife is missing": ({"RadionuclideHalfLife": None}, {}),
    "RadiopharmaceuticalStartTime is missing": ({"RadiopharmaceuticalStartTime": None}, {}),
    "RadiopharmaceuticalInformationSequence is missing": ({}, {"RadiopharmaceuticalInformationSequence": []}),
    "Units is CNTS": ({}, {"Units": "CNTS"}),
    "Units is missing": ({}, {"Units": None}),
    "Units is GML": ({}, {"Units": "GML", "SUVType": "LBM"}),
    "DecayCorrection is NONE": ({}, {"DecayCorrection": "NONE"}),
    "CorrectedImage": ({}, {"CorrectedImage": ["DECY", "NORM"]}),
    "SeriesTime and AcquisitionTime are missing": ({}, {"SeriesTime": None, "AcquisitionTime": None}),
    "StartDateTime is after the scan": ({"RadiopharmaceuticalStartDateTime": "20200102120000"}, {}),
    "only a DICOM series of PET": ({}, {"Modality": "CT"}),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_is_missing_is_named(tmp_path: Path, reason: str) -> None:
    drug, changes = REFUSED[reason]
    written(tmp_path, drug, **changes)
    with pytest.raises(BadInput, match=reason):
        in_suv(open_series(tmp_path))


def test_slices_of_different_patients_and_a_file_are_refused(tmp_path: Path) -> None:
    import pydicom

    written(tmp_path / "study")
    path = next((tmp_path / "study").iterdir())
    data = pydicom.dcmread(path)
    data.PatientWeight = "81"
    data.save_as(path)
    with pytest.raises(BadInput, match="PatientWeight differs"):
        in_suv(open_series(tmp_path / "study"))
    with pytest.raises(BadInput, match="PET"):
        in_suv(open_nifti(write_nifti(tmp_path / "a.nii.gz", np.ones((8, 8, 8), np.int16))))


def test_the_model_and_its_statistics_see_them(tmp_path: Path) -> None:
    """A model that does not normalise: labels and means are those of the same values in a NIfTI file."""
    random_model(tmp_path / "model", patch=(8, 8, 4), spacing=(0.7, 0.8, 2.5), intensity=())
    written(tmp_path / "study")
    volume = in_suv(open_series(tmp_path / "study"))
    values = np.concatenate([block.copy() for block in blocks(volume)]).T
    write_nifti(tmp_path / "same.nii.gz", np.ascontiguousarray(values), volume.affine)
    tables = []
    for source, options in ((tmp_path / "study", ["--suv"]), (tmp_path / "same.nii.gz", [])):
        out = tmp_path / f"out-{source.name}"
        in_process.done("infer", source, "-m", tmp_path / "model", "-o", out, "--statistics", *options)
        tables.append(json.loads(output_file(out, ending="-statistics.json").read_text())["classes"])
    assert [row["voxels"] for row in tables[0]] == [row["voxels"] for row in tables[1]]
    assert [row["mean"] for row in tables[0]] == pytest.approx([row["mean"] for row in tables[1]], abs=2e-4)
