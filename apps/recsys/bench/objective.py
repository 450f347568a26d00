"""The objective that two trainings reached, each user solved exactly for the items' factors it is given.

``python -m apps.recsys.bench.objective MODEL_DIR FACTORS.npy`` compares a model folder with a peer's factors on every
``--every``-th user (all items, all of these users' interactions) and prints one JSON line: both objectives, their
ratio, and the largest difference of a factor. Hu, Koren, Volinsky 2008, equation 3, as ``implicit`` weighs it.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from apps.recsys.data.csr_store import History
from apps.recsys.models import recommender, weights
from apps.recsys.models.als.confidence import confidence as confidence_of


def objective(history: History, items: NDArray[np.float64], hyper: dict[str, float], every: int) -> float:
    """Squared errors weighted by confidence, over all items of some users, and the penalty of both sides' factors.

    Without a user's interactions the errors are ``x' Y'Y x``; only those with interactions are summed one by one.
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
    return total


def main() -> None:
    """The command line."""
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
