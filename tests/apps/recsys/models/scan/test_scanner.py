"""Lists from codes on disk are those of a full ranking, whatever the filter, the vectors and the sizes of tiles."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from apps.recsys.models import weights
from apps.recsys.models.scan import choice, scanner, stored
from apps.recsys.models.scan.rows import ItemRows
from apps.recsys.models.scan.scanner import Scanner
from common.errors import BadInput
from tests.messages import refused

ITEMS, FACTORS = 3000, 12
IALS: Any = {}


def vectors(spread: float) -> np.ndarray:
    """Items' vectors whose lengths spread; some are equal, some are zero."""
    random = np.random.default_rng(0)
    found = random.normal(0, 1, (ITEMS, FACTORS)) * np.exp(random.normal(0, spread, (ITEMS, 1)))
    found[100:120], found[200:260] = found[0], 0
    return found.astype(np.float32)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small tiles and bounds, so that a scan has many."""
    for name, value in {"FIRST": 64, "TILE": 256, "DIRECT": 16, "MOST_CANDIDATES": 48}.items():
        monkeypatch.setattr(scanner, name, value)
    monkeypatch.setattr(stored, "LEAST_ITEMS", 1)


def written(folder: Path, factors: np.ndarray) -> tuple[Scanner, ItemRows]:
    """A scanner of some vectors."""
    weights.write(folder / weights.WEIGHTS, {weights.ITEMS: factors})
    stored.write(folder, "ials", IALS)
    rows = stored.vectors(folder, "ials", IALS)
    return Scanner(folder, rows), rows


def exact(factors: np.ndarray, vector: np.ndarray, k: int, mask: np.ndarray | None) -> tuple[list[float], set[int]]:
    """Scores of the best items, and all items with at least the last of these."""
    scores = factors.astype(np.float64) @ vector
    if mask is not None:
        scores[~mask] = -np.inf
    best = np.sort(scores)[::-1][:k]
    best = best[best > -np.inf]
    return best.tolist(), set(np.flatnonzero(scores >= best[-1] - 1e-5 * (1 + abs(best[-1]))).tolist()) if len(
        best
    ) else set()


@pytest.mark.parametrize("spread", [1.5, 0.3, 0.0])
@pytest.mark.parametrize("passing", [None, 0.9, 0.1, 0.01, 0.003, 0.0])
@pytest.mark.parametrize("k", [1, 10, 300])
@pytest.mark.usefixtures("small")
def test_lists_are_those_of_a_full_ranking(tmp_path: Path, spread: float, passing: float | None, k: int) -> None:
    factors, random = vectors(spread), np.random.default_rng(1)
    scan, _ = written(tmp_path, factors)
    for _ in range(5):
        vector = random.normal(0, 1, FACTORS).astype(np.float32)
        mask = None if passing is None else random.random(ITEMS) < passing
        best, allowed = exact(factors, vector, k, mask)
        found = scan.best(vector, k, mask)
        assert [score for _, score in found] == pytest.approx(best, rel=1e-6, abs=1e-5)
        assert {row for row, _ in found} <= allowed and len(dict(found)) == len(found)
        assert found == sorted(found, key=lambda one: (-one[1], one[0]))


@pytest.mark.parametrize("room", [0, 40, 300, ITEMS])
@pytest.mark.parametrize("passing", [1.0, 0.3, 0.05, 0.003, 0.0])
@pytest.mark.parametrize("spread", [1.5, 0.0])
@pytest.mark.usefixtures("small")
def test_lists_of_a_filter_that_is_asked_for_again_are_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int, passing: float, spread: float
) -> None:
    monkeypatch.setattr(choice, "ITEMS", room)
    scan, _ = written(tmp_path, vectors(spread))
    random = np.random.default_rng(1)
    mask = random.random(ITEMS) < passing
    again = choice.Choice(mask.copy)
    for k in (1, 10, 3, 300, 10):
        vector, seen = random.normal(0, 1, FACTORS).astype(np.float32), np.flatnonzero(random.random(ITEMS) < 0.1)
        unseen = mask.copy()
        unseen[seen] = False
        wanted = scan.best(vector, k, unseen)
        assert scan.best(vector, k, mask, seen) == scan.best(vector, k, again, seen) == wanted
        assert again.count <= room


@pytest.mark.usefixtures("small")
def test_items_of_a_filter_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scan, _ = written(tmp_path, vectors(0.3))
    again = choice.Choice((np.arange(ITEMS) % 3 == 0).copy)
    vector = np.ones(FACTORS, np.float32)
    first = scan.best(vector, 10, again)

    def refuse(self: Any, values: np.ndarray, start: int) -> None:
        raise AssertionError("read again")

    monkeypatch.setattr(scanner.NpyReader, "fill", refuse)
    assert scan.best(vector, 10, again) == first


@pytest.mark.usefixtures("small")
def test_a_vector_of_zeros_ranks_the_first_items(tmp_path: Path) -> None:
    scan, _ = written(tmp_path, vectors(1.0))
    assert scan.best(np.zeros(FACTORS, np.float32), 3, None) == [(0, 0.0), (1, 0.0), (2, 0.0)]
    mask = np.ones(ITEMS, bool)
    mask[:2] = False
    assert [row for row, _ in scan.best(np.zeros(FACTORS, np.float32), 3, mask)] == [2, 3, 4]


@pytest.mark.usefixtures("small")
def test_most_of_the_catalogue_is_not_read_where_lengths_spread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scan, rows = written(tmp_path, vectors(1.5))
    read: list[int] = []
    fill, item = scanner.NpyReader.fill, ItemRows.__getitem__

    def counted(self: Any, values: np.ndarray, start: int) -> None:
        read.append(len(values))
        fill(self, values, start)

    def scored(self: ItemRows, some: np.ndarray) -> np.ndarray:
        read.append(100 * len(some))
        return item(self, some)

    monkeypatch.setattr(scanner.NpyReader, "fill", counted)
    monkeypatch.setattr(ItemRows, "__getitem__", scored)
    scan.best(np.ones(FACTORS, np.float32), 10, None)
    assert sum(read) < ITEMS * FACTORS / 2
    del rows


def test_codes_say_how_far_they_are_from_the_rows() -> None:
    factors = vectors(1.0)
    codes, scales, missing = stored.encoded(factors)
    assert codes.dtype == np.int8 and np.abs(codes).max() == stored.LARGEST
    off = np.linalg.norm(factors.astype(np.float64) - codes * scales[:, None].astype(np.float64), axis=1)
    np.testing.assert_allclose(missing, off, rtol=1e-4, atol=1e-6)
    assert (missing <= 0.02 * np.linalg.norm(factors, axis=1) + 1e-6).all()


@pytest.mark.parametrize("name", [stored.CODES, stored.ITEMS, stored.NUMBERS, weights.WEIGHTS])
@pytest.mark.usefixtures("small")
def test_a_file_that_is_cut_while_it_is_read_is_an_error_and_no_crash(tmp_path: Path, name: str) -> None:
    scan, _ = written(tmp_path, vectors(0.0))
    with (tmp_path / name).open("r+b") as stream:
        stream.truncate(500)
    with refused(BadInput, "shorter"):
        scan.best(np.ones(FACTORS, np.float32), 10, None)


@pytest.mark.usefixtures("small")
def test_files_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    scan, rows = written(tmp_path, vectors(1.0))
    numbers = np.load(tmp_path / stored.NUMBERS)
    np.save(tmp_path / stored.NUMBERS, numbers[::-1].copy())
    with refused(BadInput, stored.NUMBERS, "order"):
        Scanner(tmp_path, rows)
    items = np.load(tmp_path / stored.ITEMS)
    np.save(tmp_path / stored.ITEMS, items + 5)
    np.save(tmp_path / stored.NUMBERS, numbers)
    with refused(BadInput, "range"):
        Scanner(tmp_path, rows).best(np.ones(FACTORS, np.float32), ITEMS, None)
    del scan
