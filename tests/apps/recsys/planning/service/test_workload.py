"""The ceiling that a refusal names is enough for the server, whatever clients do, and not far above its peak."""

import json
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx

from apps.recsys.models.linear.options import HYPER
from apps.recsys.models.recommender import load_manifest
from apps.recsys.planning.service.limits import BODY_BYTES, HEADER_BYTES, MOST_CONNECTIONS
from apps.recsys.planning.service.request import ServeRequest
from apps.recsys.planning.service.workload import ServeWorkload
from tests.apps.recsys.conftest import Trained
from tests.machine import patience
from tests.promise import kept


def test_the_ceiling_that_is_named_is_enough_for_what_clients_may_do(trained: Trained, run: Callable[..., Any]) -> None:
    words = ("apps.recsys", "serve", trained.model, "--port", 0, "--json")
    smallest = run(*words, "--memory", "30MiB").record["smallest_feasible_bytes"]
    command = [sys.executable, "-m", *map(str, words), "--memory", str(smallest)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None and process.stdout is not None
            port = int(process.stderr.readline().partition("(")[0].rpartition(":")[2])
            with ExitStack() as stack:

                def connect(text: bytes) -> None:
                    link = stack.enter_context(socket.create_connection(("127.0.0.1", port), patience(5)))
                    link.sendall(text)

                half = b"a" * (HEADER_BYTES // 2)
                for _ in range(MOST_CONNECTIONS // 2 - 2):
                    connect(b"GET / HTTP/1.1\r\nX: " + half)
                    connect(b"POST /recommend HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % BODY_BYTES + half)
                with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=patience(30)) as client:
                    for explain in (0, 20):
                        asked = {"user": "u00003", "k": 200, "explain": explain, "keep_seen": "true"}
                        assert client.get("/recommend", params=asked).status_code == 200
                    everybody = {"histories": [[n, n + 1] for n in range(100)], "k": 50, "where": "year < 1990"}
                    assert client.post("/recommend", json=everybody).status_code == 200
        finally:
            process.send_signal(signal.SIGTERM)
        record = json.loads(process.stdout.read())
    assert process.returncode == 0
    kept(record)
    assert record["plan"]["predicted_peak_bytes"] <= 1.12 * record["measured"]["peak_bytes"]


def test_a_large_filter_that_takes_feedback_has_room_for_passes(trained: Trained) -> None:
    manifest: Any = load_manifest(trained.model)
    small = {**manifest, "kind": "linear", "factors": 0, "hyper": {**HYPER, "form": "filter"}}
    large = {**small, "files": {**manifest["files"], "readers.users.npy": {"bytes": 4, "sha256": ""}}}

    def priced(manifest: Any, feedback: Path | None) -> dict[str, int]:
        work = ServeWorkload(ServeRequest(model=trained.model, threads=1, feedback=feedback), manifest)
        (probe,) = work.probes({})
        return {term.name: term.bytes for term in work.footprint({}, {probe: {"bytes": 1, "peak": 1}}).terms}

    by_readers, passes = priced(large, None), priced(large, Path("log"))
    assert "users with the same items" in by_readers and "users with the same items" not in passes
    assert passes == priced(small, Path("log"))


def test_what_is_asked_for_on_the_command_line_has_a_term(trained: Trained) -> None:
    manifest = load_manifest(trained.model)
    plain = ServeRequest(model=trained.model, threads=1)

    def priced(**options: Any) -> dict[str, int]:
        work = ServeWorkload(replace(plain, **options), manifest)
        (probe,) = work.probes({})
        return {term.name: term.bytes for term in work.footprint({}, {probe: {"bytes": 1, "peak": 1}}).terms}

    usual = priced()
    assert priced(connections=128)["connections"] == 2 * usual["connections"]
    more = priced(feedback=Path("log"), events=20_000)
    assert more["feedback"] == 2 * priced(feedback=Path("log"), events=10_000)["feedback"] > 0
    assert "feedback" not in usual
    several = priced(workers=4)
    assert several["item factors"] == usual["item factors"] and several["workers"] > 0
    assert several["answers"] == 4 * usual["answers"] and several["connections"] == usual["connections"]
