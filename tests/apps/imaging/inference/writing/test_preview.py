"""The preview: sides by the affine, the place of a slice, the scale bar, and what it says when nothing is found."""

from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import PIL.Image
import pytest

from apps.imaging.inference.discovery import open_volume
from apps.imaging.inference.writing import preview
from apps.imaging.models.model_folder import Label
from apps.imaging.volumes.nifti import open_nifti
from tests.apps.imaging.helpers import write_nifti

LABELS = [Label(0, "background"), Label(1, "left", color=(255, 0, 0)), Label(2, "right", color=(0, 0, 255))]
YELLOW = (255, 214, 10)


class Recorded:
    """What was written where: pixels of letters are hard to read back."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.texts: list[tuple[str, float, float]] = []
        write = preview._write

        def recorded(draw, place, text, *rest) -> None:  # type: ignore[no-untyped-def]
            self.texts.append((text, *place))
            write(draw, place, text, *rest)

        monkeypatch.setattr(preview, "_write", recorded)


def drawn(folder: Path, affine: np.ndarray, labels: np.ndarray) -> PIL.Image.Image:
    image = write_nifti(folder / "image.nii.gz", np.full(labels.shape, 40, np.int16), affine)
    volume, centre = open_nifti(image), preview.Centre(labels.shape)
    centre.write(labels)
    preview.write(folder / "out.png", volume, write_nifti(folder / "labels.nii.gz", labels, affine), centre, LABELS)
    return PIL.Image.open(folder / "out.png").convert("RGB")


@pytest.mark.parametrize("axes", ["RAS", "LPS", "PIR", "SAL"])
def test_the_letters_are_where_the_patients_sides_are(
    tmp_path: Path, axes: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A blob on the patient's left is drawn nearer to the letter L, in whatever order the file has its axes."""
    recorded = Recorded(monkeypatch)
    blob = np.zeros((60, 60, 60), np.uint8)
    blob[5:20, 25:35, 25:35], blob[40:55, 25:35, 25:35] = 1, 2  # in RAS: small x is the patient's left
    turned = nib.orientations.ornt_transform(
        nib.orientations.axcodes2ornt("RAS"), nib.orientations.axcodes2ornt(tuple(axes))
    )
    stored = nib.Nifti1Image(blob, np.eye(4)).as_reoriented(turned)
    assert nib.aff2axcodes(stored.affine) == tuple(axes)
    picture = drawn(tmp_path, stored.affine, np.ascontiguousarray(stored.dataobj))
    pixels = np.asarray(picture).astype(int)
    red = np.argwhere((pixels[..., 0] > 120) & (pixels[..., 2] < 80) & (pixels[..., 1] < 80))
    letters = {text: (x, y) for text, x, y in recorded.texts[-6:]}  # of the last panel, axial
    assert {"R", "L", "A", "P"} <= set(letters)
    panel = red[(red[:, 1] > letters["R"][0]) & (red[:, 0] < letters["P"][1])]
    assert len(panel) > 100
    assert abs(panel[:, 1].mean() - letters["L"][0]) < abs(panel[:, 1].mean() - letters["R"][0])
    assert letters["R"][0] < letters["L"][0] and letters["A"][1] < letters["P"][1]


def test_the_bar_has_its_length_and_places_are_those_of_the_affine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded = Recorded(monkeypatch)
    labels = np.zeros((50, 40, 30), np.uint8)
    labels[10:13, 20:23, 5:8] = 1
    affine = np.diag([-2.0, 2.0, 2.0, 1.0])
    affine[:3, 3] = 30, -100, 7
    pixels = np.asarray(drawn(tmp_path, affine, labels)).astype(int)
    (bar,) = {text for text, *_ in recorded.texts if text.endswith(" mm")}
    white = (pixels == 255).all(axis=2)
    rows = np.flatnonzero(white.sum(axis=1) >= 60)
    longest = max(len(run) for row in rows for run in np.split(np.flatnonzero(white[row]), np.flatnonzero(np.diff(np.flatnonzero(white[row])) > 1) + 1))  # fmt: skip  # noqa: E501
    assert longest == pytest.approx(float(bar.split()[0]) * preview.PANEL / 100, abs=2)  # 50 voxels of 2 mm
    volume = open_nifti(tmp_path / "image.nii.gz")
    assert preview.slice_place(volume, (11, 21, 6), 0, 0) == "12/50  R 8.0 mm"
    assert preview.slice_place(volume, (11, 21, 6), 1, 1) == "22/40  P 58.0 mm"
    assert preview.slice_place(volume, (11, 21, 6), 2, 2) == "7/30  S 19.0 mm"


@pytest.mark.parametrize("found", [False, True])
def test_nothing_found_is_said_in_large_letters(tmp_path: Path, found: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    recorded = Recorded(monkeypatch)
    labels = np.zeros((40, 40, 40), np.uint8)
    if found:
        labels[2:9, 2:9, 15:25], labels[31:38, 31:38, 15:25] = 1, 2  # whose centre lies between them
    pixels = np.asarray(drawn(tmp_path, np.eye(4), labels))
    said = [text for text, *_ in recorded.texts]
    assert ("nothing found" in said) is not found
    assert said.count("no label in this slice") == (2 if found else 0)
    assert (pixels == YELLOW).all(axis=2).sum() > 10


def test_of_a_slanted_series_both_letters_are_named(dataset: Callable[[str], Path], tmp_path: Path) -> None:
    affine = np.eye(4)
    angle = np.radians(20)
    affine[1:3, 1:3] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    assert preview.side_letters(affine[:3, 1]) == "AS" and preview.opposite("AS") == "PI"
    series = open_volume(dataset("ct-sample") / "example_ct_dicom")
    centre = preview.Centre(series.shape)
    centre.write(np.zeros(series.shape, np.uint8))
    labels = write_nifti(tmp_path / "labels.nii.gz", np.zeros(series.shape, np.uint8), series.affine)
    preview.write(tmp_path / "ct.png", series, labels, centre, LABELS)
    assert PIL.Image.open(tmp_path / "ct.png").width > 900
