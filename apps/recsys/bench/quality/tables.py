"""Measure the ranking quality of one kind of table: the same training for several seeds, each with its own split.

``python -m apps.recsys.bench.quality.tables RATINGS WORK KIND``. The NDCG varies between seeds by a percent, as much as
a table may lose, so the mean over seeds is judged.
"""

import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

SEEDS = range(3)
TRAINING = ["--model", "embedding", "--factors", "64", "--epochs", "12", "--min-value", "4", "--split", "random"]
TRAINING += ["--set", "user_vectors=learned", "--set", "negatives=512", "--set", "validation=0", "--threads", "1"]
"""Ratings of at least 4; a fifth of every user's items is held out, and no choice was made on them."""
CEILING = "1GiB"
METRIC = "ndcg@20"


def measure(ratings: Path, work: Path, kind: str) -> dict[str, Any]:
    """Train with every seed; returns the mean metric, each seed's metric, and the largest peak in bytes."""
    command = [sys.executable, "-m", "apps.recsys", "train", str(ratings), *TRAINING, "--table", kind]
    command += ["--memory", CEILING, "-q", "--json"]
    values, peaks = [], []
    for seed in SEEDS:
        options = ["--seed", str(seed), "-o", str(work / f"{kind}-{seed}")]
        record = json.loads(subprocess.run([*command, *options], stdout=subprocess.PIPE, text=True, check=True).stdout)
        values.append(record["results"]["metrics"][METRIC])
        peaks.append(record["measured"]["peak_bytes"])
    return {METRIC: statistics.mean(values), "each": values, "peak_bytes": max(peaks)}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(measure(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])) + "\n")
