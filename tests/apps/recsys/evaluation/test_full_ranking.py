"""The ranking and its metrics against a naive float64 reference; the fold-in and the training against ``implicit``."""

import math

import numpy as np
import pytest
import scipy.sparse as sp
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from apps.recsys.evaluation import metrics
from apps.recsys.evaluation.full_ranking import evaluate
from apps.recsys.evaluation.metrics import METRICS, Tally, gini
from apps.recsys.models.als import als_matrices, ials
from apps.recsys.models.als.confidence import confidence
from apps.recsys.models.scorers import FactorScorer
from apps.recsys.models.top_k import top_k

OWNERS = 200
"""Users there are, for ``novelty``."""
Users = list[tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.int64]]]


def naive(vectors: NDArray[np.float64], factors: NDArray[np.float64], users: Users) -> dict[str, float]:
    """Every score at once, sorted whole; the definitions written out."""
    sums = dict.fromkeys((*METRICS, "novelty@10"), 0.0)
    shown: list[int] = []
    for vector, (known, _, scored) in zip(vectors, users, strict=True):
        scores = factors @ vector
        ranking = [i for i in sorted(range(len(scores)), key=lambda i: (-scores[i], i)) if i not in set(known)]
        hits = [item in set(scored) for item in ranking]
        shown += ranking[:10]
        for name in sums:
            kind, _, depth = name.partition("@")
            sums[name] += naive_value(kind, int(depth), ranking, hits, len(scored))
    means = {name: total / len(users) for name, total in sums.items()}
    counts = [shown.count(item) for item in range(len(factors))]
    differences = sum(abs(one - other) for one in counts for other in counts)
    means["coverage@10"] = len(set(shown)) / len(factors)
    means["gini@10"] = differences / (2 * len(factors) * sum(counts)) if shown else 0.0
    return means


def naive_value(kind: str, k: int, ranking: list[int], hits: list[bool], scored: int) -> float:
    """One user's value."""
    found = [rank for rank, hit in enumerate(hits[:k], 1) if hit]
    if kind == "ndcg":
        best = sum(1 / math.log2(rank + 1) for rank in range(1, min(k, scored) + 1))
        return sum(1 / math.log2(rank + 1) for rank in found) / best
    if kind == "novelty":
        return sum(-math.log2((item + 1) / OWNERS) for item in ranking[:k]) / max(1, len(ranking[:k]))
    if kind == "map":
        return sum(sum(hits[:rank]) / rank for rank in found) / min(k, scored)
    values = {
        "recall": len(found) / min(k, scored),
        "precision": len(found) / k,
        "mrr": 1 / found[0] if found else 0.0,
        "hr": float(bool(found)),
    }
    return values.get(kind, 0.0)


@st.composite
def problems(draw: st.DrawFn) -> tuple[NDArray[np.float32], NDArray[np.float32], Users]:
    """Small integers as factors: their products are exact in float32, and ties are common."""
    items, count, width = draw(st.integers(3, 150)), draw(st.integers(1, 20)), draw(st.integers(1, 4))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    factors = random.integers(-3, 4, (items, width)).astype(np.float32)
    vectors = random.integers(-3, 4, (count, width)).astype(np.float32)
    users: Users = []
    for number in range(count):
        order = random.permutation(items)
        known, scored = random.integers(0, items - 1), random.integers(1, items)
        # the user's number stands in place of its values, for the test's fold-in
        users.append((order[:known], np.array([number], np.float32), np.sort(order[known : known + scored])))
    return vectors, factors, users


@settings(max_examples=60, deadline=None)
@given(problem=problems(), block=st.integers(1, 9), threads=st.integers(1, 3))
def test_metrics_equal_a_naive_reference(
    problem: tuple[NDArray[np.float32], NDArray[np.float32], Users], block: int, threads: int
) -> None:
    vectors, factors, users = problem
    owners = np.arange(1, len(factors) + 1)  # item n is had by n + 1 of the users
    tally = Tally(len(factors), (*METRICS, "novelty@10"), owners=owners, users=OWNERS)
    scorer = FactorScorer(factors, lambda _, values: vectors[int(values[0])])
    evaluate(iter(users), scorer, block=block, threads=threads, tally=tally)
    ours = tally.means()
    reference = naive(vectors.astype(np.float64), factors.astype(np.float64), users)
    assert ours.keys() == reference.keys()
    for name, value in reference.items():
        assert ours[name] == pytest.approx(value, abs=1e-9), name


@given(st.lists(st.sampled_from([-np.inf, -1.0, 0.0, 1.0, 2.0]), min_size=1, max_size=30), st.integers(1, 40))
def test_top_k_is_a_stable_sort(scores: list[float], k: int) -> None:
    best = top_k(np.array(scores, np.float32), k)
    order = sorted((i for i, s in enumerate(scores) if s > -np.inf), key=lambda i: (-scores[i], i))
    assert list(best) == order[:k]


@given(st.integers(0, 10**6), st.integers(1, 20), st.integers(1, 6000), st.sampled_from([2, 50, 10**6]))
def test_top_k_of_many_is_a_stable_sort(seed: int, k: int, count: int, levels: int) -> None:
    """Of many scores a few groups are looked at first: with many that are equal, and many that are left out."""
    random = np.random.default_rng(seed)
    scores = random.integers(0, levels, count).astype(np.float32)
    scores[random.random(count) < random.choice([0, 0.5, 0.999])] = -np.inf
    order = np.argsort(-scores, kind="stable")
    np.testing.assert_array_equal(top_k(scores, k), order[scores[order] > -np.inf][:k])


@given(st.integers(0, 10**6), st.sampled_from([1, 7, 1 << 14]))
def test_users_together_have_the_metrics_of_each(seed: int, counted: int) -> None:
    """Rankings that are too short, items to score that no ranking has, and users of several parts."""
    random = np.random.default_rng(seed)
    rankings = [random.permutation(20)[: random.integers(0, 12)] for _ in range(9)]
    scored = [random.permutation(30)[: random.integers(1, 15)] for _ in rankings]
    names = ("ndcg@5", "recall@5", "recall@20", "precision@10", "map@5", "mrr@5", "hr@3", "novelty@5", "coverage@5")
    owners = np.arange(1, 21)
    together, alone = (Tally(20, names, owners=owners, users=40) for _ in range(2))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics, "COUNTED", counted)
        together.add_all(rankings, scored)
    for ranking, some in zip(rankings, scored, strict=True):
        alone.add(ranking, some)
        hits = [rank for rank, item in enumerate(ranking[:5], 1) if item in some]
        expected = {
            "recall@5": len(hits) / min(5, len(some)),
            "map@5": sum(n / rank for n, rank in enumerate(hits, 1)) / min(5, len(some)),
            "mrr@5": 1 / hits[0] if hits else 0,
            "novelty@5": np.mean(np.log2(40 / owners[ranking[:5]])) if len(ranking) else 0,
            "ndcg@5": sum(1 / np.log2(1 + np.array(hits))) / sum(1 / np.log2(np.arange(2, 2 + min(5, len(some))))),
        }
        for name, value in expected.items():
            assert together.per_user()[name][alone.users - 1] == pytest.approx(value, abs=1e-12), name
    assert together.means() == pytest.approx(alone.means(), abs=1e-12)


def test_values_and_intervals_of_users() -> None:
    tally = Tally(5, ("recall@2", "hr@1"), plain_recall=True)
    for scored in ([0], [1, 2, 3], [4]):
        tally.add(np.array([0, 1]), np.array(scored))
    assert tally.users == 3
    np.testing.assert_allclose(tally.per_user()["recall@2"], [1, 1 / 3, 0])
    np.testing.assert_array_equal(tally.per_user()["hr@1"], [1, 0, 0])
    low, high = tally.intervals()["recall@2"]
    assert 0 <= low < 4 / 9 < high <= 1
    many = Tally(2, ("hr@1",))
    for user in range(400):
        many.add(np.array([0]), np.array([user % 2]))
    low, high = many.intervals()["hr@1"]
    # a share of one half over 400 users has a deviation of 0.025
    assert (low, high) == pytest.approx((0.5 - 1.96 * 0.025, 0.5 + 1.96 * 0.025), abs=0.006)


def test_gini_of_extremes() -> None:
    assert gini(np.array([3, 3, 3])) == pytest.approx(0)
    assert gini(np.array([0, 0, 0, 8])) == pytest.approx(0.75)
    assert gini(np.zeros(4, int)) == 0


def test_unknown_metrics_are_refused() -> None:
    with pytest.raises(ValueError, match=r"'auc@10'.*ndcg"):
        Tally(3, ("auc@10",))


@pytest.fixture(scope="module")
def matrix() -> sp.csr_matrix:
    """Confidences of 80 users and 50 items."""
    random = np.random.default_rng(3)
    made = sp.random(80, 50, 0.2, format="csr", dtype=np.float32, random_state=3)
    made.data = random.integers(1, 9, made.nnz).astype(np.float32)
    return made


def test_training_is_that_of_implicit(matrix: sp.csr_matrix) -> None:
    from implicit.cpu.als import AlternatingLeastSquares

    hyper = {**ials.HYPER, "regularization": 2.0, "iterations": 4}
    theirs = AlternatingLeastSquares(factors=8, regularization=2.0, iterations=4, num_threads=1, random_state=5)
    theirs.fit(matrix.copy(), show_progress=False)
    calls: list[int] = []
    both = als_matrices.Sides(als_matrices.InMemory(matrix), als_matrices.InMemory(matrix.T.tocsr()))
    state = ials.first_state(both, factors=8, seed=5)
    ours = ials.fit(both, state, hyper=hyper, threads=1, after_block=lambda state: calls.append(state.sweep))
    np.testing.assert_array_equal(ours, theirs.item_factors)
    assert calls == list(range(8))


def test_fold_in_is_that_of_implicit(matrix: sp.csr_matrix) -> None:
    from implicit.cpu.als import AlternatingLeastSquares

    model = AlternatingLeastSquares(factors=8, regularization=2.0, iterations=4, num_threads=1, random_state=5)
    model.fit(matrix, show_progress=False)
    shared, hyper = ials.gramian(model.item_factors), {**ials.HYPER, "regularization": 2.0}
    for user in range(0, 80, 7):
        row = matrix[user]
        ours = ials.fold_in(shared, model.item_factors, row.indices, row.data, hyper)
        np.testing.assert_allclose(ours, model.recalculate_user(user, row), atol=1e-4)
    nothing = np.zeros(0, int), np.zeros(0, np.float32)
    assert not ials.fold_in(shared, model.item_factors, *nothing, hyper).any()


def test_confidences() -> None:
    values = np.array([1.0, 7.0], np.float32)
    expected = {"log": 2 * np.log1p(values), "value": 2 * values, "binary": [2, 2]}
    for weight, right in expected.items():
        np.testing.assert_allclose(confidence(values, {"alpha": 2.0, "weight": weight}), right, rtol=1e-6)
    np.testing.assert_array_equal(values, [1, 7])


def test_fold_in_with_a_frequency_is_that_of_the_exact_solver(matrix: sp.csr_matrix) -> None:
    from apps.recsys.models.als import ials_exact

    hyper = {**ials.HYPER, "regularization": 2.0, "frequency_scaling": 1.0}
    factors = np.random.default_rng(3).normal(0, 0.3, (matrix.shape[1], 8)).astype(np.float32)
    solved = np.empty((matrix.shape[0], 8), np.float32)
    ials_exact.solve(matrix, solved, factors, regularization=2.0, exponent=1.0, threads=1)
    for user in range(0, 80, 7):
        row = matrix[user]
        ours = ials.fold_in(ials.gramian(factors), factors, row.indices, row.data, hyper)
        np.testing.assert_allclose(ours, solved[user], rtol=1e-3, atol=1e-4)


def test_intervals_are_those_of_scipy_s_bootstrap() -> None:
    """Of one model's values and of differences of two: the same samples of the users give the same ends."""
    random = np.random.default_rng(3)
    mine = {"ndcg@10": random.random(70), "hr@1": (random.random(70) < 0.3).astype(float)}
    paired = {name: values - random.random(70) for name, values in mine.items()}
    for values in (mine, paired):
        found = metrics.intervals(values, seed=5)
        for name, column in values.items():
            theirs = scipy.stats.bootstrap(
                (column,),
                np.mean,
                n_resamples=metrics.RESAMPLES,
                method="percentile",
                random_state=np.random.default_rng(5),
            ).confidence_interval
            assert found[name] == pytest.approx((theirs.low, theirs.high), abs=1e-12), name
    assert metrics.intervals({}) == {}


@pytest.mark.parametrize(("plain", "recall"), [(False, 0.8889), (True, 0.8333)])
def test_the_example_of_the_protocol_page(plain: bool, recall: float) -> None:
    """Values of docs/protocol.md, which other libraries computed for the same rankings."""
    tally = Tally(8, ("ndcg@3", "recall@3", "precision@3", "map@3"), plain_recall=plain)
    rankings = ([0, 1, 2, 3, 4, 5], [5, 4, 3, 2, 1, 0], [3, 1, 0, 2, 4, 5])
    for ranking, scored in zip(rankings, ([0, 2, 3, 4], [5], [1, 3]), strict=True):
        tally.add(np.array(ranking), np.array(scored))
    expected = {"ndcg@3": 0.9013, "recall@3": recall, "precision@3": 0.5556, "map@3": 0.8519}
    assert tally.means() == pytest.approx(expected, abs=5e-5)
