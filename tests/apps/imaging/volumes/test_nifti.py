"""NIfTI in and out, against nibabel."""

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from apps.imaging.bench.volumes import read_whole
from apps.imaging.volumes import nifti
from common.errors import BadInput
from tests.apps.imaging.helpers import write_nifti
from tests.messages import refused

OBLIQUE = np.array(
    [[-0.8934, -0.0865, 0.1226, 20], [-0.0987, 0.8372, -0.2532, -31], [0.045, 0.1185, 1.8791, 7], [0, 0, 0, 1.0]]
)


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.parametrize("dtype", ["uint8", ">i2", "<f4", "float64"])
def test_planes_are_nibabels(tmp_path: Path, name: str, dtype: str) -> None:
    values = np.random.default_rng(0).integers(0, 200, (7, 5, 11)).astype(dtype)
    path = write_nifti(tmp_path / name, values, OBLIQUE)
    found, affine = read_whole(path)
    np.testing.assert_array_equal(found, values.astype(np.float32))
    np.testing.assert_allclose(affine, nib.load(path).affine)


def test_slope_and_intercept_are_applied(tmp_path: Path) -> None:
    image = nib.Nifti1Image(np.arange(60, dtype=np.int16).reshape(3, 4, 5), np.eye(4))
    image.header.set_slope_inter(0.5, -3)
    nib.save(image, tmp_path / "a.nii.gz")
    np.testing.assert_allclose(read_whole(tmp_path / "a.nii.gz")[0], nib.load(tmp_path / "a.nii.gz").get_fdata())


@pytest.mark.parametrize("name", ["out.nii", "out.nii.gz"])
@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
def test_labels_keep_the_inputs_geometry(tmp_path: Path, name: str, kind: type) -> None:
    source = kind(np.zeros((6, 7, 8), np.float32), OBLIQUE)
    source.header.set_qform(OBLIQUE, code=1)
    source.header.set_sform(OBLIQUE, code=4)
    nib.save(source, tmp_path / "in.nii.gz")
    volume = nifti.open_nifti(tmp_path / "in.nii.gz")
    labels = np.random.default_rng(1).integers(0, 300, volume.shape).astype(np.uint16)
    header = nifti.label_header(volume.affine, labels.dtype, volume.shape, volume.header)
    with nifti.write_labels(tmp_path / name, header) as writer:
        writer.write(labels[..., :3])
        writer.write(labels[..., 3:])
    written = nib.load(tmp_path / name)
    np.testing.assert_array_equal(np.asarray(written.dataobj), labels)
    assert written.get_data_dtype() == np.uint16
    assert type(written.header) is type(source.header)
    np.testing.assert_array_equal(written.affine, nib.load(tmp_path / "in.nii.gz").affine)
    np.testing.assert_allclose(written.header.get_zooms(), source.header.get_zooms())
    for method in ("get_qform", "get_sform"):
        (one, code), (two, expected) = (getattr(i.header, method)(coded=True) for i in (written, source))
        np.testing.assert_allclose(one, two, atol=1e-5)
        assert code == expected


def test_the_same_labels_make_the_same_bytes(tmp_path: Path) -> None:
    header = nifti.label_header(np.eye(4), np.dtype(np.uint8), (4, 4, 4))
    for name in ("a.nii.gz", "b.nii.gz"):
        with nifti.write_labels(tmp_path / name, header) as writer:
            writer.write(np.ones((4, 4, 4), np.uint8))
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()


def test_a_broken_write_leaves_nothing(tmp_path: Path) -> None:
    header = nifti.label_header(np.eye(4), np.dtype(np.uint8), (4, 4, 4))
    with pytest.raises(KeyboardInterrupt), nifti.write_labels(tmp_path / "a.nii.gz", header) as writer:
        writer.write(np.ones((4, 4, 2), np.uint8))
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())


def test_a_trailing_axis_of_one_is_accepted_and_a_fourth_is_not(tmp_path: Path) -> None:
    assert nifti.open_nifti(write_nifti(tmp_path / "a.nii", np.zeros((3, 4, 5, 1), np.int16))).shape == (3, 4, 5)
    with refused(BadInput, "b.nii", "three-dimensional"):
        nifti.open_nifti(write_nifti(tmp_path / "b.nii", np.zeros((3, 4, 5, 2), np.int16)))


def test_damage_in_the_middle_of_gzip_is_found(tmp_path: Path) -> None:
    values = np.random.default_rng(2).integers(0, 30000, (20, 20, 20)).astype(np.int16)
    path = write_nifti(tmp_path / "a.nii.gz", values)
    content = bytearray(path.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 40] = bytes(40)
    path.write_bytes(content)
    with pytest.raises(BadInput, match=r"damaged|truncated"):
        read_whole(path)


def test_a_hippocampus_volume(dataset, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    path = sorted((dataset("msd-hippocampus") / "imagesTr").glob("*.nii.gz"))[0]
    found, affine = read_whole(path)
    image = nib.load(path)
    np.testing.assert_allclose(found, image.get_fdata(), rtol=1e-6)
    np.testing.assert_array_equal(affine, image.affine)


def test_a_volume_of_several_is_picked_by_its_number(tmp_path: Path) -> None:
    values = np.arange(3 * 4 * 5 * 3, dtype=np.int16).reshape((3, 4, 5, 3), order="F")
    path = write_nifti(tmp_path / "a.nii.gz", values)
    with refused(BadInput, path, "3 volumes", "--volume"):
        nifti.open_nifti(path)
    with refused(BadInput, path, "no volume 4"):
        nifti.open_nifti(path, volume=4)
    identities = set()
    for number in (1, 2, 3):
        volume = nifti.open_nifti(path, volume=number)
        identities.add(volume.identity())
        found = np.empty((5, 4, 3), np.int16)
        with volume.open() as reader:
            reader.read(found)
        np.testing.assert_array_equal(found.transpose(2, 1, 0), values[..., number - 1])
    assert len(identities) == 3


@pytest.mark.parametrize(
    ("values", "header"),
    [
        (np.ones((3, 4, 5), np.int16), {"scl_slope": 1e38, "scl_inter": 0.0}),
        (np.full((3, 4, 5), 1e37, np.float32), {}),
        (np.full((3, 4, 5), -1e200, np.float64), {}),
    ],
)
def test_values_that_float32_cannot_square_are_refused(tmp_path: Path, values: Any, header: dict[str, float]) -> None:
    path = write_nifti(tmp_path / "a.nii", values, **header)
    with refused(BadInput, path, "values"), nifti.open_nifti(path).open() as reader:
        reader.read(np.empty((5, 4, 3), values.dtype))


def test_values_that_are_not_finite_are_read(tmp_path: Path) -> None:
    values = np.ones((3, 4, 5), np.float32)
    values[1, 2] = np.nan, np.inf, -np.inf, 5, 6
    path = write_nifti(tmp_path / "a.nii", values)
    found = np.empty((5, 4, 3), np.float32)
    with nifti.open_nifti(path).open() as reader:
        reader.read(found)
    np.testing.assert_array_equal(found.transpose(2, 1, 0), values)
