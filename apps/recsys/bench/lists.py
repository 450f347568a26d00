"""Recommend for all users of a large catalogue: time, extra memory, and recall against the full float32 ranking.

``python -m apps.recsys.bench.lists MODEL_DIR`` runs ``recsys recommend --all-users -k 20`` on a model in one thread and
prints one JSON line. ``--items 1000000 --out MODEL_DIR`` first grows the model: its items are repeated with noise
(lengths by 10 %, coordinates by a tenth of their spread) and each user's history moves to one of the copies. The result
is synthetic and has the spectrum of the real model. Its items have an attribute, ``part``, of ten values.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from apps.recsys.data import arrow_numpy
from apps.recsys.data.attributes import stored
from apps.recsys.data.csr_store import History, NpyWriter
from apps.recsys.data.id_table import write_table
from apps.recsys.models import recommender as model
from apps.recsys.models import weights
from apps.recsys.models.scan import stored as scan_files

DEPTH = 20
PARTS = 10
"""Values of the attribute of a grown model."""
JUDGED = 200
"""Number of users whose full ranking is computed."""


def grow(source: Path, out: Path, items: int, seed: int) -> None:
    """Write a model of ``items`` items, grown from the model in ``source``."""
    made: Mapping[str, Any] = model.load_manifest(source)
    real = weights.read(source / weights.WEIGHTS)
    random = np.random.default_rng(seed)
    factors = real[np.arange(items) % len(real)]
    factors *= np.exp(random.normal(0, 0.1, (items, 1))).astype(np.float32)
    factors += random.normal(0, 0.1 * real.std(), factors.shape).astype(np.float32)
    out.mkdir(parents=True, exist_ok=True)
    weights.write(out / weights.WEIGHTS, {weights.ITEMS: factors})
    history = History(source)
    with NpyWriter(out / "history.items.npy", "<i4") as moved, NpyWriter(out / "history.values.npy", "<f4") as values:
        for user in range(history.rows):
            moved.append(history.items(user) + len(real) * random.integers(items // len(real)))
            values.append(history.values(user))
    with NpyWriter(out / "history.indptr.npy", "<i8") as indptr:
        indptr.append(history.indptr)
    write_table(out / "items.parquet", [arrow_numpy.numbers(np.arange(items))])
    write_table(out / "users.parquet", [arrow_numpy.numbers(np.arange(history.rows))])
    scan_files.write(out, made["kind"], made["hyper"])
    parts = random.integers(1, PARTS + 1, items).astype(np.int32)
    stored.write(out, 0, parts, None, [arrow_numpy.numbers(np.arange(1.0, PARTS + 1))], as_text=False)
    part = {"name": "part", "kind": "number", "several": False, "values": PARTS, "entries": items, "longest": 1}
    fields = ("factors", "table", "users", "interactions", "longest_history", "hyper", "split", "seed")
    kept = {name: made[name] for name in fields} | {"cosine": made.get("cosine", False), "items": items}
    kept["attributes"] = [{**part, "letters": 0}]
    model.seal(out, kind=made["kind"], fields=kept)


def judge(directory: Path, out: Path, memory: str) -> dict[str, float]:
    """Run the command and compare its lists with the full rankings of some users.

    Parameters
    ----------
    directory
        The model folder.

    Returns
    -------
    dict
        ``recall``; ``scratch_mib``, the peak above baseline and model; ``user_ms``; ``users``; ``items``.
    """
    import pyarrow.parquet as pq

    command = ["recommend", directory, "--all-users", "-o", out, "-k", DEPTH, "--memory", memory, "--threads", 1, "-q"]
    subprocess.run([sys.executable, "-m", "apps.recsys", *map(str, command)], check=True)
    record, made = json.loads(out.with_suffix(".run.json").read_text()), model.load_manifest(directory)
    measured, phases = record["measured"], {p["name"]: p["seconds"] for p in record["measured"]["phases"]}
    model_bytes = 4 * made["factors"] * made["items"] + 8 * (made["users"] + 1)
    table, recommender = pq.read_table(out), model.Recommender(directory, made)
    row_of = {id_: row for row, id_ in enumerate(pq.read_table(directory / "items.parquet")["id"].to_pylist())}
    hits = 0
    judged = np.linspace(0, made["users"] - 1, JUDGED).astype(int)
    for user in judged:
        history, values = recommender.history.items(user), recommender.history.values(user)
        best = {row for row, _ in recommender.recommend(history, values, DEPTH)}
        lists = table.slice(DEPTH * user, DEPTH)["item"].to_pylist()
        hits += len(best & {row_of[id_] for id_ in lists})
    return {
        "recall": hits / (DEPTH * JUDGED),
        "scratch_mib": (measured["peak_bytes"] - measured["floor_bytes"] - model_bytes) / (1 << 20),
        "user_ms": 1000 * phases["rank"] / made["users"],
        "users": made["users"],
        "items": made["items"],
    }


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--items", type=int)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--memory", default="600MiB")
    args = parser.parse_args()
    directory = args.model
    if args.items:
        directory = args.out
        if not (directory / "model.json").is_file():
            grow(args.model, directory, args.items, seed=0)
    print(json.dumps(judge(directory, directory.with_suffix(".parquet"), args.memory)))


if __name__ == "__main__":
    main()
