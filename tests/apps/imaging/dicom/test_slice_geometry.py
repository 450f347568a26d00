"""Positions that are a regular grid: cases on both sides of each limit that ``docs/dicom.md`` states."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from apps.imaging.dicom.defects import Defect, Refusal
from apps.imaging.dicom.slice_geometry import SliceLayout, stack
from common.errors import BadInput
from tests.apps.imaging.dicom_files import OBLIQUE
from tests.messages import refused, says

AXIAL = np.array([1.0, 0, 0, 0, 1, 0])
SPACING = 2.5
"""Millimetres from slice to slice."""


def layout(positions: Any, orientation: Any = AXIAL, **options: Any) -> SliceLayout:
    """Slices at these positions; those of an axial series may be heights."""
    positions = np.asarray(positions, float)
    if positions.ndim == 1:
        positions = np.column_stack([np.zeros((len(positions), 2)), positions])
    return stack(Path("study"), positions, np.asarray(orientation, float), (0.8, 0.7), **options)


def shifted(millimetres: float, axis: int, number: int = 3) -> np.ndarray:
    """Eight slices, of which one lies off the others' line."""
    positions = np.zeros((8, 3))
    positions[:, 2] = SPACING * np.arange(8)
    positions[number, axis] += millimetres
    return positions


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("sign", [-1, 1])
def test_a_slice_may_lie_a_twentieth_of_a_millimetre_off_the_line(axis: int, sign: int) -> None:
    assert layout(shifted(sign * 0.049, axis)).findings == ()
    with pytest.raises(Refusal) as caught:
        layout(shifted(sign * 0.051, axis))
    assert caught.value.defect is Defect.GANTRY_TILT
    says(caught.value, "study", "0.1 mm", "--repair tilt")


def test_a_tilt_that_grows_from_slice_to_slice_counts_at_its_end() -> None:
    positions = np.zeros((8, 3))
    positions[:, 2] = SPACING * np.arange(8)
    positions[:, 1] = np.linspace(0, 0.049, 8)
    found = layout(positions)
    assert found.findings == ()
    # The third axis is that of the slices, not their normal: the last voxel lies where its header says.
    np.testing.assert_allclose((found.affine @ [0, 0, 7, 1])[:3], positions[-1] * [-1, -1, 1], atol=1e-12)
    positions[:, 1] = np.linspace(0, 0.051, 8)
    with pytest.raises(Refusal) as caught:
        layout(positions)
    assert caught.value.defect is Defect.GANTRY_TILT


@pytest.mark.parametrize("number", [0, 3, 6])
@pytest.mark.parametrize("sign", [-1, 1])
def test_a_gap_may_differ_by_a_twentieth_of_the_typical_one(number: int, sign: int) -> None:
    for share, accepted in ((0.049, True), (0.051, False)):
        gaps = np.full(7, SPACING)
        gaps[number] *= 1 + sign * share
        heights = np.concatenate([[0], np.cumsum(gaps)])
        if accepted:
            found = layout(heights)
            assert found.findings == () and found.planes == 0
            assert found.affine[2, 2] == pytest.approx(gaps.mean())
            continue
        with pytest.raises(Refusal) as caught:
            layout(heights)
        assert caught.value.defect is Defect.UNEVEN_SPACING
        says(
            caught.value, f"{number + 1} and {number + 2} of 8", f"{gaps[number]:.2f} mm", "2.50 mm", "--repair spacing"
        )


@pytest.mark.parametrize(
    ("factor", "defect"),
    [
        (1.08, Defect.UNEVEN_SPACING),
        (1.88, Defect.UNEVEN_SPACING),
        (1.92, Defect.MISSING_SLICE),
        (2.08, Defect.MISSING_SLICE),
        (2.12, Defect.UNEVEN_SPACING),
        (3.0, Defect.MISSING_SLICE),
    ],
)
def test_a_gap_of_whole_spacings_is_a_missing_slice(factor: float, defect: Defect) -> None:
    gaps = np.full(7, SPACING)
    gaps[4] *= factor
    with pytest.raises(Refusal) as caught:
        layout(np.concatenate([[0], np.cumsum(gaps)]))
    assert caught.value.defect is defect
    assert layout(np.concatenate([[0], np.cumsum(gaps)]), repair=frozenset(["spacing"])).findings[0].defect is defect


@pytest.mark.parametrize(("gap", "defect"), [(0.0099, Defect.DUPLICATE), (0.0101, Defect.UNEVEN_SPACING)])
def test_two_slices_within_a_hundredth_of_a_millimetre_are_in_one_place(gap: float, defect: Defect) -> None:
    with pytest.raises(Refusal) as caught:
        layout([0, SPACING, SPACING + gap, 2 * SPACING])
    assert caught.value.defect is defect


def test_duplicates_cannot_be_repaired() -> None:
    with pytest.raises(Refusal) as caught:
        layout([0, 1, 1, 2], repair=frozenset(["spacing", "tilt"]))
    assert caught.value.defect is Defect.DUPLICATE


@pytest.mark.parametrize(
    ("orientation", "accepted"),
    [
        ((1.009, 0, 0, 0, 1, 0), True),
        ((1.011, 0, 0, 0, 1, 0), False),
        ((1, 0, 0, 0, 0.989, 0), False),
        ((1, 0.009, 0, 0, 1, 0), True),
        ((1, 0.011, 0, 0, 1, 0), False),
    ],
)
def test_direction_cosines_are_unit_vectors_within_a_hundredth(orientation: Any, accepted: bool) -> None:
    if accepted:
        assert layout([0, 1, 2], orientation).planes == 0
        return
    with refused(BadInput, "study", "cosines"):
        layout([0, 1, 2], orientation)


def test_slices_are_ordered_along_their_normal_whatever_the_order_of_files() -> None:
    row, column = np.array(OBLIQUE[:3], float), np.array(OBLIQUE[3:], float)
    normal = np.cross(row, column)
    places = np.array([-40.0, 30, 12]) + np.outer([4, 0, 3, 1, 2], SPACING * normal)
    found = layout(places, OBLIQUE)
    assert found.order.tolist() == [1, 3, 4, 2, 0]
    corner = places[1] + 2 * 0.7 * row + 5 * 0.8 * column + 3 * SPACING * normal
    np.testing.assert_allclose((found.affine @ [2, 5, 3, 1])[:3], corner * [-1, -1, 1], atol=1e-9)


@pytest.mark.parametrize(("step", "decimals"), [(1.25, 1), (0.625, 1), (3.3333333, 0), (0.7, 2)])
def test_positions_that_are_rounded_are_a_regular_grid(step: float, decimals: int) -> None:
    heights = np.round(7.3 + step * np.arange(25), decimals)
    found = layout(heights)
    assert found.findings == () and found.planes == 0
    assert found.affine[2, 2] == pytest.approx(step, rel=0.01)


@pytest.mark.parametrize("count", [4, 12, 60])
@pytest.mark.parametrize("decimals", [0, 1])
def test_a_missing_slice_is_no_rounding(count: int, decimals: int) -> None:
    for absent in {1, count // 2, count - 2}:
        heights = np.delete(np.round(1.0 * np.arange(count), decimals), absent)
        with pytest.raises(Refusal) as caught:
            layout(heights)
        assert caught.value.defect in (Defect.MISSING_SLICE, Defect.UNEVEN_SPACING)


@pytest.mark.parametrize("decimals", [2, 3, 6])
def test_a_normal_from_rounded_cosines_is_no_tilt(decimals: int) -> None:
    angle = np.deg2rad(36.05)
    exact = np.array([1, 0, 0, 0, np.cos(angle), np.sin(angle)])
    positions = np.outer(np.arange(200), np.cross(exact[:3], exact[3:]))
    found = layout(positions, np.round(exact, decimals))
    assert found.findings == ()
    np.testing.assert_allclose((found.affine @ [0, 0, 199, 1])[:3], positions[-1] * [-1, -1, 1], atol=1e-9)
    positions += np.outer(np.arange(200), [0, 0.02, 0])
    with pytest.raises(Refusal) as caught:
        layout(positions, np.round(exact, decimals))
    assert caught.value.defect is Defect.GANTRY_TILT
