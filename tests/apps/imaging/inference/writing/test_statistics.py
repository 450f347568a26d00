"""Statistics of classes against NumPy on the whole volume."""

from pathlib import Path

import numpy as np
import pytest

from apps.imaging.inference.writing.statistics import PERCENTILES, open_statistics
from apps.imaging.models.model_folder import Label
from apps.imaging.volumes.nifti import open_nifti
from tests.apps.imaging.helpers import write_nifti


@pytest.mark.parametrize("dtype", [np.int16, np.float32, np.uint8])
@pytest.mark.parametrize("overlapping", [False, True])
def test_all_numbers_are_those_of_the_whole_volume(tmp_path: Path, dtype: type, overlapping: bool) -> None:
    random = np.random.default_rng(0)
    values = random.normal(20, 40, (40, 31, 12)).clip(0 if dtype is np.uint8 else -200, 200).astype(dtype)
    values[:5] = 0
    if dtype is np.float32:
        values[0, 0, :4] = -0.0
    labels = random.integers(0, 8 if overlapping else 4, values.shape).astype(np.uint8)
    labels[labels == 2] = 0 if not overlapping else 2
    volume = open_nifti(write_nifti(tmp_path / "image.nii.gz", values))
    classes = [Label(0, "background"), *(Label(v, f"class {v}") for v in ((1, 2, 4) if overlapping else (1, 2, 3)))]
    with open_statistics(volume, classes, tmp_path, overlapping=overlapping) as statistics:
        for start in range(0, 12, 5):
            statistics.write(labels[..., start : start + 5])
        rows = statistics.rows()
        assert statistics.rows() == rows
    assert [path.name for path in tmp_path.iterdir()] == ["image.nii.gz"]
    for row, label in zip(rows, classes[1:], strict=True):
        inside = values[(labels & label.value != 0) if overlapping else labels == label.value].astype(np.float64)
        assert row["voxels"] == len(inside)
        if not len(inside):
            assert all(row[name] is None for name in ("mean", "sd", "min", "median", "max"))
            continue
        expected = {"mean": inside.mean(), "sd": inside.std(), "min": inside.min(), "max": inside.max()}
        for name, share in PERCENTILES.items():
            expected[name] = np.percentile(inside, 100 * share, method="inverted_cdf")
        assert {name: row[name] for name in expected} == pytest.approx(expected, abs=2e-4)
