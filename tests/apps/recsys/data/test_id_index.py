"""Ids get the numbers that a dictionary would give them, for far less memory."""

import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apps.recsys.data import arrow_numpy, id_index
from apps.recsys.data.id_index import EMPTY, LONGEST, BadId, Vocabulary
from apps.recsys.planning.train import ID_BYTES


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Tables that must grow, hashes and ids in many parts."""
    monkeypatch.setattr(id_index, "FIRST_SLOTS", 4)
    monkeypatch.setattr(id_index, "HASHED_BYTES", 16)
    monkeypatch.setattr(id_index, "READ_IDS", 7)
    yield


@pytest.mark.usefixtures("tiny")
@settings(max_examples=100, deadline=None)
@given(batches=st.lists(st.lists(st.text(alphabet="abé1 ", max_size=6), max_size=30), max_size=6))
def test_numbers_are_those_of_a_dictionary(tmp_path_factory: pytest.TempPathFactory, batches: list[list[str]]) -> None:
    folder = tmp_path_factory.mktemp("ids")
    ours, theirs = Vocabulary(folder, "user"), dict[str, int]()
    for batch in batches:
        found = ours.encode(arrow_numpy.text(batch))
        assert found.tolist() == [theirs.setdefault(id_, len(theirs)) for id_ in batch]
    assert len(ours) == len(theirs)
    assert ours.find(arrow_numpy.text([*theirs, "absent"])).tolist() == [*theirs.values(), EMPTY]
    keep = np.arange(len(theirs)) % 3 != 1
    kept = [str(id_) for part in ours.ids(keep) for id_ in part.to_pylist()]
    assert kept == [id_ for id_, wanted in zip(theirs, keep, strict=True) if wanted]
    ours.close()
    assert not list(folder.iterdir())


def test_integers_come_back_as_integers(tmp_path: Path) -> None:
    for name, ids, expected in (("a", ["7", "-3"], [7, -3]), ("b", ["7", "07"], ["7", "07"]), ("c", ["+1"], ["+1"])):
        ours = Vocabulary(tmp_path, name)
        ours.encode(arrow_numpy.text(ids))
        assert [id_ for part in ours.ids(np.ones(len(ids), bool)) for id_ in part.to_pylist()] == expected


def test_an_id_that_is_no_id(tmp_path: Path) -> None:
    ours = Vocabulary(tmp_path, "user")
    ours.encode(arrow_numpy.text(["x" * LONGEST]))
    for id_, expected in (("y" * (LONGEST + 1), "'yyy"), ("a\x00b", "NUL")):
        with pytest.raises(BadId, match=expected):
            ours.encode(arrow_numpy.text(["a", id_]))


def test_memory_does_not_depend_on_the_length_of_ids(tmp_path: Path) -> None:
    held = {}
    for length in (8, 200):
        tracemalloc.start()
        ours = Vocabulary(tmp_path, str(length))
        for start in range(0, 300_000, 10_000):
            ours.encode(arrow_numpy.text(f"{n:0{length}d}" for n in range(start, start + 10_000)))
        held[length] = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        assert ours.encode(arrow_numpy.text([f"{299_999:0{length}d}"])).tolist() == [299_999]
    assert held[200] - held[8] < 1 << 20
    assert held[200] < ID_BYTES * 300_000 + (1 << 20)
