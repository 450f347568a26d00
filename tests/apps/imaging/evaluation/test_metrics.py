"""Measures against MONAI's and against values known by hand; matching of files; the command."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from apps.imaging.evaluation.metrics import TOLERANCE, evaluate, scan
from apps.imaging.evaluation.pairing import find_pairs
from common.errors import BadInput
from tests.apps.imaging.helpers import write_nifti
from tests.messages import refused
from tests.promise import kept
from tests.schemas import read_record

EDGE = (0.8, 1.0, 1.5)


def blobs(seed: int, shape: tuple[int, int, int] = (40, 36, 30)) -> np.ndarray:
    """Two bodies in the interior, moved a little by the seed."""
    shift = np.random.default_rng(seed).uniform(-2, 2, (2, 3))
    x, y, z = np.meshgrid(*map(np.arange, shape), indexing="ij")
    one = (x - 14 - shift[0, 0]) ** 2 + (y - 18 - shift[0, 1]) ** 2 + (z - 15 - shift[0, 2]) ** 2 < 64
    two = (x - 27 - shift[1, 0]) ** 2 + (y - 17 - shift[1, 1]) ** 2 / 2 + (z - 14 - shift[1, 2]) ** 2 < 30
    return np.where(two, 2, np.where(one, 1, 0)).astype(np.uint8)


def write_pair(folder: Path, one: np.ndarray, two: np.ndarray) -> tuple[Path, Path]:
    affine = np.diag([*EDGE, 1.0])
    return write_nifti(folder / "p.nii.gz", one, affine), write_nifti(folder / "r.nii.gz", two, affine)


def results(folder: Path, one: np.ndarray, two: np.ndarray, **options: Any) -> dict[str, Any]:
    pairs = find_pairs(*write_pair(folder, one, two))
    return evaluate(pairs, [scan(pair) for pair in pairs], **options)


MONAI = """
import json, sys
import numpy as np, torch
from monai.metrics import compute_dice, compute_hausdorff_distance, compute_surface_dice
one, two, edge = np.load(sys.argv[1]), np.load(sys.argv[2]), json.loads(sys.argv[3])
hot = [torch.from_numpy(np.stack([v == c for c in range(3)])[None].astype(np.float32)) for v in (one, two)]
dice = compute_dice(*hot, include_background=False)[0]
hd95 = compute_hausdorff_distance(*hot, percentile=95, spacing=edge)[0]
for tolerance in sys.argv[4:]:
    surface = compute_surface_dice(*hot, [float(tolerance)] * 2, spacing=edge)[0]
    print(json.dumps([dice.tolist(), hd95.tolist(), surface.tolist()]))
"""
"""In a process of its own: the suite loads MONAI without the libraries that its metrics need."""


TOLERANCES = [TOLERANCE, 0.0, 2.3]


@pytest.fixture(scope="module")
def monais(tmp_path_factory: pytest.TempPathFactory) -> dict[float, Any]:
    """What MONAI measures of two volumes, by tolerance."""
    pytest.importorskip("torch")
    folder = tmp_path_factory.mktemp("monai")
    for number in (1, 2):
        np.save(folder / f"{number}.npy", blobs(number))
    command = [sys.executable, "-W", "ignore", "-c", MONAI, folder / "1.npy", folder / "2.npy", json.dumps(EDGE)]
    done = subprocess.run([*command, *map(str, TOLERANCES)], capture_output=True, text=True, check=True)
    return dict(zip(TOLERANCES, map(json.loads, done.stdout.splitlines()[-len(TOLERANCES) :]), strict=True))


@pytest.mark.parametrize("tolerance", TOLERANCES)
def test_measures_are_monais(tmp_path: Path, monais: dict[float, Any], tolerance: float) -> None:
    one, two = blobs(1), blobs(2)
    dice, hd95, surface = monais[tolerance]
    found = results(tmp_path, one, two, tolerance=tolerance)["per_class"]
    for index, value in enumerate("12"):
        row = found[value]
        assert row["dice"] == pytest.approx(dice[index], abs=1e-6)
        assert row["hd95_mm"] == pytest.approx(hd95[index], abs=1e-4)
        assert row["surface_dice"] == pytest.approx(surface[index], abs=1e-4)
        volumes = (one == int(value)).sum(), (two == int(value)).sum()
        assert row["volume_error"] == pytest.approx((volumes[0] - volumes[1]) / volumes[1])


def test_a_cube_moved_by_one_voxel(tmp_path: Path) -> None:
    one, two = np.zeros((20, 20, 20), np.uint8), np.zeros((20, 20, 20), np.uint8)
    one[5:15, 5:15, 5:15], two[5:15, 5:15, 6:16] = 1, 1
    row = results(tmp_path, one, two)["per_class"]["1"]
    assert row["dice"] == pytest.approx(0.9)
    assert row["hd95_mm"] == pytest.approx(1.5)  # the end faces are a fifth of the surface
    assert row["volume_error"] == 0


def test_a_class_that_one_side_lacks(tmp_path: Path) -> None:
    one, two = blobs(3), blobs(3)
    two[two == 2] = 0
    rows = results(tmp_path, one, two)["per_class"]
    there = {"references": 1, "missed": 0, "false_alarms": 0}
    assert rows["1"] == {"dice": 1.0, "hd95_mm": 0.0, "surface_dice": 1.0, "volume_error": 0.0, **there}
    false_alarm = {"references": 0, "missed": 0, "false_alarms": 1}
    assert rows["2"] == {"dice": 0.0, "hd95_mm": None, "surface_dice": 0.0, "volume_error": None, **false_alarm}
    found = results(tmp_path, two, one)
    assert found["missed"] == found["per_class"]["2"]["missed"] == found["per_class"]["2"]["references"] == 1


def test_the_scan_counts_what_the_surfaces_need(tmp_path: Path) -> None:
    from apps.imaging.evaluation.metrics import surfaces

    (pair,) = find_pairs(*write_pair(tmp_path, blobs(1), blobs(2)))
    found = scan(pair)
    for side, volume in enumerate((pair.prediction, pair.reference)):
        points = surfaces(volume, found.surface[side])
        assert {value: len(p) for value, p in points.items()} == found.surface[side]


@pytest.mark.parametrize(
    ("low", "high", "dtype"),
    [
        (2**24, 2**24 + 1, "int32"),
        (2**31 + 1, 2**31 + 2, "int64"),
        (2**40, 2**40 + 1, "float64"),
        (7, 2**32 - 1, "uint32"),
    ],
)
def test_large_labels_are_exact(tmp_path: Path, low: int, high: int, dtype: str) -> None:
    one, two = np.full((6, 5, 4), high, dtype), np.full((6, 5, 4), high, dtype)
    one[:3] = low
    rows = results(tmp_path, one, two)["per_class"]
    assert {value: row["dice"] for value, row in rows.items()} == {str(low): 0, str(high): pytest.approx(2 / 3)}


@pytest.mark.parametrize("value", [np.nan, np.inf, 1.5, 1e16])
@pytest.mark.parametrize("bad", ["p.nii.gz", "r.nii.gz"])
def test_values_that_are_no_labels_are_refused(tmp_path: Path, value: float, bad: str) -> None:
    one, two = np.ones((6, 5, 4), np.float32), np.ones((6, 5, 4), np.float32)
    (one if bad[0] == "p" else two)[3, 2, 1] = value
    with refused(BadInput, tmp_path / bad, "whole numbers"):
        results(tmp_path, one, two)


def test_scaled_labels_are_read_in_double_precision(tmp_path: Path) -> None:
    for name in "pr":
        write_nifti(tmp_path / f"{name}.nii", np.full((4, 4, 4), 3, np.int16), scl_slope=2.0, scl_inter=1.0)
    pairs = find_pairs(tmp_path / "p.nii", tmp_path / "r.nii")
    assert scan(pairs[0]).values == [7]


def test_shapes_places_and_names_must_match(tmp_path: Path) -> None:
    a = write_nifti(tmp_path / "a.nii.gz", np.zeros((5, 5, 5), np.uint8))
    b = write_nifti(tmp_path / "b.nii.gz", np.zeros((5, 5, 6), np.uint8))
    c = write_nifti(tmp_path / "c.nii.gz", np.zeros((5, 5, 5), np.uint8), np.diag([2.0, 1, 1, 1]))
    with refused(BadInput, "shape"):
        find_pairs(a, b)
    with refused(BadInput, a):
        find_pairs(a, c)
    (tmp_path / "refs").mkdir()
    (tmp_path / "empty").mkdir()
    with refused(BadInput, "a.nii.gz", "name"):
        find_pairs(tmp_path, tmp_path / "refs")
    with pytest.raises(BadInput, match="no label files"):
        find_pairs(tmp_path / "empty", tmp_path)


@pytest.mark.parametrize("output", ["case_7", "case_7_0000"])
def test_images_of_nnunets_layout_have_labels_without_their_channel(tmp_path: Path, output: str) -> None:
    out, refs = tmp_path / "out", tmp_path / "refs"
    out.mkdir(), refs.mkdir()
    write_nifti(out / f"{output}.nii.gz", blobs(1))
    write_nifti(refs / "case_7.nii.gz", blobs(2))
    row = f"study-0001,/data/case_7_0000.nii.gz,done,,{output}.nii.gz,x\n"
    (out / "studies.csv").write_text("study,input,status,reason,outputs,key\n" + row)
    (pair,) = find_pairs(out, refs)
    assert (pair.prediction.volume.path.name, pair.reference.volume.path.name) == (f"{output}.nii.gz", "case_7.nii.gz")


def test_the_command_matches_studies_by_their_table(run: Any, tmp_path: Path) -> None:
    out, refs = tmp_path / "out", tmp_path / "refs"
    out.mkdir(), refs.mkdir()
    write_nifti(out / "study-0001.nii.gz", blobs(1))
    write_nifti(refs / "hippocampus_007.nii.gz", blobs(2))
    (out / "studies.csv").write_text(
        "study,input,status,reason,outputs,key\nstudy-0001,/data/hippocampus_007.nii.gz,done,,study-0001.nii.gz,x\n"
    )
    done = run("apps.imaging", "evaluate", out, refs, "--memory", "400MiB", "--json")
    assert done.code == 0, done.err
    record = read_record(out / "evaluation.json")
    assert record["results"]["cases"] == 1
    kept(record)
    assert 0.5 < record["results"]["mean_dice"] < 1
    assert "hippocampus_007" not in (out / "evaluation.json").read_text()
