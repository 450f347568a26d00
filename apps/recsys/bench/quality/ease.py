"""Compare the linear model with EASE on the same splits of MovieLens-1M, for several seeds.

``python -m apps.recsys.bench.quality.ease RATINGS WORK``. EASE (Steck, "Embarrassingly shallow autoencoders for sparse
data", 2019) is written out here with dense matrices and gets the best of three ridges, chosen on the scored items
themselves; the linear model chooses on hidden training items; a byte a number is given.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from apps.recsys.data.csr_store import History
from apps.recsys.data.splits import HeldOut
from apps.recsys.evaluation.metrics import Tally
from apps.recsys.models.top_k import top_k

SEEDS = range(3)
TRAINING = ["--model", "linear", "--min-value", "4", "--split", "random", "--set", "bits=8"]
CEILING = "512MiB"
RIDGES = (200.0, 500.0, 1000.0)
METRIC = "ndcg@20"


def ease(folder: Path, items: int) -> float:
    """Fit EASE on what the split of a model folder trains on; returns its metric on the rest."""
    import numpy as np

    trained, held_out = History(folder, "trained"), HeldOut(folder)
    dense = np.zeros((trained.rows, items), np.float32)
    for user in range(trained.rows):
        dense[user, trained.items(user)] = 1
    gramian = (dense.T @ dense).astype(np.float64)
    best = 0.0
    for ridge in RIDGES:
        inverse = np.linalg.inv(gramian + ridge * np.eye(items))
        weights = -inverse / np.diag(inverse)
        np.fill_diagonal(weights, 0)
        tally = Tally(items, (METRIC,))
        for row, user in enumerate(held_out.users):
            scores = (dense[user] @ weights).astype(np.float32)
            scores[trained.items(int(user))] = -np.inf
            tally.add(top_k(scores, tally.depth), held_out.items(row))
        best = max(best, tally.means()[METRIC])
    return best


def measure(ratings: Path, work: Path) -> dict[str, Any]:
    """Train with every seed; returns the mean of both metrics, their ratio, and the ratio of the weights' bytes."""
    ours, theirs, sizes, peaks = [], [], [], []
    for seed in SEEDS:
        folder = work / f"linear-{seed}"
        command = [sys.executable, "-m", "apps.recsys", "train", str(ratings), *TRAINING, "--seed", str(seed)]
        command += ["-o", str(folder), "--memory", CEILING, "-q", "--json"]
        record = json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)
        items = int(record["results"]["model"]["items"])
        ours.append(record["results"]["metrics"][METRIC])
        theirs.append(ease(folder, items))
        sizes.append((folder / "weights.safetensors").stat().st_size / (4 * items * items))
        peaks.append(record["measured"]["peak_bytes"])
    ratio = statistics.mean(ours) / statistics.mean(theirs)
    return {METRIC: statistics.mean(ours), "ease": statistics.mean(theirs), "ratio": ratio, "bytes": max(sizes)} | {
        "each": ours,
        "each_ease": theirs,
        "peak_bytes": max(peaks),
    }


if __name__ == "__main__":
    sys.stdout.write(json.dumps(measure(Path(sys.argv[1]), Path(sys.argv[2]))) + "\n")
