"""Label maps without images: found, read as tissues in the model's axes, and refused where the table lacks a label."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from apps.imaging.training.data.label_maps import load_synthesised, load_tissues, own_spacing, read_label_maps
from apps.imaging.training.data.label_table import LabelTable, read_table
from common.errors import BadInput
from tests.apps.imaging.training.data.test_label_table import TABLE, write
from tests.messages import refused

LIA = np.array([[-1.5, 0, 0, 20], [0, 0, 2, -30], [0, -1, 0, 40], [0, 0, 0, 1.0]])


@pytest.fixture
def table(tmp_path: Path) -> LabelTable:
    return read_table(write(tmp_path / "table.json"))


def save(path: Path, labels: np.ndarray, affine: np.ndarray = LIA) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(labels, affine), path)
    return path


def labels() -> np.ndarray:
    values = np.array([0, 500, 24, 10, 49])
    return values[np.random.default_rng(0).integers(0, 5, (8, 10, 12))].astype(np.float32)


@pytest.mark.parametrize("below", ["", "labelsTr"])
def test_maps_are_tissues_in_the_models_axes(tmp_path: Path, table: LabelTable, below: str) -> None:
    save(tmp_path / "maps" / below / "b.nii.gz", labels())
    path = save(tmp_path / "maps" / below / "a.nii.gz", labels())
    found = read_label_maps(tmp_path / "maps", table)
    assert [case.name for case in found.cases] == ["a", "b"] and found.channels == ("MRI",)
    assert found.spacing == own_spacing(found.cases[0]) == (1.5, 2.0, 1.0)
    tissues = load_tissues(found.cases[0], table)
    turned = np.asarray(nib.as_closest_canonical(nib.load(path)).dataobj).astype(int)
    assert np.array_equal(tissues, table.tissues(turned))


def test_a_held_out_map_has_the_same_image_in_every_training(tmp_path: Path, table: LabelTable) -> None:
    save(tmp_path / "maps" / "a.nii.gz", labels())
    found = read_label_maps(tmp_path / "maps", table)
    image, classes = load_synthesised(found.cases[0], found, 2)
    again, _ = load_synthesised(found.cases[0], found, 2)
    assert image.shape == (1, 8, 12, 10) == (1, *classes.shape) and np.array_equal(image, again)
    assert not np.array_equal(image, load_synthesised(found.cases[0], found, 3)[0])


def test_labels_that_the_table_lacks_are_named(tmp_path: Path, table: LabelTable) -> None:
    save(tmp_path / "maps" / "odd.nii.gz", labels() + 1)
    found = read_label_maps(tmp_path / "maps", table)
    with refused(BadInput, "odd", "1, 11, 25, 50, 501", "class table"):
        load_tissues(found.cases[0], table)


@pytest.mark.parametrize(("value", "fact"), [(500.0, "background"), (0.5, "whole numbers"), (np.nan, "whole numbers")])
def test_maps_without_anything_to_learn(tmp_path: Path, table: LabelTable, value: float, fact: str) -> None:
    save(tmp_path / "maps" / "odd.nii.gz", np.full((4, 5, 6), value, np.float32))
    found = read_label_maps(tmp_path / "maps", table)
    with refused(BadInput, "odd", fact):
        load_tissues(found.cases[0], table)


def test_folders_without_maps(tmp_path: Path, table: LabelTable) -> None:
    with refused(BadInput, str(tmp_path / "absent")):
        read_label_maps(tmp_path / "absent", table)
    write(tmp_path / "table.json", TABLE)
    with refused(BadInput, str(tmp_path), "label map"):
        read_label_maps(tmp_path, table)


def test_a_file_that_cannot_be_read_is_named_and_may_be_left_out(tmp_path: Path, table: LabelTable) -> None:
    save(tmp_path / "maps" / "good.nii.gz", labels())
    (tmp_path / "maps" / "bad.nii.gz").write_bytes(b"nothing")
    with refused(BadInput, "bad.nii.gz"):
        read_label_maps(tmp_path / "maps", table)
    warned: list[str] = []
    found = read_label_maps(tmp_path / "maps", table, skip_bad=True, warn=warned.append)
    assert [case.name for case in found.cases] == ["good"] and "bad.nii.gz" in warned[0]
