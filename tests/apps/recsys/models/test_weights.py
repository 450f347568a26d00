"""Numbers in a file of weights that cannot be what they are named: refused when they are read."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from apps.recsys.models import weights
from common.errors import BadInput
from tests.messages import refused

NAN = np.array([0, np.nan, 0], np.float32)


@pytest.mark.parametrize(
    ("name", "values", "read"),
    [
        (weights.COMPARED, np.array([0, 3], np.int32), lambda path: weights.read_compared(path, 3)),
        (weights.COMPARED, np.array([0, -1], np.int32), lambda path: weights.read_compared(path, 3)),
        (weights.COUNTS, np.array([0, -1], np.int32), weights.read_counts),
        (weights.PRIOR, NAN, lambda path: weights.read_items(path, prior=True)),
        (weights.SPECTRUM, NAN[:, None], weights.read_spectrum),
        (weights.EIGENVALUES, NAN, weights.read_spectrum),
        (weights.VARIANCES, NAN, weights.read_variances),
    ],
)
def test_numbers_that_cannot_be_are_refused(
    name: str, values: "np.ndarray[Any, Any]", read: Callable[[Path], object], tmp_path: Path
) -> None:
    ones = np.ones((3, 1), np.float32)
    sound = {weights.ITEMS: ones, weights.SPECTRUM: ones, weights.EIGENVALUES: ones[:1, 0]}
    weights.write(tmp_path / "a", {**sound, name: values})
    with refused(BadInput, name):
        read(tmp_path / "a")


def test_a_prior_has_a_number_for_each_item(tmp_path: Path) -> None:
    weights.write(tmp_path / "a", {weights.ITEMS: np.ones((3, 1), np.float32), weights.PRIOR: NAN[:2]})
    with refused(BadInput, weights.PRIOR, 3):
        weights.check(tmp_path / "a", items=3, factors=1)


def test_rows_of_compared_items_are_read(tmp_path: Path) -> None:
    weights.write(tmp_path / "a", {weights.COMPARED: np.array([0, 2], np.int32)})
    assert weights.read_compared(tmp_path / "a", 3).tolist() == [0, 2]
