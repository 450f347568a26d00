"""Expand a real data set to a synthetic one of any size with the same structure (fractal expansion).

Belletti et al., "Scalable realistic recommendation datasets through fractal expansions", 2019: the Kronecker product of
a small matrix with the real one. Here the small matrix S holds probabilities. It is the real matrix summed over
``side`` groups of users and of items with similar activity, raised to the power that gives the requested number of
events. In block (a, b) of ``side * side`` the real pair (u, i) becomes the pair (a * users + u, b * items + i) with
probability S[a, b].

``python -m apps.recsys.bench.synthetic_scale_up OUT.parquet --side 9 --events 60000000`` expands Gowalla. Its memory
does not depend on the number of events.
"""

import argparse
import gzip
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from common import datasets

Pairs = tuple[NDArray[np.int32], NDArray[np.int32]]


def gowalla() -> Pairs:
    """Read users and items of LightGCN's Gowalla training pairs."""
    base = datasets.find("gowalla")
    if base is None:
        raise SystemExit("data set gowalla not found: set PEAKLINE_DATA")
    with gzip.open(base / "train_lightgcn.txt.gz", "rt") as stream:
        rows = [np.array(line.split(), np.int32) for line in stream]
    return np.concatenate([np.repeat(row[:1], len(row) - 1) for row in rows]), np.concatenate([r[1:] for r in rows])


def reduced(pairs: Pairs, side: int, share: float) -> NDArray[np.float64]:
    """Compute the small matrix.

    Returns
    -------
    float64 array, (side, side)
        The largest entry is 1; the entries are raised to the power at which their mean is ``share``.
    """
    groups = []
    for column in pairs:
        counts = np.bincount(column)
        rank = np.empty(len(counts), np.int64)
        rank[np.argsort(-counts, kind="stable")] = np.arange(len(counts))
        groups.append(rank[column] * side // len(counts))
    small = np.bincount(groups[0] * side + groups[1], minlength=side * side).reshape(side, side) / len(pairs[0])
    small = np.maximum(small / small.max(), 1e-6)
    low, high = 0.0, 8.0
    for _ in range(60):
        power = (low + high) / 2
        low, high = (power, high) if (small**power).mean() > share else (low, power)
    answer: NDArray[np.float64] = small**low
    return answer


def write(out: Path, pairs: Pairs, *, side: int, events: int, seed: int) -> int:
    """Write columns ``user`` and ``item`` as Parquet, user by user; returns the number of rows.

    Raises
    ------
    SystemExit
        ``side`` is too small for so many events.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    user, item = pairs
    users, items = int(user.max()) + 1, int(item.max()) + 1
    share = events / (len(user) * side * side)
    if share > 1:
        raise SystemExit(f"--side {side} gives at most {len(user) * side * side:,} events")
    small, random = reduced(pairs, side, share), np.random.default_rng(seed)
    rows = 0
    with pq.ParquetWriter(out, pa.schema({"user": pa.int32(), "item": pa.int32()})) as writer:
        for block in range(side):
            for pairs_of_block in np.array_split(np.arange(len(user)), 16):
                kept = random.random((len(pairs_of_block), side)) < small[block]
                pair, column = np.nonzero(kept)
                source = pairs_of_block[pair]
                made = (block * users + user[source], column * items + item[source])
                writer.write_table(pa.table([made[0].astype(np.int32), made[1].astype(np.int32)], ["user", "item"]))
                rows += len(pair)
    return rows


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--side", type=int, default=9)
    parser.add_argument("--events", type=int, default=60_000_000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    made = write(args.out, gowalla(), side=args.side, events=args.events, seed=args.seed)
    print(f"{made:,} events, synthetic: {args.side} x {args.side} blocks of Gowalla, seed {args.seed}")


if __name__ == "__main__":
    main()
