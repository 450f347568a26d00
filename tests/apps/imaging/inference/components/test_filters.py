"""Components chosen plane by plane, against SciPy on the whole volume."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apps.imaging.inference.components.filters import largest_only, least_voxels, without_holes, without_small
from tests.promise import kept


def reference(labels: np.ndarray, least: int) -> np.ndarray:
    """Everything in memory."""
    from scipy import ndimage

    result = labels.copy()
    for value in np.unique(labels[labels != 0]):
        parts, _ = ndimage.label(labels == value)
        sizes = np.bincount(parts.reshape(-1))
        result[(sizes[parts] < least) & (parts != 0)] = 0
    return result


def streamed(labels: np.ndarray, least: int, depth: int, scratch: Path) -> np.ndarray:
    slabs = (labels[..., start : start + depth] for start in range(0, labels.shape[2], depth))
    return np.concatenate(list(without_small(slabs, least, scratch)), axis=2)


@settings(max_examples=60, deadline=None)
@given(
    st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(1, 9)),
    st.integers(1, 4),
    st.floats(0.05, 0.95),
    st.integers(0, 40),
    st.integers(1, 4),
    st.integers(0, 2**32 - 1),
)
def test_is_scipys(tmp_path_factory, shape, classes, density, least, depth, seed) -> None:  # type: ignore[no-untyped-def]
    random = np.random.default_rng(seed)
    labels = (random.integers(1, classes + 1, shape) * (random.random(shape) < density)).astype(np.uint8)
    found = streamed(labels, least, depth, tmp_path_factory.getbasetemp())
    np.testing.assert_array_equal(found, reference(labels, least))


def test_a_part_that_meets_itself_late_is_one(tmp_path: Path) -> None:
    """Two columns that join only in the last plane, and a speck."""
    labels = np.zeros((7, 5, 20), np.uint16)
    labels[1, 2, :] = labels[5, 2, :] = 300
    labels[1:6, 2, 19] = 300
    labels[3, 0, 4] = 300
    found = streamed(labels, 43, 6, tmp_path)
    expected = labels.copy()
    expected[3, 0, 4] = 0
    assert found.dtype == np.uint16
    np.testing.assert_array_equal(found, expected)
    assert not streamed(labels, 44, 6, tmp_path).any()


@settings(max_examples=40, deadline=None)
@given(
    st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(1, 9)),
    st.integers(1, 3),
    st.floats(0.05, 0.95),
    st.booleans(),
    st.integers(0, 2**32 - 1),
)
def test_the_largest_components_are_scipys(tmp_path_factory, shape, classes, density, every, seed) -> None:  # type: ignore[no-untyped-def]
    from scipy import ndimage

    random = np.random.default_rng(seed)
    labels = (random.integers(1, classes + 1, shape) * (random.random(shape) < density)).astype(np.uint8)
    slabs = (labels[..., start : start + 2] for start in range(0, labels.shape[2], 2))
    values = None if every else [1, 7]
    found = np.concatenate(list(largest_only(slabs, values, tmp_path_factory.getbasetemp())), axis=2)
    for value in range(1, classes + 1):
        parts, count = ndimage.label(labels == value, np.ones((3, 3, 3)))
        kept_parts = np.unique(parts[(found == value)])
        assert set(np.unique(labels[found == value])) <= {value}
        if not every and value != 1:
            assert len(kept_parts) == count
        elif count:
            sizes = np.bincount(parts.ravel())[1:]
            assert (found == value).sum() == sizes.max() and len(kept_parts) == 1


@settings(max_examples=40, deadline=None)
@given(
    st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(1, 9)), st.floats(0.3, 0.95), st.integers(0, 2**32 - 1)
)
def test_filled_holes_are_scipys(tmp_path_factory, shape, density, seed) -> None:  # type: ignore[no-untyped-def]
    from scipy.ndimage import binary_fill_holes

    mask = np.random.default_rng(seed).random(shape) < density
    found = np.stack(list(without_holes(mask, len(mask), tmp_path_factory.getbasetemp())))
    np.testing.assert_array_equal(found, binary_fill_holes(mask))


@pytest.mark.parametrize(("millilitres", "voxels"), [(1.0, 1000), (0.0, 0), (0.0005, 1), (0.0015, 2)])
def test_millilitres(millilitres: float, voxels: int) -> None:
    assert least_voxels(millilitres, np.diag([1.0, -1.0, 1.0, 1.0])) == voxels


def test_remove_small_and_fast_of_a_run(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """The command's labels are its own without the option, cleaned; and at half the resolution they fill the grid."""
    from tests.apps.imaging.helpers import output_file, random_model, read_labels, write_nifti

    random_model(tmp_path / "model")
    random = np.random.default_rng(0)
    path = write_nifti(tmp_path / "in.nii.gz", random.integers(0, 500, (44, 40, 36)).astype(np.int16))
    found = {}
    for name, options in (("plain", ()), ("clean", ("--remove-small", "0.05")), ("fast", ("--fast",))):
        done = run("apps.imaging", "infer", path, "-m", tmp_path / "model", "-o", tmp_path / name, "--json", *options)
        assert done.code == 0, done.err
        kept(done.record)
        found[name] = read_labels(output_file(tmp_path / name))
    expected = reference(found["plain"], 50)
    assert (expected != found["plain"]).sum() > 0
    np.testing.assert_array_equal(found["clean"], expected)
    assert found["fast"].shape == found["plain"].shape and len(np.unique(found["fast"])) > 1
    assert sorted(path.name for path in (tmp_path / "clean").iterdir()) == ["in.nii.gz", "run.json", "studies.csv"]


def test_fast_sees_half_the_resolution(tmp_path: Path) -> None:
    from apps.imaging.inference.network_grid import NetworkGrid
    from apps.imaging.models.model_folder import at_half_resolution, read_model
    from apps.imaging.volumes.nifti import open_nifti
    from tests.apps.imaging.helpers import random_model, write_nifti

    random_model(tmp_path / "model")
    volume = open_nifti(write_nifti(tmp_path / "in.nii.gz", np.zeros((44, 40, 37), np.int16)))
    model = at_half_resolution(read_model(tmp_path / "model"))
    assert NetworkGrid.of(volume, model, tile=model.patch, overlap=0.5).tiles.shape == (22, 20, 18)
