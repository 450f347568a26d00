"""Measure how long one user's answer by a large linear filter takes, and what its bounds cost in quality.

``python -m apps.recsys.bench.quality.one_user MODEL``: for 400 users of the model, milliseconds from a history to the
first 20 items (the median and the 99th percentile, of the clock and of the processor), in one thread and after a first
round of questions, so that the files are in the page cache. Then for as many the share of the exact list that is kept,
and R@20 of a fifth of their items, hidden from the question, by the bounded scores and by the exact ones. What a user's
own row adds to his hidden items is subtracted.
"""

import json
import sys
import time
from pathlib import Path

import numpy as np

from apps.recsys.models.linear.filter import FilterScorer
from apps.recsys.models.linear.readers import DEPTH, ReaderScores
from apps.recsys.models.recommender import Recommender, load_manifest
from apps.recsys.models.top_k import top_k

USERS = 400


def latency(recommender: Recommender, users: list[int]) -> dict[str, float]:
    """Ask for each user twice; milliseconds of the second round."""
    for _ in range(2):
        clock, processor = [], []
        for user in users:
            items, values = recommender.history.items(user), recommender.history.values(user)
            begun = time.perf_counter(), time.process_time()
            recommender.recommend(items, values, DEPTH)
            clock.append(time.perf_counter() - begun[0])
            processor.append(time.process_time() - begun[1])
    found = {"": clock, "processor_": processor}
    return {
        f"{name}{label}_ms": round(1000 * float(np.percentile(seconds, percent)), 2)
        for name, seconds in found.items()
        for label, percent in (("median", 50), ("p99", 99))
    }


def quality(scores: ReaderScores, recommender: Recommender, users: list[int], power: float) -> dict[str, float]:
    """Compare bounded scores with exact ones."""
    degrees = np.maximum(np.diff(np.load(recommender.directory / "readers.indptr.npy")), 1).astype(np.float64)
    random, exact, overlaps, recalls = np.random.default_rng(0), 0, [], []
    for user in users:
        history = recommender.history.items(user)
        hidden = random.choice(history, max(1, len(history) // 5), replace=False)
        left = np.setdiff1d(history, hidden)
        if not len(left):
            continue
        found, every = scores.compared(left)
        exact += every is None
        tops = []
        own = (degrees[left] ** (-power - 0.5)).sum() / len(history) * degrees[hidden] ** (power - 0.5)
        for some in (found, found if every is None else every):
            answer = some.copy()
            answer[hidden] -= own
            answer[left] = -np.inf
            tops.append(top_k(answer, DEPTH))
        overlaps.append(float(np.isin(tops[0], tops[1]).mean()))
        recalls.append([float(np.isin(top, hidden).sum()) / min(DEPTH, len(hidden)) for top in tops])
    bounded, whole = np.mean(recalls, 0)
    return {"exact": exact / len(overlaps), "overlap": float(np.mean(overlaps)), "recall": bounded, "of_exact": whole}


def main(directory: Path) -> None:
    """Print one JSON line."""
    from threadpoolctl import threadpool_limits

    manifest = load_manifest(directory)
    recommender = Recommender(directory, manifest)
    scorer = recommender.scorer
    if not isinstance(scorer, FilterScorer) or scorer.by_readers is None:
        raise SystemExit(f"{directory}: not a filter that answers by readers")
    random = np.random.default_rng(1)
    users = [int(user) for user in random.choice(recommender.history.rows, USERS, replace=False)]
    with threadpool_limits(1):
        found = latency(recommender, users)
        compared = quality(scorer.by_readers, recommender, users, float(manifest["hyper"]["degree_power"]))
    kept = {"kept": compared["recall"] / compared["of_exact"]}
    sys.stdout.write(json.dumps({**found, **compared, **kept}) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
