"""A server with a million items of 128 factors: ``python -m apps.recsys.bench.serve.large MODEL OUT``.

MODEL is a model of real data; OUT is grown from it (``apps.recsys.bench.lists``) unless it is there. The server runs
below ``CEILING``, once with its files in the page cache of the machine and once without
them, so that what it reads counts in its own cgroup, where there is one. Then lists are made in one thread of this
process, in turn with faiss's exact index. The last line on stdout is a JSON object with the figures.
"""

from __future__ import annotations

import http.client
import json
import os
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

import numpy as np
from threadpoolctl import threadpool_limits

from apps.recsys.bench.lists import grow
from apps.recsys.bench.serve.measure import Server, mark, serving, smallest_ceiling
from apps.recsys.models.recommender import Recommender, load_manifest
from apps.recsys.planning.service.workload import KEPT
from apps.recsys.serving.service import RecommenderService
from common.memory.process import meter

ITEMS, K = 1_000_000, 20
QUESTIONS, JUDGED = 1000, 100
"""Lists that are asked for, and those that are compared with exact ones."""
CEILING = "128MiB"
FILTERS = 2
"""Filters that the plan keeps below it."""
WHERE = "part = 3"
"""A tenth of the items."""


def ask(server: Server, paths: Sequence[str]) -> list[float]:
    """Ask one after the other; returns the times in ms."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    times = []
    for path in paths:
        began = time.perf_counter()
        connection.request("GET", path)
        assert json.loads(connection.getresponse().read())
        times.append(1e3 * (time.perf_counter() - began))
    connection.close()
    return times


def forget(model: Path) -> None:
    """Let the files of a model leave the page cache."""
    for path in model.iterdir():
        file = os.open(path, os.O_RDONLY)
        os.fdatasync(file)
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(file)


def against(model: Path, users: Sequence[int]) -> dict[str, float]:
    """The service's lists and those of faiss's exact index without a filter, in turn; and recall of exact float32.

    Times are those of a processor, so that other work on the machine does not count.
    """
    import faiss

    faiss.omp_set_num_threads(1)
    made = load_manifest(model)
    service, full = RecommenderService(model, made, filters=FILTERS), Recommender(model, made)
    assert full.factors is not None
    vectors, fold_in = full.factors.item_factors, full.factors.fold_in
    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(vectors)
    passing = np.load(model / "attribute.0.codes.npy") == 3
    ours, flat, hits = [], [], 0
    for place, user in enumerate(users):
        began = time.thread_time()
        allowed = service.choice(WHERE)
        listed = list(service.described(service.ranked(str(service.users.id(user)), (), K, allowed)))
        ours.append(1e3 * (time.thread_time() - began))
        if place >= JUDGED:
            continue
        items, values = full.history.items(user), full.history.values(user)
        vector = fold_in(items, values)
        began = time.thread_time()
        index.search(vector[None], K)
        flat.append(1e3 * (time.thread_time() - began))
        mask = passing.copy()
        mask[items] = False
        exact = np.argpartition(np.where(mask, vectors @ vector, -np.inf), -K)[-K:]
        hits += len({int(item["id"]) for item in listed} & set(exact.tolist()))
    quick = _quantiles(ours)
    return {
        "list_median_ms": quick["median_ms"],
        "list_p99_ms": quick["p99_ms"],
        "flat_median_ms": statistics.median(flat),
        "times_as_fast": statistics.median(flat) / quick["median_ms"],
        "p99_over_median": quick["p99_ms"] / quick["median_ms"],
        "recall": hits / (K * JUDGED),
    }


def main(real: Path, model: Path) -> dict[str, float]:
    """Measure."""
    if not (model / "model.json").exists():
        grow(real, model, ITEMS, 0)
    users = np.random.default_rng(0).choice(load_manifest(model)["users"], QUESTIONS, replace=False).tolist()
    paths = [f"/recommend?user={user}&k={K}&where={quote(WHERE)}" for user in users]
    figures = {"smallest_mib": smallest_ceiling(model, "--threads", 1)}
    for name in ("own_cache", "free_cache"):
        if name == "own_cache":
            forget(model)
        with serving(model, "--memory", CEILING, "--threads", 1) as server:
            ask(server, paths[:100])
            times = ask(server, paths)
            plain = ask(server, [path.partition("&where")[0] for path in paths])
            ask(server, ["/similar?item=7&k=20", "/items?q=1"])
            sizes = server.get("/model")["memory"]
            assert {term["name"]: term["bytes"] for term in sizes["terms"]}[KEPT]
            figures |= {f"{name}_{key}": value for key, value in _quantiles(times).items()}
            figures |= {f"{name}_unfiltered_{key}": value for key, value in _quantiles(plain).items()}
            figures[f"{name}_peak_mib"] = (mark(server) + (sizes["resident_bytes"] - server.held())) / 2**20
            figures["pss_mib"] = meter.pages(server.pids[0]).proportional / 2**20
    with threadpool_limits(1):
        return figures | against(model, users)


def _quantiles(times: Sequence[float]) -> dict[str, float]:
    return {"median_ms": statistics.median(times), "p99_ms": sorted(times)[int(0.99 * len(times))]}


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), Path(sys.argv[2]))))
