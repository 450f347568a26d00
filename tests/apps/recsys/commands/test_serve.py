"""Serving over real HTTP, from start to a clean stop."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pytest

from tests.apps.recsys.conftest import Trained
from tests.machine import patience
from tests.messages import says


@contextmanager
def serving(trained: Trained) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A running server in a process group of its own, and its address."""
    command = [sys.executable, "-m", "apps.recsys", "serve", str(trained.model), "--port", "0", "--memory", "300MiB"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, process_group=0) as process:
        assert process.stderr is not None
        line = process.stderr.readline()
        found = re.search(r"http://127\.0\.0\.1:\d+", line)
        assert found, line
        yield process, found[0]
        process.terminate()


@pytest.fixture(scope="module")
def server(trained: Trained) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A running server that answers several tests."""
    with serving(trained) as running:
        yield running


def test_answers(server: tuple[subprocess.Popen[str], str], trained: Trained) -> None:
    with httpx.Client(base_url=server[1], timeout=patience(30)) as client:
        health = client.get("/health").json()
        assert (health["status"], health["users"], health["items"]) == ("ok", 300, 200)
        items = client.get("/recommend", params={"user": "u00003", "k": 4}).json()["items"]
        assert len(items) == 4 and items[0].keys() == {"id", "title", "score"}
        (item,) = client.get("/recommend", params={"user": "u00003", "k": 1, "explain": 2}).json()["items"]
        added = [had["score"] for had in item["because"]]
        assert len(added) == 2 and sum(added) + item["others"] == pytest.approx(item["score"], abs=4e-6)
        assert client.get("/recommend", params={"history": "8,16,24"}).status_code == 200
        chosen = {"user": "u00003", "k": 60, "where": "genre = Dune and year < 1970"}
        ids = [item["id"] for item in client.get("/recommend", params=chosen).json()["items"]]
        assert ids and all(id_ % 8 == 3 and id_ % 60 < 10 for id_ in ids)
        assert client.get("/recommend", params={**chosen, "where": "genre = none"}).json() == {"items": []}
        near = client.get("/similar", params={"item": "8", "k": 3}).json()["items"]
        assert len(near) == 3 and all(item["id"] != 8 for item in near)


@pytest.mark.parametrize(
    ("path", "status", "facts"),
    [
        ("/recommend?user=nobody", 404, ("user", "'nobody'")),
        ("/recommend?history=3,99999", 404, ("item", "'99999'")),
        ("/similar?item=none", 404, ("item", "'none'")),
        ("/recommend", 422, ("user", "history")),
        ("/recommend?user=u00003&where=year+%3E", 422, ("--where", "character 7")),
        ("/recommend?user=u00003&where=colour%3D3", 422, ("'colour'", "genre", "year")),
        ("/recommend?user=u00003&where=" + "+or+".join(["year%3D1"] * 21), 422, ("where", 20)),
        ("/recommend?history=,", 422, ("history", "empty")),
        ("/recommend?k=2&history=" + "3," * 2001, 422, ("history", "2,001", "2,000")),
        ("/recommend?user=u00003&k=1000&explain=5", 422, ("explain", "6,000", "5,000")),
        ("/recommend?user=u00003&k=1001", 422, ("k", "less_than_equal")),
        ("/recommend?user=u00003&k=0", 422, ("k", "greater_than_equal")),
        ("/recommend?user=u00003&k=many", 422, ("k", "int_parsing")),
        ("/nothing", 404, ("not found",)),
    ],
)
def test_bad_questions(
    server: tuple[subprocess.Popen[str], str], path: str, status: int, facts: tuple[str, ...]
) -> None:
    answer = httpx.get(server[1] + path, timeout=patience(30))
    assert answer.status_code == status
    says(answer.json()["detail"], *facts)


def test_many_questions_and_a_clean_stop(server: tuple[subprocess.Popen[str], str]) -> None:
    process, address = server
    with httpx.Client(base_url=address, timeout=patience(30)) as client:
        for number in range(300):
            assert client.get("/recommend", params={"user": f"u{number:05}", "k": 50}).status_code == 200
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=patience(30))
    assert process.returncode == 0
    line = re.fullmatch(r"memory: ceiling 300\.0 MiB, predicted ([\d.]+) MiB, measured ([\d.]+) MiB\n", err)
    assert line and float(line[2]) <= float(line[1]) + 6  # the plan's reserve


def test_ctrl_c_in_a_terminal_is_a_clean_stop(trained: Trained) -> None:
    """A terminal sends SIGINT to the whole process group, so the server receives it twice."""
    with serving(trained) as (process, address), httpx.Client(base_url=address, timeout=patience(30)) as client:
        assert client.get("/health").status_code == 200
        os.killpg(process.pid, signal.SIGINT)
        _, err = process.communicate(timeout=patience(30))
    assert process.returncode == 0
    assert len(err.splitlines()) == 1 and err.startswith("memory: ")


def test_a_port_in_use_is_a_usage_error(trained: Trained) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        command = [sys.executable, "-m", "apps.recsys", "serve", str(trained.model), "--port", port, "-q"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    says(done.stderr, "--port", port)
