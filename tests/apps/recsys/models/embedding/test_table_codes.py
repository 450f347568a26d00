"""Fixed inputs of tables: places by use, and codes from an SVD that is the dense one's."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from apps.recsys.data import csr_store
from apps.recsys.data.csr_store import History, NpyWriter
from apps.recsys.data.splits import Kept
from apps.recsys.models.embedding import table_codes
from apps.recsys.models.embedding.embedding_config import EmbeddingConfig

USERS, ITEMS = 80, 30


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Users with 0 to 9 items, some of which many have."""
    random = np.random.default_rng(0)
    liking = 1 / np.arange(2, ITEMS + 2)
    counts = random.integers(0, 10, USERS)
    rows = [np.sort(random.choice(ITEMS, count, replace=False, p=liking / liking.sum())) for count in counts]
    with NpyWriter(tmp_path / "history.indptr.npy", "<i8") as out:
        out.append(np.concatenate([[0], np.cumsum([len(row) for row in rows])]))
    with NpyWriter(tmp_path / "history.items.npy", "<i4") as out:
        out.append(np.concatenate(rows))
    return tmp_path


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Several blocks a pass."""
    whole = History.blocks
    monkeypatch.setattr(csr_store.History, "blocks", lambda self, size=50: whole(self, size))
    yield


def dense(read: History) -> np.ndarray:
    """The interactions as a matrix."""
    matrix = np.zeros((USERS, ITEMS))
    for user in range(USERS):
        matrix[user, read.items(user)] = 1
    return matrix


def test_places_are_by_use(directory: Path) -> None:
    read = History(directory)
    matrix = dense(read)
    found = table_codes.fixed_inputs(
        read, Kept(read, None, whole_users=False), EmbeddingConfig(ITEMS, 8, USERS, table="frequency"), seed=0
    )
    for places, counts in ((found.items, matrix.sum(0)), (found.users, matrix.sum(1))):
        assert places is not None and places.dtype == torch.int32
        assert sorted(places[:, 0].tolist()) == list(range(len(counts)))
        in_order = counts[places[:, 0].argsort()]
        assert (np.diff(in_order) <= 0).all()


def test_codes_cut_the_dense_svd_into_equal_parts(directory: Path) -> None:
    read = History(directory)
    _, values, right = np.linalg.svd(dense(read), full_matrices=False)
    config = EmbeddingConfig(ITEMS, 8, USERS, table="pq", row_bytes=60)
    codes = config.item_table.fixed
    centroids = config.item_table.parts[0].rows // codes
    found = table_codes.fixed_inputs(read, Kept(read, None, whole_users=False), config, seed=0)
    assert found.items is not None and found.users is not None
    assert (found.items.shape, found.users.shape) == ((ITEMS, codes), (USERS, codes))
    assert values[0] > 2 * values[1]
    expected = right[0].argsort().argsort() * centroids // ITEMS
    mirrored = (-right[0]).argsort().argsort() * centroids // ITEMS
    assert found.items[:, 0].tolist() in (expected.tolist(), mirrored.tolist())


def test_the_svd_is_that_of_the_matrix(directory: Path) -> None:
    read = History(directory)
    matrix = dense(read)
    right = np.linalg.svd(matrix, full_matrices=False)[2]

    def blocks() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for start, stop in read.blocks():
            lengths = torch.from_numpy(np.diff(read.indptr[start : stop + 1]))
            yield torch.from_numpy(read.items(start, stop)).long(), lengths

    items, users = table_codes.svd(blocks, items=ITEMS, rank=3, seed=0)
    np.testing.assert_allclose(items.T @ items, np.eye(3), atol=1e-5)
    assert abs(float(right[0] @ items[:, 0].numpy())) > 0.999
    np.testing.assert_allclose(users.numpy(), matrix @ items.numpy(), atol=1e-4)


def test_other_tables_are_told_nothing(directory: Path) -> None:
    read = History(directory)
    assert (
        table_codes.fixed_inputs(read, Kept(read, None, whole_users=False), EmbeddingConfig(ITEMS, 8), seed=0)
        == table_codes.NO_FIXED_INPUTS
    )
