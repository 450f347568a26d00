"""Feedback over HTTP: part of the next answer, kept over a restart, and folded into a new model once."""

import json
import resource
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from apps.recsys.data.csr_store import History
from tests.apps.recsys.conftest import Trained
from tests.apps.recsys.in_process import done
from tests.apps.recsys.running import serving
from tests.machine import patience
from tests.messages import says

SETTINGS: Mapping[str, tuple[object, ...]] = {
    "ials": ("--factors", 8, "--epochs", 2),
    "linear": ("--set", "form=filter", "--set", "degree_power=0.3", "--set", "saturation=1", "--factors", 0),
}
EVENTS = [
    {"user": "u00003", "item": 8, "value": 3, "id": "a"},
    {"user": "u00003", "item": 151, "time": 1e9},
    {"user": "u00009", "item": "151", "value": 2},
    {"user": "somebody new", "item": 151},
    {"user": "somebody new", "item": 30, "value": 2.5},
]


@pytest.fixture(scope="module", params=list(SETTINGS))
def model(request: pytest.FixtureRequest, trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model on all of the sample."""
    folder: Path = tmp_path_factory.mktemp("feedback") / str(request.param)
    done("train", trained.interactions, "-o", folder, "--model", request.param, *SETTINGS[request.param])
    return folder


@pytest.fixture
def asking() -> Iterator[Callable[[str], httpx.Client]]:
    """Clients of servers."""
    clients: list[httpx.Client] = []

    def ask(address: str) -> httpx.Client:
        clients.append(httpx.Client(base_url=address, timeout=patience(30)))
        return clients[-1]

    yield ask
    for client in clients:
        client.close()


def lists(client: httpx.Client, *users: str) -> list[dict[str, float]]:
    """Scores by id of each user's list."""
    answer = client.post("/recommend", json={"users": users, "k": 40}).json()["lists"]
    return [{item["id"]: item["score"] for item in one["items"]} for one in answer]


def alike(one: Mapping[str, float], other: Mapping[str, float]) -> bool:
    """The same items with the same scores, as far as they are written."""
    return one.keys() == other.keys() and np.allclose([*one.values()], [other[id_] for id_ in one], atol=2e-6)


def test_feedback_counts_at_once_and_as_if_the_model_was_made_with_it(
    model: Path, tmp_path: Path, asking: Callable[[str], httpx.Client]
) -> None:
    log, updated, options = tmp_path / "log.jsonl", tmp_path / "updated", ("--feedback", tmp_path / "log.jsonl")
    with serving(model, *options) as (_, address):
        client = asking(address)
        old, others = lists(client, "u00003", "u00100")
        assert client.get("/recommend?user=somebody+new").status_code == 404
        answer = client.post("/feedback", json={"events": EVENTS})
        assert answer.json() == {"accepted": 5, "duplicates": 0, "events": 5}
        began = time.monotonic()
        again = client.post("/feedback", json={"events": EVENTS[:2]}).json()
        assert time.monotonic() - began < patience(1)
        assert again == {"accepted": 0, "duplicates": 2, "events": 5}
        new = lists(client, "u00003", "somebody new", "u00100")
        assert not {8, 151} & new[0].keys() and not alike(old, new[0])
        assert not {30, 151} & new[1].keys()
        assert alike(others, new[2]) == (model.name == "ials")  # a linear model scores by everybody's interactions
        assert client.get("/model").json()["feedback"] == {"events": 5, "most": 10_000, "skipped": 0}
    with serving(model, *options) as (_, address):  # the log is read again
        assert all(map(alike, lists(asking(address), "u00003", "somebody new", "u00100"), new))
    done("update", model, "--feedback", log, "-o", updated)
    manifest = json.loads((updated / "model.json").read_text())
    assert manifest["feedback"]["bytes"] == log.stat().st_size
    with serving(updated, *options) as (_, address):  # the model has them, so that they do not count twice
        client = asking(address)
        assert client.get("/model").json()["feedback"]["events"] == 0
        assert all(map(alike, lists(client, "u00003", "somebody new", "u00100"), new))
        client.post("/feedback", json={"events": [{"user": "u00003", "item": 30}]})
    done("update", updated, "--feedback", log, "-o", updated)
    assert json.loads((updated / "model.json").read_text())["feedback"]["bytes"] == log.stat().st_size
    history, before = History(updated, columns=200), History(model, columns=200)
    assert history.values(0, history.rows).sum() == before.values(0, before.rows).sum() + 3 + 1 + 2 + 1 + 2.5 + 1


@pytest.fixture(scope="module")
def refusing(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[httpx.Client, Path]]:
    """A client of a server that takes feedback, and the log."""
    log = tmp_path_factory.mktemp("refused") / "log"
    with (
        serving(trained.model, "--feedback", log) as (_, address),
        httpx.Client(base_url=address, timeout=patience(30)) as client,
    ):
        yield client, log
    assert log.read_text() == ""


@pytest.mark.parametrize(
    ("event", "status", "facts"),
    [
        ({"user": "u00003", "item": 99999}, 404, ("unknown item",)),
        ({"user": "", "item": 8}, 422, ("user",)),
        ({"user": "u00003", "item": 8, "time": 9e9}, 422, ("future",)),
        ({"user": "u00003", "item": 8, "value": -1}, 422, ("value",)),
        ({"user": "u00003", "item": 8, "colour": 1}, 422, ("`colour`",)),
        ({"user": "u00003"}, 422, ("`item`",)),
        ({"user": "x" * 5000, "item": 8}, 422, ("bytes",)),
    ],
)
def test_bad_events_are_refused_with_all_of_their_request(
    refusing: tuple[httpx.Client, Path], event: Any, status: int, facts: Any
) -> None:
    client, log = refusing
    answer = client.post("/feedback", json={"events": [{"user": "u00003", "item": 8}, event]})
    assert answer.status_code == status
    says(answer.json()["detail"], *facts)
    assert log.read_text() == ""


def test_a_full_log_and_a_full_disk_stop_feedback_alone(
    trained: Trained, tmp_path: Path, asking: Callable[[str], httpx.Client]
) -> None:
    log = tmp_path / "log"

    def small_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))

    def event(number: int) -> dict[str, Any]:
        return {"events": [{"user": f"new {number}", "item": 8, "id": f"{number:060}"}]}

    with serving(trained.model, "--feedback", log, preexec_fn=small_files) as (_, address):
        client = asking(address)
        answers = [client.post("/feedback", json=event(number)) for number in range(20)]
        statuses = [answer.status_code for answer in answers]
        taken = statuses.count(200)
        # Near the end an event with a shorter time may fit where the one before did not.
        assert {*statuses} == {200, 503} and statuses[: taken - 1] == [200] * (taken - 1) and statuses[-9:] == [503] * 9
        says(answers[-1].json()["detail"], "feedback log", "written")
        assert client.get("/recommend?user=new+0").status_code == 200
        assert client.get("/recommend?user=u00003").status_code == 200
    assert log.read_text().count("\n") == taken and log.read_text().endswith("\n")
    with serving(trained.model, "--feedback", log, "--feedback-events", taken + 1) as (_, address):
        client = asking(address)
        assert client.post("/feedback", json=event(99)).status_code == 200
        full = client.post("/feedback", json={"events": [{"user": "u00003", "item": 8}]})
        assert full.status_code == 503
        says(full.json()["detail"], taken + 1, "recsys update")
        assert client.get("/recommend?user=u00003").status_code == 200


def test_a_log_that_is_none_is_refused_at_the_start_and_no_log_is_said(
    trained: Trained, tmp_path: Path, run: Callable[..., Any], asking: Callable[[str], httpx.Client]
) -> None:
    log = tmp_path / "log"
    log.write_text("user,item\n1,2\n")
    ended = run("apps.recsys", "serve", trained.model, "--port", 0, "--memory", "300MiB", "--feedback", log)
    assert ended.code == 4 and ended.err.count("\n") == 1
    says(ended.err, str(log), "user", "item")
    with serving(trained.model) as (_, address):
        answer = asking(address).post("/feedback", json={"events": [{"user": "u00003", "item": 8}]})
        assert answer.status_code == 503
        says(answer.json()["detail"], "--feedback")
