"""Both sides of the training interactions: on disk as in memory, and the same factors from either."""

from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from apps.recsys.data import external_sort
from apps.recsys.data.csr_store import History, NpyWriter
from apps.recsys.data.external_sort import Buckets
from apps.recsys.data.splits import HeldOut, Kept, write
from apps.recsys.models.als import als_matrices, ials

USERS, ITEMS = 70, 40
HYPER = {**ials.HYPER, "regularization": 2.0, "iterations": 3}


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A history of 70 users, of whom some have nothing and one has all items."""
    random = np.random.default_rng(4)
    rows = [np.sort(random.choice(ITEMS, random.integers(0, 12), replace=False)) for _ in range(USERS)]
    rows[9] = np.arange(ITEMS)
    rows[5] = rows[20] = np.zeros(0, np.int64)
    total = sum(map(len, rows))
    for name, dtype, values in (
        ("indptr", "<i8", np.concatenate([[0], np.cumsum([len(row) for row in rows])])),
        ("items", "<i4", np.concatenate(rows)),
        ("values", "<f4", random.integers(1, 6, total)),
    ):
        with NpyWriter(tmp_path / f"history.{name}.npy", dtype) as out:
            out.append(values)
    return tmp_path


def whole(side: als_matrices.Side, after: int = 0) -> sp.csr_matrix:
    """All blocks of a side in one matrix."""
    parts = list(side.blocks(after))
    assert [start for start, _, _ in parts] == [after, *(stop for _, stop, _ in parts)][:-1]
    return sp.vstack([block for _, _, block in parts])


@pytest.mark.parametrize("block", [1, 7, 64, 10_000])
@pytest.mark.parametrize("whole_users", [False, True])
def test_sides_on_disk_are_those_in_memory(
    directory: Path, block: int, whole_users: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(external_sort, "MOST_BUCKETS", 5)
    history = History(directory)
    write(directory, "heldout", [(9, np.arange(0, ITEMS, 3)), (30, history.items(30)[:2])])
    kept = Kept(history, HeldOut(directory), whole_users=whole_users)
    held = als_matrices.in_memory(history, kept, items=ITEMS, hyper=HYPER)
    stored = als_matrices.on_disk(directory, history, kept, items=ITEMS, hyper=HYPER, block=block)
    for one, other in ((held.users, stored.users), (held.items, stored.items)):
        assert one.rows == other.rows
        left, right = whole(one), whole(other)
        np.testing.assert_array_equal(left.indptr, right.indptr)
        np.testing.assert_array_equal(left.indices, right.indices)
        np.testing.assert_array_equal(left.data, right.data)
        assert (whole(other, after=3) != left[3:]).nnz == 0
        assert list(other.blocks(other.rows)) == []
        assert all(stop - start == 1 or made.nnz <= block for start, stop, made in other.blocks())
    assert not list(directory.glob("bucket.*"))
    als_matrices.remove(directory)
    assert {path.name.split(".")[0] for path in directory.iterdir()} == {"history", "heldout"}


@pytest.mark.parametrize("block", [5, 60])
def test_factors_do_not_depend_on_the_blocks(directory: Path, block: int) -> None:
    history = History(directory)
    kept = Kept(history, None, whole_users=False)
    made = {}
    for name, both in (
        ("held", als_matrices.in_memory(history, kept, items=ITEMS, hyper=HYPER)),
        ("stored", als_matrices.on_disk(directory, history, kept, items=ITEMS, hyper=HYPER, block=block)),
    ):
        state = ials.first_state(both, factors=8, seed=1)
        made[name] = ials.fit(both, state, hyper=HYPER, threads=2, after_block=lambda state: None)
    np.testing.assert_array_equal(made["held"], made["stored"])


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), rows=st.integers(1, 50), pairs=st.integers(1, 400), size=st.integers(1, 100))
def test_buckets_sort(tmp_path_factory: pytest.TempPathFactory, seed: int, rows: int, pairs: int, size: int) -> None:
    random = np.random.default_rng(seed)
    row, column = random.integers(0, rows, pairs), random.permutation(10 * pairs)[:pairs]
    ends = np.cumsum(np.bincount(row, minlength=rows))
    buckets = Buckets(tmp_path_factory.mktemp("b"), ends, {"a": "<i4", "b": "<i4", "c": "<f8"}, size=size)
    for part in np.array_split(np.arange(pairs), 1 + pairs // 37):
        buckets.add({"a": row[part], "b": column[part], "c": column[part] / 2})
    made = list(buckets.sorted())
    order = np.lexsort((column, row))
    np.testing.assert_array_equal(np.concatenate([pile["a"] for pile in made]), row[order])
    np.testing.assert_array_equal(np.concatenate([pile["b"] for pile in made]), column[order])
    np.testing.assert_array_equal(np.concatenate([pile["c"] for pile in made]), column[order] / 2)
    assert max(map(len, made)) == buckets.largest <= size + np.bincount(row).max()
