"""Measure a running ``recsys serve``: ``python -m apps.recsys.bench.serve.measure WHAT MODEL [SECONDS]``.

The last line on stdout is a JSON object with the figures. All load comes from other processes on loopback.
"""

from __future__ import annotations

import json
import random
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from apps.recsys.bench.serve.load import request
from common.memory.process import meter

ROUNDS = 5
CHANGES = 20
MALFORMED = 5000


class Server:
    """A running server."""

    def __init__(self, process: subprocess.Popen[str], port: int) -> None:
        self.process, self.port = process, port

    @property
    def pids(self) -> list[int]:
        """The process that loaded the model, and its workers."""
        (main,) = _children(self.process.pid)
        return [main, *_children(main)]

    def held(self) -> int:
        """Resident bytes of the one process."""
        return meter.resident(self.pids[0])

    def get(self, path: str) -> Any:
        """Ask once."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=60) as answer:
            return json.loads(answer.read())


def _children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@contextmanager
def serving(model: Path, *options: object) -> Iterator[Server]:
    """Start a server, and stop it."""
    words = ("-m", "apps.recsys", "serve", model, "--port", 0, "--memory", "400MiB", *options)
    command = [sys.executable, *map(str, words)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if found := re.search(r"http://127\.0\.0\.1:(\d+)", line):
                break
        else:
            raise SystemExit("the server did not start")
        try:
            yield Server(process, int(found[1]))
        finally:
            process.send_signal(signal.SIGTERM)


def users(model: Path) -> list[str]:
    """Questions for lists of ten, for all users."""
    import pyarrow.parquet as pq

    ids = pq.read_table(model / "users.parquet", columns=["id"])["id"].to_pylist()
    return [f"/recommend?user={id_}&k=10" for id_ in ids]


@contextmanager
def loading(server: Server, paths: Sequence[str], *, clients: int, seconds: float) -> Iterator[Callable[[], Any]]:
    """Load from another process meanwhile; the function waits for its figures."""
    command = [sys.executable, "-m", "apps.recsys.bench.serve.load", str(server.port), str(clients), str(seconds)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(json.dumps(paths))
        process.stdin.close()
        yield lambda: json.loads(process.stdout.read() if process.stdout else "")


def load(server: Server, paths: Sequence[str], *, clients: int = 8, seconds: float = 3.0) -> Any:
    """Figures of a load."""
    with loading(server, paths, clients=clients, seconds=seconds) as figures:
        return figures()


def speed(model: Path, seconds: float) -> Mapping[str, float]:
    """Lists against a constant answer, in turn, and ``/health`` meanwhile."""
    lists = users(model)
    with serving(model) as server:
        load(server, lists, seconds=1)
        pairs = [
            (load(server, ["/health/live"], seconds=seconds), load(server, lists, seconds=seconds))
            for _ in range(ROUNDS)
        ]
        with loading(server, lists, clients=7, seconds=seconds) as figures:
            health = load(server, ["/health"], clients=1, seconds=seconds - 0.5)
            figures()
    middle = statistics.median
    return {
        "constant_per_second": middle(constant["per_second"] for constant, _ in pairs),
        "lists_per_second": middle(asked["per_second"] for _, asked in pairs),
        "ratio": middle(asked["per_second"] / constant["per_second"] for constant, asked in pairs),
        "median_ms": middle(asked["median_ms"] for _, asked in pairs),
        "health_p99_ms": health["p99_ms"],
        "failed": sum(asked["failed"] for _, asked in pairs),
    }


def changes(model: Path, seconds: float) -> Mapping[str, float]:
    """Twenty changes of the model under load."""
    lists = users(model)
    with tempfile.TemporaryDirectory() as place:
        live = Path(shutil.copytree(model, Path(place, "model")))
        with serving(live) as server:
            load(server, lists, clients=4, seconds=seconds)
            before = mark(server)
            with loading(server, lists, clients=4, seconds=CHANGES * 0.5 + 2) as figures:
                for number in range(CHANGES):
                    time.sleep(0.5)
                    new = Path(shutil.copytree(live, Path(place, "new")))
                    manifest = json.loads((new / "model.json").read_text())
                    (new / "model.json").write_text(json.dumps({**manifest, "seed": number + 1000}))
                    live.rename(Path(place, f"old {number}"))
                    new.rename(live)
                    server.process.send_signal(signal.SIGHUP)
                seen = figures()
            return {
                "failed": seen["failed"],
                "changes": server.get("/model")["changes"],
                "peak_ratio": mark(server) / before,
                "p99_ms": seen["p99_ms"],
            }


def mark(server: Server) -> int:
    """The largest size that the process had, in bytes."""
    text = Path(f"/proc/{server.pids[0]}/status").read_text()
    return int(re.findall(r"VmHWM:\s+(\d+)", text)[0]) << 10


def feedback(model: Path, seconds: float) -> Mapping[str, float]:
    """Time from an event to a list with it, by one client on one connection, synced to the disk."""
    import http.client

    with tempfile.TemporaryDirectory() as place, serving(model, "--feedback", Path(place, "log.jsonl")) as server:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
        items = [item["id"] for item in server.get("/items?k=100")["items"]]
        times, wrong, end = [], 0, time.monotonic() + seconds
        number = 0
        while time.monotonic() < end:
            user, item = 10**9 + number // len(items), items[number % len(items)]
            number += 1
            began = time.perf_counter()
            connection.request("POST", "/feedback", json.dumps({"events": [{"user": str(user), "item": item}]}))
            wrong += connection.getresponse().read().find(b'"accepted":1') < 0
            connection.request("GET", f"/recommend?user={user}&k=100")
            wrong += item in [one["id"] for one in json.loads(connection.getresponse().read())["items"]]
            times.append(time.perf_counter() - began)
        connection.close()
    return {"median_ms": 1e3 * statistics.median(times), "events": len(times), "wrong": wrong}


def malformed(model: Path, seconds: float) -> Mapping[str, float]:
    """Bodies that are none: no error of the server, and no memory that stays."""
    drawn = random.Random(0)
    good = json.dumps({"users": [1, 2], "histories": [[1, 2, 3]], "k": 5, "where": "a = 1"}).encode()
    statuses: dict[int, int] = {}
    with serving(model) as server:

        def send(body: bytes) -> None:
            with socket.create_connection(("127.0.0.1", server.port), 30) as link, suppress(OSError):
                link.sendall(request(drawn.choice(["/recommend", "/session/recommend", "/feedback"]), body))
                link.shutdown(socket.SHUT_WR)
                head = link.recv(1 << 16)
                status = int(head.split()[1]) if head else 0
                statuses[status] = statuses.get(status, 0) + 1

        def spoiled() -> bytes:
            kind = drawn.randrange(4)
            if kind == 0:
                return drawn.randbytes(drawn.randrange(2000))
            if kind == 1:
                return good[: drawn.randrange(len(good))]
            if kind == 2:
                place = drawn.randrange(len(good))
                return good[:place] + drawn.randbytes(3) + good[place:]
            return b"[" * drawn.randrange(60000) + b'{"a":' * drawn.randrange(1000)

        for _ in range(500):
            send(spoiled())
        before = server.held()
        for _ in range(MALFORMED):
            send(spoiled())
        grown = server.held() - before
    errors = sum(count for status, count in statuses.items() if status >= 500 and status != 503)
    return {"sent": sum(statuses.values()), "errors": errors, "grown_kib": grown >> 10}


def clients(model: Path, seconds: float) -> Mapping[str, float]:
    """A mixed load with two hundred idle and slow clients."""
    lists = users(model)[:500]
    paths = [*lists, *(f"{path}0&explain=9" for path in lists[:50]), "/items?q=the", "/health", "/model", "/metrics"]
    with serving(model, "--memory", f"{smallest_ceiling(model)}MiB") as server:
        links: list[socket.socket] = []
        held = []
        with loading(server, paths, clients=6, seconds=seconds) as figures:
            end = time.monotonic() + seconds - 2
            while time.monotonic() < end:
                with suppress(OSError):
                    link = socket.create_connection(("127.0.0.1", server.port), 1)
                    links.append(link)
                    if len(links) % 3 == 1:
                        link.sendall(request(f"{lists[0]}00&explain=3"))
                    elif len(links) % 3 == 2:
                        link.sendall(b"POST /recommend HTTP/1.1\r\nHost: localhost\r\nContent-Length: 60000\r\n\r\n{")
                if len(links) > 200:
                    links.pop(0).close()
                held.append(server.held())
                time.sleep(0.05)
            seen = figures()
        for link in links:
            link.close()
        ceiling = server.get("/model")["memory"]["ceiling_bytes"]
    early = statistics.median(held[len(held) // 2 : len(held) // 2 + 20])
    return {
        "server_errors": seen["server_errors"],
        "peak_share": max(held) / ceiling,
        "grown": statistics.median(held[-20:]) / early,
        "per_second": seen["per_second"],
    }


def smallest_ceiling(model: Path, *options: object) -> float:
    """The smallest ceiling that the refusal names, in MiB."""
    words = [sys.executable, "-m", "apps.recsys", "serve", str(model), "--memory", "30MiB", *map(str, options)]
    for _ in range(2):  # the first may end while it measures the baseline
        said = subprocess.run(words, capture_output=True, text=True, check=False).stderr
        if found := re.search(r"--memory ([\d.]+)MiB is the smallest", said):
            return float(found[1])
    raise SystemExit(said)


def workers(model: Path, seconds: float) -> Mapping[str, float]:
    """Memory of four workers against one, under load.

    It is that of a tree as the meter has it: PSS alone also divides the libraries' pages by the other Pythons that run
    on the machine.
    """
    sizes = {}
    for count in (1, 4):
        with serving(model, "--workers", count) as server:
            load(server, users(model), seconds=seconds)
            sizes[count] = meter.together([meter.pages(pid) for pid in server.pids])
    return {"four_over_one": sizes[4] / sizes[1], "mib": sizes[4] / 2**20}


def schema(model: Path, seconds: float) -> Mapping[str, float]:
    """schemathesis against the server's own document.

    422 is right for what no schema says (the grammar of ``where``, a time in the future), and 413 for what is too long.
    """
    with tempfile.TemporaryDirectory() as place:
        settings = Path(place, "schemathesis.toml")
        settings.write_text(
            '[checks.positive_data_acceptance]\nexpected-statuses = ["2xx", "401", "404", "422", "503"]\n'
            '[checks.negative_data_rejection]\nexpected-statuses = ["400", "401", "404", "405", "413", "422", "431"]\n'
        )
        with serving(model, "--feedback", Path(place, "log.jsonl")) as server:
            tool = Path(sys.executable).with_name("schemathesis")
            address = f"http://127.0.0.1:{server.port}/openapi.json"
            options = ("--checks", "all", "--max-examples", "60", "--no-color", "--seed", "1")
            words = [str(tool), "--config-file", str(settings), "run", address, *options]
            done = subprocess.run(words, capture_output=True, text=True, check=False, cwd=place)
    sys.stderr.write(done.stdout[-3000:])
    found = re.search(r"(\d+) generated(?:, (\d+) found)?", done.stdout)
    return {"exit_code": done.returncode, "generated": int(found[1]) if found else 0}


KINDS = {one.__name__: one for one in (speed, changes, feedback, malformed, clients, workers, schema)}

if __name__ == "__main__":
    figures = KINDS[sys.argv[1]](Path(sys.argv[2]), float(sys.argv[3]) if len(sys.argv) > 3 else 3.0)
    print(json.dumps(dict(figures)))
