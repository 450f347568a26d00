"""Lists for all users of a large catalogue, judged: time, scratch, and recall against the whole float32 ranking.

``python -m apps.recsys.bench.lists MODEL_DIR`` runs ``recsys recommend --all-users -k 20`` on a model in one thread and
prints one JSON line. With ``--items 1000000 --out MODEL_DIR`` the model is first grown: its items are repeated with
noise (lengths by 10 %, coordinates by a tenth of their spread), each user's history moves to one of the copies, and the
result is synthetic with the spectrum of the real one.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np

from apps.recsys.data import arrow_numpy
from apps.recsys.data.csr_store import History, NpyWriter
from apps.recsys.data.id_table import write_table
from apps.recsys.models import recommender as model
from apps.recsys.models import weights

DEPTH = 20
JUDGED = 200
"""Users whose whole ranking is made."""


def grow(source: Path, out: Path, items: int, seed: int) -> None:
    """Write the larger model."""
    made, real = model.load_manifest(source), weights.read(source / weights.WEIGHTS)
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
    fields = ("factors", "table", "users", "interactions", "longest_history", "hyper", "split", "seed")
    kept = {name: made[name] for name in fields} | {"cosine": made.get("cosine", False), "items": items}
    model.seal(out, kind=made["kind"], fields=kept)


def judge(place: Path, out: Path, memory: str) -> dict[str, float]:
    """Run the command, and compare its lists with whole rankings of some users."""
    import pyarrow.parquet as pq

    command = ["recommend", place, "--all-users", "-o", out, "-k", DEPTH, "--memory", memory, "--threads", 1, "-q"]
    subprocess.run([sys.executable, "-m", "apps.recsys", *map(str, command)], check=True)
    record, made = json.loads(out.with_suffix(".run.json").read_text()), model.load_manifest(place)
    measured, phases = record["measured"], {p["name"]: p["seconds"] for p in record["measured"]["phases"]}
    own = 4 * made["factors"] * made["items"] + 8 * (made["users"] + 1)
    table, recommender = pq.read_table(out), model.Recommender(place, made)
    row_of = {id_: row for row, id_ in enumerate(pq.read_table(place / "items.parquet")["id"].to_pylist())}
    found = 0
    judged = np.linspace(0, made["users"] - 1, JUDGED).astype(int)
    for user in judged:
        history, values = recommender.history.items(user), recommender.history.values(user)
        best = {row for row, _ in recommender.recommend(history, values, DEPTH)}
        lists = table.slice(DEPTH * user, DEPTH)["item"].to_pylist()
        found += len(best & {row_of[id_] for id_ in lists})
    return {
        "recall": found / (DEPTH * JUDGED),
        "scratch_mib": (measured["peak_bytes"] - measured["floor_bytes"] - own) / (1 << 20),
        "user_ms": 1000 * phases["rank"] / made["users"],
        "users": made["users"],
        "items": made["items"],
    }


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--items", type=int)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--memory", default="600MiB")
    args = parser.parse_args()
    place = args.model
    if args.items:
        place = args.out
        if not (place / "model.json").is_file():
            grow(args.model, place, args.items, seed=0)
    print(json.dumps(judge(place, place.with_suffix(".parquet"), args.memory)))


if __name__ == "__main__":
    main()
