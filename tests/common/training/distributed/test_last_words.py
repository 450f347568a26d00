"""How a killed rank ended is said once: by the first rank, or by the rank's own supervisor if nobody listens."""

import os
from concurrent.futures import ThreadPoolExecutor

import pytest

from common.memory.process import supervisor
from common.training.distributed import last_words


@pytest.fixture
def second_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    """The variables of the second rank on the first node of a job that no other test has."""
    for name, value in {"RANK": "1", "GROUP_RANK": "0", "MASTER_PORT": f"test-{os.getpid()}"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(last_words, "_listening", [])


def test_the_first_rank_says_it(second_rank: None) -> None:
    last_words.listen()
    with ThreadPoolExecutor(1) as pool:
        told = pool.submit(supervisor.heard, "killed at 1.0 MiB of 2.0 MiB\x1b")
        assert last_words.heard() == "rank 1 was killed at 1.0 MiB of 2.0 MiB"
        assert told.result()


def test_what_the_supervisor_has_said_is_not_said_again(second_rank: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "HEARD_SECONDS", 0.01)
    monkeypatch.setattr(last_words, "WAIT_SECONDS", 0.01)
    last_words.listen()
    assert not supervisor.heard("killed")
    assert last_words.heard() == "" and last_words.heard() == ""


@pytest.mark.parametrize(("name", "value"), [("RANK", "0"), ("GROUP_RANK", "1"), ("MASTER_PORT", "nobody listens")])
def test_nobody_is_told(second_rank: None, monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    last_words.listen()
    monkeypatch.setenv(name, value)
    assert not supervisor.heard("killed")
