"""Workers share one listener, one log of feedback and one count of requests; one that is killed is replaced."""

import os
import signal
import time
from pathlib import Path

import httpx
import pytest

from apps.recsys.serving import workers
from apps.recsys.serving.lines import Lines
from apps.recsys.serving.workers import WorkersFailed
from tests.apps.recsys.conftest import Trained
from tests.apps.recsys.running import serving
from tests.machine import patience
from tests.messages import refused


def children(pid: int) -> list[int]:
    """Processes that a process started."""
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_workers_are_one_server(trained: Trained, tmp_path: Path) -> None:
    options = ("--workers", 3, "--feedback", tmp_path / "log", "--memory", "400MiB")
    with serving(trained.model, *options) as (process, address):
        (parent,) = children(process.pid)
        end = time.monotonic() + patience(20)
        while len(found := children(parent)) < 3 and time.monotonic() < end:
            time.sleep(0.05)
        assert len(found) == 3

        def ask(number: int) -> tuple[int, list[object]]:
            """By a connection of its own, so that any worker may answer."""
            with httpx.Client(base_url=address, timeout=patience(30)) as client:
                if number:
                    event = {"user": "somebody new", "item": 8 * number}
                    assert client.post("/feedback", json={"events": [event]}).json()["events"] == number
                answer = client.get("/recommend", params={"user": "somebody new", "k": 200})
                return answer.status_code, [item["id"] for item in answer.json().get("items", [])]

        assert ask(0)[0] == 404
        for number in range(1, 12):
            status, ids = ask(number)
            assert status == 200 and not {8 * n for n in range(1, number + 1)} & {*ids}
        os.kill(found[0], signal.SIGKILL)
        while found[0] in (now := children(parent)) or len(now) < 3:
            assert time.monotonic() < end
            time.sleep(0.05)
        for _ in range(6):
            assert ask(0)[0] == 200
        page = httpx.get(f"{address}/metrics").text
        assert 'route="/feedback",status="2xx"} 11' in page
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=patience(30))
    assert process.returncode == 0 and "a worker ended with -9" in err
    assert (tmp_path / "log").read_text().count("\n") == 11


def test_workers_that_end_again_and_again_end_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    with refused(WorkersFailed, workers.RESTARTS):
        workers.run(2, lambda place, replaces: None, Lines(said.append))
    assert len(said) == workers.RESTARTS
