"""What a kind of table keeps of the ranking: the same training for several seeds, each with a split of its own.

``python -m apps.recsys.bench.tables RATINGS WORK KIND``. From seed to seed the NDCG differs by as much as is asked of a
table, a percent; the mean counts.
"""

import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

SEEDS = range(3)
TRAINING = ["--model", "embedding", "--factors", "64", "--epochs", "12", "--min-value", "4", "--split", "random"]
TRAINING += ["--set", "user=own", "--set", "negatives=512", "--set", "validation=0", "--threads", "1"]
"""Ratings from 4 on, a fifth of every user's items held out; no choice was made on them."""
CEILING = "1GiB"
METRIC = "ndcg@20"


def measure(ratings: Path, work: Path, kind: str) -> dict[str, Any]:
    """The mean of the metric, each seed's, and the largest peak of the trainings."""
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
