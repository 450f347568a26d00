"""Serving over real HTTP, from start to a clean stop."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest

from apps.recsys.planning.service.request import ServeRequest
from apps.recsys.serving.web.routes import ROUTES
from common.errors import UsageError
from tests.apps.recsys.conftest import Trained
from tests.apps.recsys.running import serving
from tests.machine import patience
from tests.messages import refused, says


@pytest.fixture(scope="module")
def server(trained: Trained) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A running server that answers several tests."""
    with serving(trained.model) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: tuple[subprocess.Popen[str], str]) -> Iterator[httpx.Client]:
    """A client of it."""
    with httpx.Client(base_url=server[1], timeout=patience(30)) as client:
        yield client


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
        ("/recommend?user=nobody", 404, ("unknown user",)),
        ("/recommend?history=3,99999", 404, ("unknown item",)),
        ("/similar?item=none", 404, ("unknown item",)),
        ("/recommend", 422, ("user", "history")),
        ("/recommend?user=u00003&where=year+%3E", 422, ("where", "character 7")),
        ("/recommend?user=u00003&where=colour%3D3", 422, ("'colour'", "genre", "year")),
        ("/recommend?user=u00003&where=" + "+or+".join(["year%3D1"] * 21), 422, ("where", 20)),
        ("/recommend?k=2&history=" + "3," * 2001, 422, ("history", "<= 2000")),
        ("/recommend?user=u00003&k=1000&explain=5", 422, ("explain", "6,000", "5,000")),
        ("/recommend?user=u00003&k=1001", 422, ("k", "<= 1000")),
        ("/recommend?user=u00003&k=0", 422, ("k", ">= 1")),
        ("/recommend?user=u00003&k=many", 422, ("k", "`int`")),
        ("/recommend?user=u00003&kk=4", 422, ("`kk`",)),
        ("/health?deep=1", 422, ("`deep`",)),
        ("/recommend?user=u00003&user=u00004", 422, ("user", "twice")),
        ("/recommend?user=u00003&k=2&k=3", 422, ("k", "twice")),
        ("/recommend?history=1%0d2", 422, ("history", "commas")),
        ("/recommend?user=%ff", 422, ("parameters",)),
        ("/users/%ff/recommend", 404, ("not found",)),
        ("/users/nobody/recommend", 404, ("unknown user",)),
        ("/items/none/similar", 404, ("unknown item",)),
        ("/items?k=101", 422, ("k", "<= 100")),
        ("/nothing", 404, ("not found",)),
    ],
)
def test_bad_questions(
    server: tuple[subprocess.Popen[str], str], path: str, status: int, facts: tuple[str, ...]
) -> None:
    answer = httpx.get(server[1] + path, timeout=patience(30))
    assert answer.status_code == status
    says(answer.json()["detail"], *facts)


def test_the_same_list_by_every_route(client: httpx.Client) -> None:
    asked = {"k": 4, "explain": 2, "exclude": "3,11", "where": "year < 1990"}
    first = client.get("/recommend", params={"user": "u00003", **asked}).json()
    assert first["items"] and not {3, 11} & {item["id"] for item in first["items"]}
    assert client.get("/users/u00003/recommend", params=asked).json() == first
    body = {"users": ["u00003"], "histories": [[8, "16"]], **asked, "exclude": [3, "11"]}
    of_user, of_history = client.post("/recommend", json=body).json()["lists"]
    assert of_user == {"user": "u00003", **first}
    assert client.get("/recommend", params={"history": "8,16", **asked}).json() == of_history
    once = client.post("/session/recommend", json={"items": [{"id": 8}, {"id": 16}], **asked, "exclude": [3, 11]})
    assert once.json() == of_history
    assert client.get("/items/8/similar", params={"k": 3}).json() == client.get("/similar?item=8&k=3").json()


def test_what_a_session_weighs_counts(client: httpx.Client) -> None:
    def ask(*weights: float) -> Any:
        items = [{"id": 8 * place, "weight": weight} for place, weight in enumerate(weights, 1)]
        return client.post("/session/recommend", json={"items": items, "k": 5}).json()

    assert ask(1, 9) != ask(9, 1)
    twice = {"items": [{"id": 8}, {"id": 16, "weight": 4}, {"id": 8, "weight": 2}], "k": 5}
    assert client.post("/session/recommend", json=twice).json() == ask(3, 4)


def test_candidates_alone_are_ranked_seen_or_not(client: httpx.Client) -> None:
    (ranked,) = client.post("/recommend", json={"histories": [[8, 16]], "candidates": [8, 3, 5]}).json()["lists"]
    assert {item["id"] for item in ranked["items"]} == {3, 5, 8}
    (unseen,) = client.post("/recommend", json={"histories": [[8, 16]], "only": [8, 3, 5]}).json()["lists"]
    assert {item["id"] for item in unseen["items"]} == {3, 5}
    seen = {"histories": [[8, 16]], "only": [8, 3], "keep_seen": True}
    (kept,) = client.post("/recommend", json=seen).json()["lists"]
    assert {item["id"] for item in kept["items"]} == {3, 8}


def test_popular_items_are_said_to_be_so(client: httpx.Client) -> None:
    popular = client.get("/items", params={"k": 3}).json()["items"]
    nothing = client.get("/recommend", params={"history": "", "k": 3}).json()
    assert nothing == {"fallback": "popular", "items": popular}
    asked = {"user": "nobody", "fallback": "popular", "k": 3}
    assert client.get("/recommend", params=asked).json() == nothing
    lists = {"users": ["nobody", "u00003"], "fallback": "popular", "k": 3}
    first, second = client.post("/recommend", json=lists).json()["lists"]
    assert first == {"user": "nobody", **nothing} and "fallback" not in second
    assert client.post("/recommend", json={**lists, "fallback": "none"}).status_code == 404
    assert client.post("/session/recommend", json={"items": [], "k": 3}).json() == nothing


def test_items_are_found_by_their_titles(client: httpx.Client) -> None:
    title = client.get("/recommend", params={"user": "u00003", "k": 1}).json()["items"][0]["title"]
    found = client.get("/items", params={"q": title[1:].upper(), "k": 100}).json()["items"]
    assert title in [item["title"] for item in found]
    assert all(title[1:].lower() in item["title"].lower() for item in found)
    assert [item["id"] for item in client.get("/items", params={"q": "199"}).json()["items"]] == [199]
    assert client.get("/items", params={"q": "no such title"}).json() == {"items": []}


@pytest.mark.parametrize(
    ("path", "body", "status", "facts"),
    [
        ("/recommend", b"", 422, ("JSON",)),
        ("/recommend", b"{", 422, ("JSON",)),
        ("/recommend", b"[" * 50000, 422, ("`object`",)),
        ("/recommend", b'{"users": ["\xff"]}', 422, ("JSON",)),
        ("/recommend", b"{}", 422, ("users", "histories")),
        ("/recommend", b'{"users": [1.5]}', 422, ("users",)),
        ("/recommend", b'{"users": [1], "colour": 2}', 422, ("`colour`",)),
        ("/recommend", b'{"users": [1], "candidates": [1], "only": [2]}', 422, ("candidates", "only")),
        ("/recommend", b'{"users": [%s]}' % b",".join([b"1"] * 101), 422, ("users", "<= 100")),
        ("/recommend", b'{"users": ["u00003", "u00004"], "k": 1000, "explain": 3}', 422, ("8,000", "5,000")),
        ("/recommend", b'{"histories": [[%s], [3]]}' % b",".join([b"3"] * 2000), 422, ("2,001", "2,000")),
        ("/session/recommend", b'{"items": [{"id": 8, "weight": 0}]}', 422, ("weight",)),
        ("/session/recommend", b'{"items": [{"id": 8, "weight": 1e999}]}', 422, ("range",)),
        ("/session/recommend", b'{"items": [{"id": 99999}]}', 404, ("unknown item",)),
    ],
)
def test_bad_bodies(client: httpx.Client, path: str, body: bytes, status: int, facts: tuple[str, ...]) -> None:
    answer = client.post(path, content=body)
    assert answer.status_code == status
    says(answer.json()["detail"], *facts)


def test_methods(client: httpx.Client) -> None:
    head = client.head("/health")
    assert head.status_code == 200 and not head.content and int(head.headers["content-length"]) > 10
    wrong = client.put("/recommend")
    assert wrong.status_code == 405 and wrong.headers["allow"] == "GET, HEAD, POST"


def test_large_answers_are_whole(client: httpx.Client) -> None:
    asked = {"user": "u00003", "k": 200, "explain": 20, "keep_seen": "true"}
    answer = client.get("/recommend", params=asked)
    assert answer.headers["transfer-encoding"] == "chunked"
    items = answer.json()["items"]
    assert len(items) == 200 and len({item["id"] for item in items}) == 200
    assert all(one["score"] >= other["score"] for one, other in pairwise(items))
    for item in items:
        assert sum(had["score"] for had in item["because"]) + item["others"] == pytest.approx(item["score"], abs=4e-5)


def test_the_document_describes_every_route(client: httpx.Client) -> None:
    document = client.get("/openapi.json").json()
    assert {(method.upper(), path) for path, methods in document["paths"].items() for method in methods} == {
        (route.method, route.path) for route in ROUTES
    }
    names = {one["name"] for one in document["paths"]["/recommend"]["get"]["parameters"]}
    assert names >= {"user", "history", "k", "explain", "where", "exclude", "only", "keep_seen", "fallback"}
    text = json.dumps(document)
    for name in re.findall(r"#/components/schemas/(\w+)", text):
        assert name in document["components"]["schemas"], name


def test_the_model_and_its_memory(client: httpx.Client, trained: Trained) -> None:
    model = client.get("/model").json()
    assert model["kind"] == "ials" and model["items"] == 200 and len(model["version"]) == 12
    assert {"name": "genre", "kind": "text"} in model["attributes"]
    memory = model["memory"]
    assert 0 < memory["resident_bytes"] <= memory["ceiling_bytes"] == 300 << 20
    assert sum(term["bytes"] for term in memory["terms"]) == memory["predicted_bytes"]


def test_a_token_is_asked_for(trained: Trained, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("0123456789abcdef\n")
    with serving(trained.model, "--token-file", token, "--host", "0.0.0.0") as (_, address):
        address = address.replace("0.0.0.0", "127.0.0.1")
        asked = f"{address}/recommend?user=u00003"
        without = httpx.get(asked, timeout=patience(30))
        assert without.status_code == 401 and without.headers["www-authenticate"] == "Bearer"
        assert httpx.get(asked, headers={"Authorization": "Bearer 0123456789abcdef"}).status_code == 200
        assert httpx.get(f"{address}/health/ready").status_code == 200
        assert httpx.get(f"{address}/metrics").status_code == 401


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.org"])
def test_others_are_not_served_without_a_token(host: str) -> None:
    with refused(UsageError, "--host", host, "--token-file", "--open"):
        ServeRequest(model=Path("m"), threads=1, host=host)
    assert ServeRequest(model=Path("m"), threads=1, host=host, open=True).open


def test_names_and_pages_of_others_are_refused(client: httpx.Client) -> None:
    assert client.get("/health", headers={"Host": "evil.example"}).status_code == 421
    assert client.get("/health", headers={"Origin": "http://evil.example"}).status_code == 403


def test_a_new_version_is_served_without_a_failed_request(trained: Trained, tmp_path: Path) -> None:
    model, other = tmp_path / "model", tmp_path / "other"
    shutil.copytree(trained.model, model)
    shutil.copytree(trained.model, other)
    manifest = json.loads((other / "model.json").read_text())
    (other / "model.json").write_text(json.dumps({**manifest, "seed": 1}))
    with serving(model, "--log", "json") as (process, address), httpx.Client(base_url=address) as client:
        first = client.get("/model").json()["version"]
        model.rename(tmp_path / "old")
        other.rename(model)
        process.send_signal(signal.SIGHUP)
        end, statuses, version = time.monotonic() + patience(30), [], first
        while version == first and time.monotonic() < end:
            statuses.append(client.get("/recommend", params={"user": "u00003"}).status_code)
            version = client.get("/model").json()["version"]
            time.sleep(0.05)  # nobody reads the log meanwhile, and a full pipe would stop the server
        assert version != first and set(statuses) == {200}
        kept = (model / "weights.safetensors").read_bytes(), (model / "model.json").read_text()
        (model / "weights.safetensors").write_bytes(b"broken")
        (model / "model.json").write_text(json.dumps({**manifest, "seed": 2}))
        process.send_signal(signal.SIGHUP)
        while not (said := client.get("/model").json())["refused"] and time.monotonic() < end:
            time.sleep(0.05)
        assert said["version"] == version and said["refused"] == "model incomplete"
        assert client.get("/health/ready").status_code == 200
        assert client.get("/recommend", params={"user": "u00003"}).status_code == 200
        (model / "weights.safetensors").write_bytes(kept[0])
        (model / "model.json").write_text(kept[1])  # the version that is served
        process.send_signal(signal.SIGHUP)
        while client.get("/model").json()["refused"] and time.monotonic() < end:
            time.sleep(0.05)
        assert client.get("/model").json()["refused"] == ""
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=patience(30))
    assert process.returncode == 0 and "u00003" not in err
    lines = [json.loads(line) for line in err.splitlines() if line.startswith("{")]
    events = Counter(line["event"] for line in lines)
    assert events["changed"] == events["refused"] == events["same"] == 1 and events["request"] > 3
    request = next(line for line in lines if line["event"] == "request")
    assert request.keys() == {"time", "event", "method", "route", "status", "ms"}


def test_a_folder_is_watched(trained: Trained, tmp_path: Path) -> None:
    model = Path(shutil.copytree(trained.model, tmp_path / "model"))
    manifest = json.loads((model / "model.json").read_text())
    with serving(model, "--watch") as (_, address), httpx.Client(base_url=address) as client:
        (model / "model.json").write_text(json.dumps({**manifest, "seed": 1}))
        end = time.monotonic() + patience(30)
        while not client.get("/model").json()["changes"] and time.monotonic() < end:
            time.sleep(0.1)
        assert client.get("/model").json()["changes"] == 1


def test_requests_are_counted(client: httpx.Client) -> None:
    client.get("/recommend", params={"user": "nobody"})
    page = client.get("/metrics")
    assert page.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert re.search(r'recsys_requests_total\{method="GET",route="/recommend",status="4xx"\} [1-9]', page.text)
    assert re.search(r"recsys_memory_ceiling_bytes 314572800\b", page.text)


def test_ipv6(trained: Trained) -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("no IPv6 here")
    with serving(trained.model, "--host", "::1") as (_, address):
        assert address.startswith("http://[::1]:")
        assert httpx.get(f"{address}/health", timeout=patience(30)).status_code == 200


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
    with serving(trained.model) as (process, address), httpx.Client(base_url=address, timeout=patience(30)) as client:
        assert client.get("/health").status_code == 200
        os.killpg(process.pid, signal.SIGINT)
        _, err = process.communicate(timeout=patience(30))
    assert process.returncode == 0
    assert len(err.splitlines()) == 1 and err.startswith("memory: ")


def test_a_port_in_use_is_a_usage_error(trained: Trained) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        command = [sys.executable, "-m", "apps.recsys", "serve", str(trained.model), "--port", port, "-q"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    says(done.stderr, "--port", port)
