"""Events in memory: merged with histories as a training merges rows, and part of a linear model's interactions."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apps.recsys.data.csr_store import History
from apps.recsys.models.linear.filter import FilterScorer
from apps.recsys.models.linear.spectral import Spectrum
from apps.recsys.serving.feedback.fresh import Fresh
from apps.recsys.serving.feedback.journal import Event
from tests.apps.recsys.models.linear.test_filter import interactions, normalised, stored

SEEN = np.array([2, 5], np.int32), np.array([1, 4], np.float32)


@pytest.fixture
def history(tmp_path: Path) -> History:
    """Two users; the first had the items 2 and 5."""
    dense = np.zeros((2, 9))
    dense[0, [2, 5]] = dense[1, 0] = 1
    stored(tmp_path / "h", dense)
    return History(tmp_path / "h", columns=9)


@pytest.mark.parametrize(
    ("rule", "expected"),
    [("sum", {1: 3, 2: 1, 5: 7}), ("last", {1: 2, 2: 1, 5: 3}), ("once", {1: 1, 2: 1, 5: 1})],
)
def test_repeated_events_count_as_in_training(history: History, rule: str, expected: dict[int, float]) -> None:
    fresh = Fresh(2, 10, duplicates=rule)
    given = [("a", 0, 1, 1.0), ("a", 0, 5, 3.0), ("b", 1, 5, 9.0), ("a", 0, 1, 2.0)]
    firsts = [
        fresh.add(Event(user, str(item), value, 0.0, str(place)), row, item, history)
        for place, (user, row, item, value) in enumerate(given)
    ]
    assert firsts == [True, False, True, False]
    values = np.ones(2, np.float32) if rule == "once" else SEEN[1]
    items, merged = fresh.merged(0, SEEN[0], values)
    assert dict(zip(items.tolist(), merged.tolist(), strict=True)) == expected
    assert items.tolist() == sorted(items.tolist())


def test_new_users_get_numbers_and_small_values_count_nothing(history: History) -> None:
    fresh = Fresh(2, 10, least=3)
    assert fresh.add(Event("new", "4", 3.0, 0.0), None, 4, history)
    assert not fresh.add(Event("new", "6", 2.0, 0.0), None, 6, history)
    assert fresh.user("new") == 2 and fresh.user("other") is None and fresh.users == 3
    none = np.zeros(0, np.int32), np.zeros(0, np.float32)
    items, values = fresh.merged(2, *none)
    assert (items.tolist(), values.tolist()) == ([4], [3.0])
    assert fresh.room == 8


def test_an_event_that_is_sent_again_is_the_same(history: History) -> None:
    fresh = Fresh(2, 10)
    one = Event("a", "1", 2.0, 5.0, "x")
    fresh.add(one, 0, 1, history)
    assert fresh.has(one) and fresh.has(one._replace(value=3.0)) and not fresh.has(one._replace(id="y"))
    bare = one._replace(id="")
    assert not fresh.has(bare)
    fresh.add(bare, 0, 1, history)
    assert fresh.has(bare) and not fresh.has(bare._replace(time=6.0))


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), power=st.sampled_from([0.0, 0.4, 1.0]), spectral=st.booleans())
def test_a_linear_model_scores_as_if_it_was_made_with_the_events(
    tmp_path_factory: pytest.TempPathFactory, seed: int, power: float, spectral: bool
) -> None:
    random, folder = np.random.default_rng(seed), tmp_path_factory.mktemp("linear")
    before = interactions(seed)
    users, items = before.shape
    log = stored(folder, before)
    vectors = random.normal(0, 0.1, (items, 3)).astype(np.float32)
    spectrum = Spectrum(vectors, np.array([0.9, 0.5, 0.2], np.float32)) if spectral else None
    scorer = FilterScorer(log, log.counts(), degree_power=power, saturation=0.5, spectrum=spectrum)
    history, fresh = History(folder, columns=items), Fresh(users, 100)
    after = np.vstack([before, np.zeros((3, items))])
    for place in range(60):
        row, item = int(random.integers(users + 3)), int(random.integers(items))
        event = Event(f"u{row}", str(item), 1.0, 0.0, str(place))
        number = row if row < users else fresh.user(event.user)
        fresh.add(event, number, item, history)
        after[row if row < users else fresh.user(event.user), item] = 1
        if place % 20 == 19:
            fresh.teach(scorer, scorer.counts)
    history.close()
    rebuilt = FilterScorer(
        stored(folder / "after", after),
        after.sum(0).astype(np.int32),
        degree_power=power,
        saturation=0.5,
        spectrum=spectrum,
    )
    asked = [(np.flatnonzero(row), np.ones(int(row.sum()), np.float32)) for row in (after[0], after[7], after[-1])]
    expected = rebuilt.scores(asked, rebuilt.workspace(3)).copy()
    np.testing.assert_allclose(scorer.scores(asked, scorer.workspace(3)), expected, atol=1e-6, rtol=1e-5)
    np.testing.assert_allclose(scorer.similarities(3), rebuilt.similarities(3), atol=1e-6)
    rows = np.array([0, 3, 8])
    np.testing.assert_allclose(scorer.closeness(rows), rebuilt.closeness(rows), atol=1e-6)
    parts = scorer.contributions(asked[0][0], asked[0][1], rows)
    np.testing.assert_allclose(parts, rebuilt.contributions(asked[0][0], asked[0][1], rows), atol=1e-6)
    if power == 0.4 and not spectral:
        degrees = np.maximum(after.sum(0), 1)
        dense = degrees**0.4 * (normalised(after) @ (after[0] * degrees**-0.4))
        np.testing.assert_allclose(expected[0], dense, atol=1e-5)
