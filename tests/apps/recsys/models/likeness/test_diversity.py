"""Maximal marginal relevance: equal to a naive one, the cosines of ``similar``, one list as in the lists for all."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apps.recsys.data.csr_store import NpyWriter
from apps.recsys.models.likeness.diversity import diverse, rerank, shortlist
from apps.recsys.models.linear import readers as readers_module
from apps.recsys.models.linear.filter import FilterScorer
from apps.recsys.models.linear.log import Log
from apps.recsys.models.linear.readers import Readers, write_readers
from apps.recsys.models.recommender import load_manifest
from apps.recsys.models.scorers import FactorScorer
from apps.recsys.planning.questions.diversity import diversity_terms, require_choice
from apps.recsys.serving.service import RecommenderService
from common.errors import UsageError
from tests.apps.recsys.conftest import Trained
from tests.messages import refused
from tests.promise import kept


def naive(scores: list[float], closeness: Any, k: int, diversity: float) -> list[int]:
    """The formula of Carbonell and Goldstein, term by term."""
    least, most = min(scores, default=0.0), max(scores, default=0.0)
    relevance = [(score - least) / ((most - least) or 1.0) for score in scores]
    chosen: list[int] = []
    while len(chosen) < min(k, len(scores)):
        left = [item for item in range(len(scores)) if item not in chosen]
        marginal = [
            (1 - diversity) * relevance[item]
            - diversity * max((float(closeness[item, other]) for other in chosen), default=0.0)
            for item in left
        ]
        chosen.append(left[marginal.index(max(marginal))])
    return chosen


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 10**6),
    count=st.integers(0, 30),
    k=st.integers(1, 40),
    diversity=st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0]),
)
def test_it_is_the_naive_one(seed: int, count: int, k: int, diversity: float) -> None:
    random = np.random.default_rng(seed)
    vectors = random.normal(size=(count, 4))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    closeness = (vectors @ vectors.T).astype(np.float32)
    scores = np.sort(random.choice([*random.normal(size=8), *random.normal(size=8)], count))[::-1]  # some are equal
    order = rerank(scores, closeness, k, diversity).tolist()
    assert order == naive(scores.tolist(), closeness, k, diversity)
    if not diversity:
        assert order == [*range(min(k, count))]


def filter_scorer(folder: Path, readers: Any, by_readers: bool = False) -> FilterScorer:
    """A filter whose interactions are a matrix of users and items; with ``by_readers`` as a large one."""
    indptr = np.concatenate([[0], np.cumsum(readers.sum(1))])
    for name, kind, values in (("indptr", "<i8", indptr), ("items", "<i4", np.nonzero(readers)[1])):
        with NpyWriter(folder / f"history.{name}.npy", kind) as writer:
            writer.append(values)
    log, counts, stored = Log(folder, readers.shape[1]), readers.sum(0).astype(np.int32), None
    if by_readers:
        write_readers(folder, log, counts)
        stored = Readers(folder, log)
    return FilterScorer(log, counts, degree_power=0.4, readers=stored)


@pytest.mark.parametrize("kind", ["factors", "prior", "filter", "readers"])
def test_cosines_are_those_of_similar(tmp_path: Path, kind: str) -> None:
    random = np.random.default_rng(5)
    if kind in ("filter", "readers"):
        readers = (random.random((50, 20)) < 0.3).astype(np.int64)
        readers[:, 3] = 0  # nobody had it
        scorer: Any = filter_scorer(tmp_path, readers, kind == "readers")
        weighted = readers / np.sqrt(np.maximum(readers.sum(1, keepdims=True), 1))
        norms = np.maximum(np.linalg.norm(weighted, axis=0), 1e-9)
        expected = (weighted / norms).T @ (weighted / norms)
    else:
        factors = random.normal(size=(20, 6)).astype(np.float32)
        scorer = FactorScorer(factors, lambda items, values: factors[0], prior=kind == "prior")
        vectors = factors[:, :-1] if kind == "prior" else factors
        unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        expected, before = unit @ unit.T, factors.copy()
    rows = np.array([7, 2, 19, 3, 11])
    closeness = scorer.closeness(rows)
    assert closeness.dtype == np.float32
    np.testing.assert_allclose(closeness, expected[np.ix_(rows, rows)], atol=2e-6)
    for place, row in enumerate(rows):
        np.testing.assert_allclose(closeness[place], scorer.similarities(int(row))[rows], atol=2e-6)
    if kind in ("factors", "prior"):
        np.testing.assert_array_equal(factors, before)


def test_a_large_filter_looks_at_some_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    readers = (np.random.default_rng(6).random((4000, 12)) < 0.4).astype(np.int64)
    readers[:, 5] = readers[:, 2]
    every, some = (filter_scorer(tmp_path, readers, by_readers) for by_readers in (False, True))
    looked_at: list[int] = []
    rows = Readers.rows

    def counted(self: Readers, users: Any) -> Any:
        looked_at.append(len(users))
        return rows(self, users)

    monkeypatch.setattr(Readers, "rows", counted)
    monkeypatch.setattr(readers_module, "READ", 600)
    monkeypatch.setattr(readers_module, "PRODUCTS", 500)
    np.testing.assert_allclose(some.similarities(2), every.similarities(2), atol=0.1)
    assert some.similarities(2)[5] > 0.9 and 300 < sum(looked_at) <= 2 * 600 and max(looked_at) <= 500
    looked_at.clear()
    np.testing.assert_allclose(some.closeness(np.arange(6)), every.closeness(np.arange(6)), atol=0.1)
    assert 300 < sum(looked_at) <= 600


def test_lists_for_all_are_each_users_own(trained: Trained, run: Callable[..., Any], tmp_path: Path) -> None:
    command = ("apps.recsys", "recommend", trained.model, "--memory", "250MiB", "-k", 6, "--diversity", 0.7)
    done = run(*command, "--all-users", "-o", tmp_path / "all.parquet", "--json")
    assert done.code == 0, done.err
    kept(done.record)
    lists: dict[str, list[tuple[Any, float]]] = {}
    for user, _, item, score in zip(*pq.read_table(tmp_path / "all.parquet").to_pydict().values(), strict=True):
        lists.setdefault(user, []).append((item, score))
    service = RecommenderService(trained.model, load_manifest(trained.model))
    differ = 0
    for user in [*lists][:30]:
        best = service.ranked(user, (), shortlist(6, 0.7)).best
        chosen = diverse(best, service.recommender.scorer, 6, 0.7)
        assert [item for item, _ in lists[user]] == [service.items.id(row) for row, _ in chosen]
        np.testing.assert_allclose([score for _, score in lists[user]], [score for _, score in chosen], rtol=1e-5)
        assert chosen == service.ranked(user, (), 6, diversity=0.7).best
        differ += [row for row, _ in chosen] != [row for row, _ in best[:6]]
    assert differ > 25  # or this shows nothing


def test_what_is_priced_and_refused() -> None:
    ials = {"kind": "ials", "factors": 64, "items": 10**6, "users": 10**5, "interactions": 10**7, "hyper": {}}
    ials["longest_history"] = 900
    linear = {**ials, "kind": "linear", "hyper": {"form": "filter"}}
    assert diversity_terms(10, 0.0, ials, ("answer",)) == []
    for manifest in (ials, linear):
        few, many, threads = (
            diversity_terms(k, 0.5, manifest, ("rank",), threads=threads)[0].bytes
            for k, threads in ((10, 1), (100, 1), (10, 3))
        )
        assert many > few + 5 * 10**6 and threads == 3 * few
    with refused(UsageError, "--diversity", "popularity"):
        require_choice(None, 0.1, {"kind": "popularity"})
    require_choice(None, 0.0, {"kind": "popularity"})
