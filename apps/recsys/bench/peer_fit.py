"""Train with pandas, SciPy and ``implicit`` as their documentation says, without a split; the peer of ``recsys train``.

``python -m apps.recsys.bench.peer_fit INTERACTIONS [--factors 64] [--iterations 15] [--out FACTORS.npy]`` prints one
JSON line: total seconds, seconds of reading, peak bytes. It imports nothing of peakline.
"""

import argparse
import json
import os
import resource
import time

STARTED = time.monotonic()
# implicit recommends one BLAS thread below its own threads.
os.environ["OPENBLAS_NUM_THREADS"] = "1"

import numpy as np  # noqa: E402
import pandas as pd  # noqa: E402
import scipy.sparse as sp  # noqa: E402
from implicit.cpu.als import AlternatingLeastSquares  # noqa: E402

ALPHA, REGULARIZATION = 2.0, 10.0


def read(path: str) -> sp.csr_matrix:
    """Read confidences as a (users, items) matrix; ids are numbered in order of first appearance."""
    frame = pd.read_parquet(path) if path.endswith(".parquet") else pd.read_csv(path)
    user, _ = pd.factorize(frame.iloc[:, 0])
    item, _ = pd.factorize(frame.iloc[:, 1])
    value = frame.iloc[:, 2].to_numpy(np.float32) if frame.shape[1] > 2 else np.ones(len(frame), np.float32)
    matrix = sp.csr_matrix((value, (user, item)))
    matrix.sum_duplicates()
    matrix.data = np.float32(ALPHA) * np.log1p(matrix.data)
    return matrix


def main() -> None:
    """Read, fit, and save the item factors."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path")
    parser.add_argument("--factors", type=int, default=64)
    parser.add_argument("--iterations", type=int, default=15)
    parser.add_argument("--out")
    args = parser.parse_args()
    matrix = read(args.path)
    reading = time.monotonic() - STARTED
    model = AlternatingLeastSquares(
        factors=args.factors, regularization=REGULARIZATION, iterations=args.iterations, random_state=0
    )
    model.fit(matrix, show_progress=False)
    if args.out:
        np.save(args.out, model.item_factors)
    answer = {
        "seconds": round(time.monotonic() - STARTED, 3),
        "reading": round(reading, 3),
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
