"""Train and evaluate with pandas, SciPy and ``implicit`` as their documentation says, on the same split and metrics.

``python -m apps.recsys.bench.peer_implicit RATINGS.csv`` prints one JSON line: seconds, peak bytes, metrics. It
imports nothing of peakline, so it is also an independent check of the evaluation.
"""

import json
import os
import resource
import sys
import time

STARTED = time.monotonic()
# implicit recommends one BLAS thread below its own threads.
os.environ["OPENBLAS_NUM_THREADS"] = "1"

import numpy as np  # noqa: E402
import pandas as pd  # noqa: E402
import scipy.sparse as sp  # noqa: E402
from implicit.cpu.als import AlternatingLeastSquares  # noqa: E402

ALPHA, REGULARIZATION = 2.0, 10.0
DISCOUNT = 1 / np.log2(np.arange(2, 102))


def read(path: str) -> sp.csr_matrix:
    """Read the first three columns as user, item, value; ids are numbered in order of first appearance."""
    frame = pd.read_csv(path)
    user, _ = pd.factorize(frame.iloc[:, 0])
    item, _ = pd.factorize(frame.iloc[:, 1])
    value = frame.iloc[:, 2].to_numpy(np.float32) if frame.shape[1] > 2 else np.ones(len(frame), np.float32)
    matrix = sp.csr_matrix((value, (user, item)))
    matrix.sum_duplicates()
    return matrix


def split(rows: sp.csr_matrix, held_out: np.ndarray, seed: int) -> tuple[sp.csr_matrix, list[np.ndarray]]:
    """Split each held-out user's items: four fifths to fold in, the others to score.

    Returns
    -------
    tuple
        The fold-in matrix, and the items to score per user.
    """
    fold_in, scored = rows.copy(), []
    for row, user in enumerate(held_out):
        start, stop = rows.indptr[row], rows.indptr[row + 1]
        order = np.random.default_rng([seed, user]).permutation(stop - start)[: int(0.2 * (stop - start))]
        scored.append(rows.indices[start:stop][order])
        fold_in.data[start:stop][order] = 0
    fold_in.eliminate_zeros()
    return fold_in, scored


def main(path: str, factors: int = 64, iterations: int = 15, seed: int = 0) -> None:
    """Read, fit on nine tenths of the users, and evaluate on a fifth of the other users' items."""
    matrix = read(path)
    users = matrix.shape[0]
    confidence = matrix.copy()
    confidence.data = np.float32(ALPHA) * np.log1p(matrix.data)
    held_out = np.sort(np.random.default_rng(seed).permutation(users)[: int(0.1 * users)])
    held_out = held_out[np.diff(matrix.indptr)[held_out] >= 5]
    train = np.setdiff1d(np.arange(users), held_out)
    model = AlternatingLeastSquares(
        factors=factors, regularization=REGULARIZATION, iterations=iterations, random_state=seed
    )
    model.fit(confidence[train], show_progress=False)
    fold_in, scored = split(confidence[held_out], held_out, seed)
    ranked, _ = model.recommend(np.arange(len(held_out)), fold_in, N=100, recalculate_user=True)
    metrics = dict.fromkeys(("ndcg@10", "ndcg@100", "recall@20", "recall@50"), 0.0)
    for items, test in zip(ranked, scored, strict=True):
        hits = np.isin(items, test)
        for k in (10, 100):
            metrics[f"ndcg@{k}"] += (DISCOUNT[:k] * hits[:k]).sum() / DISCOUNT[: min(k, len(test))].sum()
        for k in (20, 50):
            metrics[f"recall@{k}"] += hits[:k].sum() / min(k, len(test))
    answer = {
        "seconds": round(time.monotonic() - STARTED, 3),
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "users": len(held_out),
        "metrics": {name: float(total / len(held_out)) for name, total in metrics.items()},
    }
    print(json.dumps(answer))


if __name__ == "__main__":
    main(sys.argv[1], *(int(text) for text in sys.argv[2:4]))
