"""Vectors on disk are those in memory, in every form in which they are stored."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from apps.recsys.models import bpr, weights
from apps.recsys.models.embedding import user_encoders
from apps.recsys.models.scan import rows as scan_rows
from apps.recsys.models.scan.rows import ItemRows
from common.errors import BadInput
from tests.messages import refused

ITEMS, FACTORS = 300, 8


def stored(path: Path, table: str) -> np.ndarray:
    """Write a table; returns it as it is read into memory."""
    random = np.random.default_rng(0)
    tensors: dict[str, Any] = {weights.ITEMS: random.normal(0, 1, (ITEMS, FACTORS)).astype(np.float32)}
    if table != "full":
        width = FACTORS if table == "int8" else FACTORS // 2
        kind = np.int8 if table == "int8" else np.uint8
        info = np.iinfo(kind)
        tensors = {
            weights.ITEMS: random.integers(info.min, info.max, (ITEMS, width), kind),
            f"{weights.ITEMS}.scales": random.random(ITEMS).astype(np.float16),
        }
    weights.write(path, tensors)
    return weights.read(path)


@pytest.mark.parametrize("table", ["full", "int8", "int4"])
def test_rows_are_those_in_memory(tmp_path: Path, table: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = stored(tmp_path / "w", table)
    for size in (1, 7, 1 << 20):
        monkeypatch.setattr(scan_rows, "BLOCK", size)
        monkeypatch.setattr(scan_rows, "GATHERED", size)
        rows = ItemRows(tmp_path / "w")
        some = np.array([3, 0, 299, 3], np.int32)
        assert rows.shape == whole.shape and (rows[some] == whole[some]).all()
        assert (np.concatenate([block for _, block in rows.blocks()]) == whole).all()
        np.testing.assert_allclose(rows.gramian(), whole.T @ whole, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("cosine", [True, False])
@pytest.mark.parametrize("two", [True, False])
def test_user_vectors_are_those_in_memory(tmp_path: Path, *, cosine: bool, two: bool) -> None:
    whole = stored(tmp_path / "w", "full")
    other = whole[::-1].copy()
    weights.write(tmp_path / "v", {weights.ITEMS: other})
    items, values = np.array([2, 5, 7]), np.ones(3, np.float32)
    rows, side = ItemRows(tmp_path / "w"), ItemRows(tmp_path / "v")
    before = user_encoders.sum_of_items(whole, other if two else None, cosine=cosine)
    after = user_encoders.sum_of_items(rows, side if two else None, cosine=cosine)
    np.testing.assert_allclose(after(items, values), before(items, values), rtol=1e-5, atol=1e-6)
    assert before.contributions is not None and after.contributions is not None
    np.testing.assert_allclose(
        after.contributions(items, values), before.contributions(items, values), rtol=1e-5, atol=1e-6
    )
    np.testing.assert_allclose(rows[items], whole[items], rtol=1e-6)  # both of length 1 by now, for cosines


def test_the_vector_of_bpr_is_that_in_memory(tmp_path: Path) -> None:
    whole = stored(tmp_path / "w", "full")
    items, values, compared = np.arange(40), np.ones(40, np.float32), np.arange(100, 200, dtype=np.int32)
    found = [
        user_encoders.of_kind("bpr", source, bpr.HYPER, negatives=compared)(items, values)
        for source in (whole, ItemRows(tmp_path / "w"))
    ]
    np.testing.assert_allclose(found[0], found[1], rtol=1e-5)


def test_numbers_that_are_not_finite_are_refused_when_they_are_read(tmp_path: Path) -> None:
    factors = np.ones((ITEMS, FACTORS), np.float32)
    factors[7, 3] = np.nan
    weights.write(tmp_path / "w", {weights.ITEMS: factors})
    rows = ItemRows(tmp_path / "w")
    assert rows[np.array([6])].any()
    with refused(BadInput, "finite"):
        rows[np.array([6, 7])]
