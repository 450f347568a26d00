"""Compare the iALS objective of two trainings; each user is solved exactly against the item factors.

``python -m apps.recsys.bench.objective MODEL_DIR FACTORS.npy`` compares a model folder with a peer's item factors on
every ``--every``-th user (all items, all interactions of these users). It prints one JSON line: both objectives, their
ratio, and the largest difference of a factor. The objective is equation 3 of Hu, Koren, Volinsky 2008 with
``implicit``'s confidences.
"""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apps.recsys.data.csr_store import History
from apps.recsys.models import recommender, weights
from apps.recsys.models.als.confidence import confidence as confidence_of


def objective(history: History, items: NDArray[np.float64], hyper: Mapping[str, Any], every: int) -> float:
    """Sum the confidence-weighted squared errors over all items of some users, and the penalty of both factor tables.

    Items without an interaction contribute ``x' Y'Y x`` together; only interactions are summed one by one.

    Parameters
    ----------
    items
        Item factors, (items, factors).
    every
        Only every ``every``-th user is counted.
    """
    gram = items.T @ items
    penalty = np.diag(np.full(len(gram), hyper["regularization"]))
    total = hyper["regularization"] * float((items**2).sum())
    for user in range(0, history.rows, every):
        rows = items[history.items(user)]
        confidence = confidence_of(history.values(user), hyper).astype(np.float64)
        system = gram + penalty + rows.T @ (rows * (confidence - 1)[:, None])
        vector = np.linalg.solve(system, confidence @ rows)
        scores = rows @ vector
        total += vector @ gram @ vector - scores @ scores + confidence @ (1 - scores) ** 2
        total += hyper["regularization"] * vector @ vector
    return float(total)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("factors", type=Path)
    parser.add_argument("--every", type=int, default=20)
    args = parser.parse_args()
    hyper = recommender.load_manifest(args.model)["hyper"]
    history = History(args.model)
    ours, theirs = weights.read(args.model / weights.WEIGHTS), np.load(args.factors)
    reached = [objective(history, items.astype(np.float64), hyper, args.every) for items in (ours, theirs)]
    answer = {"ours": reached[0], "theirs": reached[1], "ratio": reached[0] / reached[1]}
    print(json.dumps(answer | {"largest_difference": float(np.abs(ours - theirs).max())}))


if __name__ == "__main__":
    main()
