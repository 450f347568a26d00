"""Headers that say twice where voxels lie: contradictions are refused or repaired, rounding and units are read."""

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from apps.imaging.volumes.nifti import open_nifti
from common.errors import BadInput
from tests.messages import refused

VOXELS = np.arange(60, dtype=np.int16).reshape(3, 4, 5)


def turned(degrees: float) -> Any:
    angle, affine = np.deg2rad(degrees), np.eye(4)
    affine[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    return affine


def sheared() -> Any:
    affine = np.eye(4)
    affine[0, 2] = 0.3
    return affine


def write(path: Path, sform: Any, qform: Any, *, codes: tuple[int, int] = (1, 1), pixdim: Any = None) -> Path:
    """A file whose two forms are set apart from each other."""
    image: Any = nib.Nifti1Image(VOXELS, None)
    if qform is not None:
        image.header.set_qform(qform, codes[1])
    image.header.set_sform(sform, codes[0])
    if pixdim is not None:
        image.header["pixdim"][1:4] = pixdim
    nib.save(image, path)  # type: ignore[attr-defined]
    return path


@pytest.mark.parametrize(
    ("sform", "qform", "pixdim", "taken"),
    [
        (np.diag([-1, -1, 1, 1.0]), np.diag([-1.3, -1.3, 10, 1]), None, np.diag([-1.3, -1.3, 10, 1])),
        (np.diag([1, 1, 1.05, 1]), np.eye(4), None, np.eye(4)),
        (np.eye(4), None, (2, 2, 3), np.diag([2.0, 2, 3, 1])),
        (turned(20), np.eye(4), None, turned(20)),
        (np.diag([1.0, 1, 1, 1]), np.diag([-1.0, 1, 1, 1]), None, np.eye(4)),
        (sheared(), np.eye(4), (1, 1, np.sqrt(1.09)), np.diag([1, 1, np.sqrt(1.09), 1])),
    ],
)  # fmt: skip
def test_a_contradiction_is_refused_and_repaired_by_pixdim(
    tmp_path: Path, sform: Any, qform: Any, pixdim: Any, taken: Any
) -> None:
    path = write(tmp_path / "a.nii", sform, qform, pixdim=pixdim)
    with refused(BadInput, path, "sform", "--repair header"):
        open_nifti(path)
    volume = open_nifti(path, repair=True)
    np.testing.assert_allclose(volume.affine, taken, atol=1e-5)
    assert volume.header is None and "repaired" in "".join(volume.notes)
    assert volume.identity() != open_nifti(write(tmp_path / "b.nii", np.eye(4), np.eye(4))).identity()


def test_a_shear_without_another_form_cannot_be_repaired(tmp_path: Path) -> None:
    path = write(tmp_path / "a.nii", sheared(), None, pixdim=(1, 1, np.sqrt(1.09)))
    for repair in (False, True):
        with refused(BadInput, path, "sheared"):
            open_nifti(path, repair=repair)


@pytest.mark.parametrize("qform", [None, np.eye(4)])
def test_an_infinite_size_repairs_nothing(tmp_path: Path, qform: Any) -> None:
    path = write(tmp_path / "a.nii", np.eye(4), qform, pixdim=(1, np.inf, 1))
    for repair in (False, True):
        with refused(BadInput, path, "header"):
            open_nifti(path, repair=repair)


def test_rounding_and_forms_of_different_spaces_are_accepted(tmp_path: Path) -> None:
    near = open_nifti(write(tmp_path / "a.nii", np.diag([0.9375, 0.9375, 1.2, 1]), np.diag([0.93749, 0.9375, 1.2, 1])))
    assert near.notes == () and near.header is not None
    spaces = open_nifti(write(tmp_path / "b.nii", turned(20), np.eye(4), codes=(4, 1)))
    np.testing.assert_allclose(spaces.affine, turned(20), atol=1e-6)
    assert "20 degrees" in spaces.notes[0]


@pytest.mark.parametrize(("unit", "size"), [("meter", 0.002), ("micron", 2000.0), ("mm", 2.0), ("unknown", 2.0)])
def test_lengths_are_in_millimetres_whatever_their_unit(tmp_path: Path, unit: str, size: float) -> None:
    image: Any = nib.Nifti1Image(VOXELS, np.diag([size, size, size, 1]))
    image.header.set_xyzt_units(unit)
    nib.save(image, tmp_path / "a.nii")  # type: ignore[attr-defined]
    np.testing.assert_allclose(open_nifti(tmp_path / "a.nii").affine, np.diag([2, 2, 2, 1]), rtol=1e-6)
