"""What answers are worth: ``python -m apps.recsys.bench.serve.quality WHAT INTERACTIONS [KIND]``.

``folded`` trains a model with ``--split leave-last`` and compares the NDCG of users who are folded in, as the service
does, with that of the user vectors that the same training ends with, which the model does not store. ``rebuilt`` sends
10,000 events to a served linear filter, in requests of 500, and compares all scores of some users with those of the
model that ``recsys update`` makes of the log. The last line on stdout is a JSON object with the figures.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from apps.recsys.data.csr_store import History
from apps.recsys.data.splits import HeldOut, Kept
from apps.recsys.models import bpr
from apps.recsys.models.als import als_matrices, ials
from apps.recsys.models.recommender import Recommender, load_manifest
from apps.recsys.serving.feedback.journal import Event
from apps.recsys.serving.live import Gauge, Live, Log

EVENTS, REQUEST, JUDGED = 10_000, 500, 300
"""Events, those of a request, and users whose scores are compared."""


def trained(interactions: Path, model: Path, *options: object) -> Mapping[str, Any]:
    """Train a model; returns its manifest."""
    words = ["-m", "apps.recsys", "train", interactions, "-o", model, "--memory", "600MiB", "-q", *options]
    subprocess.run([sys.executable, *map(str, words)], check=True)
    return load_manifest(model)


def user_vectors(model: Path, made: Mapping[str, Any]) -> np.ndarray:
    """The users' vectors at the end of the training of a model, shape (users, factors)."""
    history = History(model, columns=made["items"])
    kept = Kept.of(history, model, made["split"])
    hyper, items, factors, seed = made["hyper"], made["items"], made["factors"], made["seed"]
    if made["kind"] == "ials":
        sides = als_matrices.in_memory(history, kept, items=items, hyper=hyper)
        state = ials.first_state(sides, factors=factors, seed=seed)
        ials.fit(sides, state, hyper=hyper, threads=1, after_block=lambda state: None)
    else:
        pairs = bpr.Pairs.of(als_matrices.training_matrix(history, kept, items=items, hyper=bpr.UNWEIGHTED))
        state = bpr.first_state(pairs, items=items, factors=factors, seed=seed)
        bpr.fit(pairs, state, hyper=hyper, threads=1, seed=seed, after_epoch=lambda state: None)
    return state.users


def folded(interactions: Path, kind: str = "ials") -> Mapping[str, float]:
    """NDCG@10 and NDCG@100 of the last item of each user, by folded-in and by trained user vectors."""
    with tempfile.TemporaryDirectory() as place:
        model = Path(place, "model")
        made = trained(interactions, model, "--model", kind, "--split", "leave-last", "--threads", 1)
        recommender, heldout = Recommender(model, made), HeldOut(model)
        assert recommender.factors is not None
        users, vectors = user_vectors(model, made), recommender.factors.item_factors
        totals, count = np.zeros((2, 2)), 0
        for user, scored in zip(heldout.users.tolist(), _scored(heldout), strict=True):
            items, values = recommender.history.items(user), recommender.history.values(user)
            seen = ~np.isin(items, scored)
            for way, vector in enumerate((recommender.factors.fold_in(items[seen], values[seen]), users[user])):
                scores = vectors @ vector
                scores[items[seen]] = -np.inf
                rank = int((scores > scores[scored[0]]).sum())
                totals[way] += [1 / np.log2(rank + 2) if rank < depth else 0.0 for depth in (10, 100)]
            count += 1
    means = totals / count
    return {
        "users": count,
        "folded_ndcg10": means[0, 0],
        "trained_ndcg10": means[1, 0],
        "ratio_10": means[0, 0] / means[1, 0],
        "ratio_100": means[0, 1] / means[1, 1],
    }


def _scored(heldout: HeldOut) -> list[np.ndarray]:
    return [heldout.items(place) for place in range(len(heldout))]


def rebuilt(interactions: Path) -> Mapping[str, float]:
    """The largest difference of scores after 10,000 events, against a model that is made of them too."""
    with tempfile.TemporaryDirectory() as place:
        model, log, new = Path(place, "model"), Path(place, "log.jsonl"), Path(place, "new")
        made = trained(interactions, model, "--model", "linear", "--set", "form=filter", "--factors", 0)
        live = Live(model, lambda manifest: Gauge(1, 1, ()), Log(log, EVENTS, sync=True))
        assert live.feedback is not None
        random, service, now = np.random.default_rng(0), live.service(), time.time()
        took = []
        for start in range(0, EVENTS, REQUEST):
            events = []
            for number in range(start, start + REQUEST):
                user = f"{10**8 + number % 200}" if number % 10 == 0 else str(service.users.id(number % made["users"]))
                item = str(service.items.id(int(random.integers(made["items"]))))
                events.append(Event(user, item, float(random.integers(1, 6)), now - EVENTS + number, ""))
            began = time.perf_counter()
            live.feedback.take(events)
            took.append(time.perf_counter() - began)
        words = ["-m", "apps.recsys", "update", model, "--feedback", log, "-o", new, "--memory", "600MiB", "-q"]
        subprocess.run([sys.executable, *map(str, words)], check=True)
        after = load_manifest(new)
        again = Live(new, lambda manifest: Gauge(1, 1, ())).service()
        ids = [service.items.id(row) for row in range(made["items"])]
        places = again.items.rows([str(id_) for id_ in ids])
        worst = largest = 0.0
        for number in range(JUDGED):
            user = f"{10**8 + 10 * number}" if number < 20 else str(service.users.id(number * 7 % made["users"]))
            found = []
            for one in (service, again):
                scorer = one.recommender.scorer
                found.append(scorer.scores([one.history(user, ())], scorer.workspace(1))[0].copy())
            worst = max(worst, float(np.abs(found[0] - found[1][places]).max()))
            largest = max(largest, float(np.abs(found[0]).max()))
    return {
        "events": live.feedback.count,
        "interactions_more": after["interactions"] - made["interactions"],
        "worst": worst,
        "largest_score": largest,
        "relative": worst / largest,
        "request_median_ms": 1e3 * float(np.median(took)),
    }


if __name__ == "__main__":
    figures = {"folded": folded, "rebuilt": rebuilt}[sys.argv[1]](Path(sys.argv[2]), *sys.argv[3:])
    print(json.dumps(dict(figures)))
