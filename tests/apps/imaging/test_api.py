"""``segment``: an image in, labels on its own grid out, and one typed exception for all that is wrong."""

import doctest
import gc
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from apps.imaging import api, segment
from apps.imaging.cli import parser
from apps.imaging.training.data.synthetic import case
from common.errors import BadInput, DoesNotFit, UsageError
from tests.apps.imaging.helpers import output_file, read_labels
from tests.messages import refused, says

Run = Callable[..., Any]
MEMORY = "500MiB"
AFFINE = np.array([[0, 1.2, 0, 3], [-1, 0, 0, 4], [0, 0, 1.1, 5], [0, 0, 0, 1.0]])


@pytest.fixture(scope="module")
def voxels() -> Any:
    return case(np.random.default_rng(0))[0]


@pytest.fixture
def nothing_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A place for scratch in which nothing may be left."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    yield scratch
    gc.collect()
    assert not list(scratch.iterdir())


def test_an_image_in_memory_gives_the_command_lines_labels(
    voxels: Any, quick: Run, tmp_path: Path, nothing_left: Path
) -> None:
    image = nib.Nifti1Image(voxels, AFFINE)
    found = segment(image, "hippocampus", memory=MEMORY)
    nib.save(image, tmp_path / "image.nii.gz")
    done = quick("apps.imaging", "infer", tmp_path / "image.nii.gz", "-m", "hippocampus", "-o", tmp_path / "out", "-q")
    assert done.code == 0, done.err
    assert found.labels.shape == voxels.shape and found.labels.dtype == np.uint8
    np.testing.assert_array_equal(found.labels, read_labels(output_file(tmp_path / "out")))
    assert len(np.unique(found.labels)) > 1
    np.testing.assert_allclose(found.affine, AFFINE, atol=1e-6)
    assert found.names == {0: "background", 1: "Anterior", 2: "Posterior"} and "Anterior" in repr(found)
    assert found.record["measured"]["peak_bytes"] <= 500 << 20
    assert isinstance(found.labels, np.memmap) and not os.path.exists(str(found.labels.filename))


def test_a_file_that_nibabel_has_opened_is_read_by_the_command(voxels: Any, tmp_path: Path, quick_api: None) -> None:
    path = tmp_path / "image.nii.gz"
    nib.save(nib.Nifti2Image(voxels, AFFINE), path)
    image: Any = nib.load(path)
    assert api._unread(image) == path
    by_path = segment(path, "hippocampus", memory=MEMORY, roi_subset=["Posterior"], tile=40, overlap=0.25)
    assert set(np.unique(by_path.labels)) <= {0, 2} and by_path.names == {0: "background", 2: "Posterior"}
    nib.save(by_path.image, tmp_path / "labels.nii")
    saved: Any = nib.load(tmp_path / "labels.nii")
    assert isinstance(saved, nib.Nifti2Image)
    np.testing.assert_array_equal(np.asarray(saved.dataobj), by_path.labels)
    image.header["pixdim"][1] = 9  # no longer what the file says
    assert api._unread(image) is None
    changed: Any = nib.load(path)
    changed.get_fdata()[0] = 0
    assert api._unread(changed) is None


def test_images_of_other_formats(voxels: Any, nothing_left: Path, quick_api: None) -> None:
    image = nib.MGHImage(voxels.astype(np.float32), AFFINE)
    found = segment(image, Path("data/models/hippocampus"), memory=MEMORY)
    np.testing.assert_array_equal(found.labels, segment(nib.Nifti1Image(voxels, AFFINE), "hippocampus").labels)


def flat(values: Any) -> nib.Nifti1Image:
    return nib.Nifti1Image(values, np.eye(4))


CUBE = np.zeros((8, 8, 8), np.float32)


@pytest.mark.parametrize(
    ("image", "arguments", "error", "facts"),
    [
        (CUBE, {}, BadInput, ("ndarray", "no affine", "nibabel.Nifti1Image")),
        (None, {}, BadInput, ("NoneType", "no affine")),
        (flat(np.zeros((4, 4, 4, 2), np.float32)), {}, BadInput, ("image", "three-dimensional", "2 volumes of 4x4x4")),
        (flat(np.zeros((8, 8, 8), np.complex64)), {}, BadInput, ("image", "complex64")),
        (nib.Nifti1Image(CUBE, None), {}, BadInput, ("Nifti1Image", "no affine")),
        (Path("nothing.nii.gz"), {}, BadInput, ("nothing.nii.gz", "no such file")),
        (Path("README.md"), {}, BadInput, ("README.md", ".nii")),
        (flat(CUBE), {"model": "spleen"}, BadInput, ("spleen",)),
        (flat(CUBE), {"memory": "banana"}, UsageError, ("'banana'", "size")),
        (flat(CUBE), {"memory": None}, UsageError, ("None", "size")),
        (flat(CUBE), {"roi_subset": ["Heart"]}, UsageError, ("Heart", "Anterior, Posterior")),
        (flat(CUBE), {"tile": (40, 40)}, UsageError, ("--tile", "40,40")),
        (flat(CUBE), {"overlap": 1.5}, UsageError, ("--overlap", "1.5")),
        (flat(CUBE), {"engine": "warp"}, UsageError, ("--engine", "'warp'")),
        (flat(CUBE), {"precision": "int8"}, UsageError, ("int8",)),
        (flat(CUBE), {"allow_quality_loss": "much"}, UsageError, ("--allow-quality-loss", "'much'")),
        (flat(CUBE), {"allow_quality_loss": "1%", "fast": True}, UsageError, ("--fast",)),
    ],
)
def test_images_and_arguments_that_cannot_be_used(
    image: Any,
    arguments: dict[str, Any],
    error: type[Exception],
    facts: tuple[object, ...],
    nothing_left: Path,
    quick_api: None,
) -> None:
    with refused(error, *facts) as caught:
        segment(image, **{"model": "hippocampus", "memory": MEMORY, **arguments})
    assert str(nothing_left) not in str(caught.value)


def test_a_folder_of_several_images_is_refused_before_any_is_segmented(
    voxels: Any, tmp_path: Path, quick_api: None
) -> None:
    for name in ("a.nii", "b.nii"):
        nib.save(nib.Nifti1Image(voxels, AFFINE), tmp_path / name)
    with refused(UsageError, 2, "studies"):
        segment(tmp_path, "hippocampus")
    (tmp_path / "b.nii").unlink()
    assert segment(tmp_path, "hippocampus", memory=MEMORY).labels.shape == voxels.shape


def test_a_ceiling_that_is_too_low_is_refused_with_one_that_does(voxels: Any, nothing_left: Path) -> None:
    image = flat(voxels)
    with refused(DoesNotFit, "does not fit", "2.0 MiB", "--memory") as caught:
        segment(image, "hippocampus", memory="2MiB")
    assert isinstance(caught.value, DoesNotFit)
    smallest = caught.value.smallest_feasible_bytes
    assert smallest is not None
    says(str(caught.value), "does not fit", "2.0 MiB", "--memory")
    assert segment(image, "hippocampus", memory=smallest).record["measured"]["peak_bytes"] <= smallest


def test_options_of_variants_are_those_of_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which variant is taken is tested with the command; here, what it is asked."""
    asked: list[list[str]] = []

    def refuse(module: str, words: Any, **options: Any) -> Any:
        asked.append(list(map(str, words)))
        raise DoesNotFit(ceiling=1)

    monkeypatch.setattr(api.command, "run", refuse)
    for allowed, variants, expected in (("0.5%", None, 0.005), (2, tmp_path, 0.02), (0.5, str(tmp_path), 0.005)):
        with pytest.raises(DoesNotFit):
            segment(flat(CUBE), "hippocampus", allow_quality_loss=allowed, variants=variants)
        args = parser().parse_args(asked[-1])
        assert args.allow_quality_loss == pytest.approx(expected)
        assert args.variants == (None if variants is None else tmp_path)


def test_a_dicom_series(dataset: Any, archives: Any) -> None:
    folder = archives("mr-t1", "SAG-anon")
    found = segment(folder, "hippocampus", memory="1GiB", fast=True, overlap=0)
    assert found.labels.ndim == 3 and abs(np.linalg.det(found.affine)) > 0


def test_the_example() -> None:
    assert doctest.testmod(api) == (0, 5)
