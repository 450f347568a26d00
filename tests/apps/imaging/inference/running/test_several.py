"""Several networks, one label map: the labels of each alone, merged by NumPy; a plan for all of them; resuming."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from apps.imaging.bench.peers import nnunet_folder
from common.errors import BadInput, UsageError
from tests.apps.imaging.dicom_files import WHOLE, series
from tests.apps.imaging.helpers import output_file, random_model, read_labels, write_nifti
from tests.apps.imaging.in_process import done
from tests.machine import wait_until
from tests.messages import refused
from tests.promise import kept

pytest.importorskip("dynamic_network_architectures")

MODULE = "apps.imaging"
SHAPE = (30, 26, 14)


def entry(value: int, name: str, model: str | int, label: str | int) -> dict[str, Any]:
    """A class of a map."""
    return {"value": value, "name": name, "from": {"model": model, "label": label}}


def write_map(path: Path, *entries: dict[str, Any]) -> Path:
    path.write_text(json.dumps({"classes": list(entries), "overlap": "later"}))
    return path


def merged(parts: list[tuple[np.ndarray, dict[int, int]]]) -> np.ndarray:
    """Later classes over earlier ones."""
    result = np.zeros(parts[0][0].shape, np.uint16)
    for labels, table in parts:
        for value, target in table.items():
            result[labels == value] = target
    return result


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models of nnU-Net at different spacings and orientations, one of ours, and an image stored in LPS."""
    folder = tmp_path_factory.mktemp("several")
    nnunet_folder.write(folder / "bones", seeds=(0,), scaled=True)
    nnunet_folder.write(folder / "organs", seeds=(1,), classes=4, scaled=True, spacing=[3.0, 1.2, 1.2])
    random_model(folder / "own", classes=3, spacing=(1.3, 1.3, 2.6), orientation="PIR", seed=5)
    values = np.random.default_rng(1).normal(100, 20, SHAPE).astype(np.int16)
    affine = np.diag([-1.0, -0.9, 3.0, 1.0])
    affine[:3, 3] = 20, 10, -5
    write_nifti(folder / "image.nii.gz", values, affine)
    write_map(
        folder / "map.json",
        entry(5, "femur", "bones", "class 2"),
        entry(300, "liver", "organs", 1),
        entry(7, "spleen", "organs", 3),
        entry(9, "rest", 3, "class 1"),
    )
    return folder


@pytest.fixture(scope="module")
def expected(world: Path) -> np.ndarray:
    """Each model alone, merged."""
    alone = []
    for name in ("bones", "organs", "own"):
        done("infer", world / "image.nii.gz", "-m", world / name, "-o", world / f"out-{name}")
        alone.append(read_labels(output_file(world / f"out-{name}")))
    result = merged(list(zip(alone, ({2: 5}, {1: 300, 3: 7}, {1: 9}), strict=True)))
    assert sorted(np.unique(result)) == [0, 5, 7, 9, 300]
    return result


def words(world: Path, out: Path) -> list[Any]:
    """The command with all three models."""
    models = [word for name in ("bones", "organs", "own") for word in ("-m", world / name)]
    return [MODULE, "infer", world / "image.nii.gz", *models, "--labels", world / "map.json", "-o", out, "--json"]


@pytest.mark.parametrize("engine", ["openvino", "torch"])
def test_labels_are_those_of_each_model_alone(
    run: Any, world: Path, expected: np.ndarray, tmp_path: Path, engine: str
) -> None:
    given = run(*words(world, tmp_path / "out"), "--statistics", "--preview", "--engine", engine)
    assert given.code == 0, given.err
    kept(given.record)
    found = read_labels(output_file(tmp_path / "out"))
    assert found.dtype == np.uint16
    different = found != expected
    assert different.mean() <= (0 if engine == "openvino" else 2e-3)  # the engines' own rounding
    rows = json.loads(output_file(tmp_path / "out", ending="-statistics.json").read_text())["classes"]
    assert [(row["value"], row["name"]) for row in rows] == [(5, "femur"), (300, "liver"), (7, "spleen"), (9, "rest")]
    assert [row["voxels"] for row in rows] == [int((found == row["value"]).sum()) for row in rows]
    assert sorted(path.name for path in (tmp_path / "out").iterdir() if path.name.startswith(".")) == []
    again, _ = done(*words(world, tmp_path / "out")[1:], "--statistics", "--preview", "--engine", engine)
    assert again["studies"][0]["status"] == "skipped"


def test_a_subset_runs_only_the_networks_that_have_it(
    quick: Any, world: Path, expected: np.ndarray, tmp_path: Path
) -> None:
    given = quick(*words(world, tmp_path / "out"), "--roi-subset", "rest", "--split-classes")
    assert given.code == 0, given.err
    np.testing.assert_array_equal(read_labels(tmp_path / "out" / "image-rest.nii.gz"), expected == 9)
    assert given.record["plan"]["knobs"]["networks"] == 1


def test_one_model_may_have_a_map_too(world: Path, tmp_path: Path) -> None:
    write_map(tmp_path / "one.json", entry(2, "thigh", 1, "class 1"))
    done(
        "infer", world / "image.nii.gz", "-m", world / "bones", "--labels", tmp_path / "one.json", "-o",
        tmp_path / "out", "--tile", "8,16,8",
    )  # fmt: skip
    assert set(np.unique(read_labels(output_file(tmp_path / "out")))) == {0, 2}


def test_a_seg_of_all_models(run: Any, world: Path, tmp_path: Path) -> None:
    highdicom = pytest.importorskip("highdicom")
    series(tmp_path / "ct", plane=(24, 20), count=10, **WHOLE)
    command = words(world, tmp_path / "out")
    command[2] = tmp_path / "ct"
    given = run(*command, "--output-type", "nifti,dicom-seg", "--remove-small", "0.02")
    assert given.code == 0, given.err
    kept(given.record)
    written = highdicom.seg.segread(output_file(tmp_path / "out", ending=".seg.dcm"))
    assert [one.SegmentLabel for one in written.SegmentSequence] == ["femur", "liver", "spleen", "rest"]
    assert read_labels(output_file(tmp_path / "out")).any()


def test_the_smallest_ceiling_is_that_of_the_largest_network(
    run: Any, world: Path, expected: np.ndarray, tmp_path: Path
) -> None:
    refusal = run(*words(world, tmp_path / "out"), "--memory", "100MiB", "--dry-run")
    assert refusal.code == 3, refusal.err
    needed = refusal.record["smallest_feasible_bytes"]
    again = run(*words(world, tmp_path / "out"), "--memory", needed)
    assert again.code == 0, again.err
    kept(again.record)
    alone = []
    for name in ("bones", "organs", "own"):
        one = run(MODULE, "infer", world / "image.nii.gz", "-m", world / name, "-o", tmp_path / name, "--memory",
                  "100MiB", "--dry-run", "--json")  # fmt: skip
        alone.append(one.record["smallest_feasible_bytes"])
    assert max(alone) <= needed <= max(alone) + (14 << 20)  # three kinds of networks


def test_a_killed_run_resumes_after_the_last_network(world: Path, expected: np.ndarray, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-m", *map(str, words(world, out))]
    process = subprocess.Popen(command, start_new_session=True, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    wait_until((out / ".image.merging.json").exists, seconds=120, alive=process)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    finished = json.loads((out / ".image.merging.json").read_text())["done"]
    again = subprocess.run(command, capture_output=True, text=True, check=True)
    opened = [one["name"] for one in json.loads(again.stdout)["measured"]["phases"]].count("open")
    assert finished >= 1 and opened <= 3 - finished
    np.testing.assert_array_equal(read_labels(output_file(out)), expected)
    assert not list(out.glob(".image*"))


def test_what_killed_runs_left_is_removed_by_the_next_one_that_ends(world: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    for name in (".another.merging", ".another.merging.json", ".another.merging-stage", ".kept.nii.gz"):
        (tmp_path / "out" / name).write_bytes(b"of a run that was killed")
    done("infer", world / "image.nii.gz", "-m", world / "own", "-o", tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").glob(".*")] == [".kept.nii.gz"]


@pytest.mark.parametrize(
    ("entries", "fact"),
    [
        ([entry(1, "a", "bones", 1), entry(1, "b", "organs", 1)], "value 1 is of 1 of bones and of 1 of organs"),
        ([entry(1, "a", "bones", 1), entry(2, "a", "organs", 1)], "'a' names 1 of bones and 1 of organs"),
        ([entry(1, "a", "bones", 1), entry(2, "b", "bones", "class 1")], "becomes both 1 and 2"),
        ([entry(1, "a", "bones", 1), entry(2, "b", "skull", 1)], "no model is 'skull'"),
        ([entry(1, "a", "bones", 9), entry(2, "b", "organs", 1)], "has no class 9; it has 1 class 1, 2 class 2"),
        ([entry(1, "a", "bones", 1)], "no class is from"),
        ([entry(0, "a", "bones", 1)], "at least 1"),
        ([{**entry(1, "a", "bones", 1), "colour": [1, 2, 3]}], "unknown 'colour' in classes[0]"),
    ],
)
def test_a_map_that_does_not_fit_the_models_is_refused(
    world: Path, tmp_path: Path, entries: list[dict[str, Any]], fact: str
) -> None:
    path = write_map(tmp_path / "map.json", *entries)
    models = ("-m", world / "bones", "-m", world / "organs")
    with pytest.raises(BadInput) as caught:
        done("infer", world / "image.nii.gz", *models, "--labels", path, "-o", tmp_path / "out")
    assert fact in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_models_that_take_other_channels_are_refused(world: Path, tmp_path: Path) -> None:
    nnunet_folder.write(tmp_path / "two", channels=2)
    path = write_map(tmp_path / "map.json", entry(1, "a", "bones", 1), entry(2, "b", "two", 1))
    words = ("infer", world / "image.nii.gz", "-m", world / "bones", "-m", tmp_path / "two")
    with refused(BadInput, "takes 2 channels", "takes 1"):
        done(*words, "--labels", path, "-o", tmp_path / "out")
    with refused(UsageError, "--labels"):
        done(*words, "-o", tmp_path / "out")


def results(folder: Path, datasets: dict[str, int], **changes: Any) -> Path:
    """A folder of results with a small network for each data set."""
    for number, (name, classes) in enumerate(datasets.items()):
        model = folder / name / "nnUNetTrainerNoMirroring__nnUNetPlans__3d_fullres"
        nnunet_folder.write(model, seeds=(number,), classes=classes + 1, **changes)
    return folder


PARTS = {
    "Dataset291_TotalSegmentator_part1_organs_1559subj": 24,
    "Dataset292_TotalSegmentator_part2_vertebrae_1532subj": 26,
    "Dataset293_TotalSegmentator_part3_cardiac_1559subj": 18,
    "Dataset294_TotalSegmentator_part4_muscles_1559subj": 23,
    "Dataset295_TotalSegmentator_part5_ribs_1559subj": 26,
}


def test_a_folder_of_results_is_read_as_one_model(run: Any, tmp_path: Path) -> None:
    small = {"patch_size": [16, 16, 16], "spacing": [1.5, 1.5, 1.5], "scaled": True, "old": True}
    place = results(tmp_path / "results", PARTS, **small)
    values = np.random.default_rng(1).normal(100, 20, (20, 18, 16)).astype(np.int16)
    image = write_nifti(tmp_path / "image.nii.gz", values, np.diag([1.5, 1.5, 1.5, 1.0]))
    given = run(MODULE, "infer", image, "-m", place, "--task", "total", "-o", tmp_path / "out", "--json")
    assert given.code == 0, given.err
    kept(given.record)
    alone, table = [], 0
    for number, (name, classes) in enumerate(PARTS.items()):
        (model,) = (place / name).iterdir()
        done("infer", image, "-m", model, "-o", tmp_path / str(number))
        alone.append((read_labels(output_file(tmp_path / str(number))), {k: table + k for k in range(1, classes + 1)}))
        table += classes
    assert table == 117
    found = read_labels(output_file(tmp_path / "out"))
    np.testing.assert_array_equal(found, merged(alone))
    # Images are turned to the patient's axes, whatever the reader of the plans.
    turned = write_nifti(tmp_path / "turned.nii.gz", values[::-1].copy(), np.diag([-1.5, 1.5, 1.5, 1.0]))
    done("infer", turned, "-m", place, "--task", "total", "-o", tmp_path / "turned")
    np.testing.assert_array_equal(read_labels(output_file(tmp_path / "turned"))[::-1], found)


def test_the_coarse_network_of_a_task_and_what_is_missing(tmp_path: Path) -> None:
    fast = {"Dataset297_TotalSegmentator_total_3mm_1559subj": 117}
    small = {"patch_size": [16, 16, 16], "spacing": [3.0, 3.0, 3.0]}
    place = results(tmp_path / "results", fast, **small)
    values = np.random.default_rng(1).normal(100, 20, (24, 24, 20)).astype(np.int16)
    image = write_nifti(tmp_path / "image.nii.gz", values, np.diag([1.5, 1.5, 1.5, 1.0]))
    words = ("infer", image, "-m", place, "-o", tmp_path / "out")
    done(*words, "--task", "total", "--fast")
    (model,) = (place / next(iter(fast))).iterdir()
    done("infer", image, "-m", model, "-o", tmp_path / "one")
    np.testing.assert_array_equal(
        read_labels(output_file(tmp_path / "out")), read_labels(output_file(tmp_path / "one"))
    )
    for options, error, fact in (
        (
            ("--task", "total"),
            BadInput,
            "model of Dataset291, Dataset292, Dataset293, Dataset294, Dataset295",
        ),
        ((), BadInput, "--task total"),
        (("--task", "total", "--fast", "--folds", "3"), UsageError, "--folds 3"),
        (("--task", "total", "--labels", "map.json"), UsageError, "--task total"),
    ):
        with refused(error, fact):
            done(*words, *options)
    (model / "fold_0" / "checkpoint_final.pth").unlink()
    with refused(BadInput, "no fold has a checkpoint_final.pth"):
        done(*words, "--task", "total", "--fast")
