"""Train a linear filter on sixty million events, and make lists for a slice of its users.

``python -m apps.recsys.bench.quality.large_filter EVENTS.parquet MODEL OPTION...`` trains under 1 GiB with these
options and prints one JSON line: seconds of reading and of what follows, the largest peak, processor seconds, and the
machine's load at the start. ``--lists`` instead of options makes lists of 20 for ``LISTED`` users.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

CEILING = "1GiB"
LISTED = 2_000


def run(*words: object) -> dict[str, Any]:
    """Run a command of ``recsys``; returns its record."""
    limit = [] if "--memory" in words else ["--memory", CEILING]
    command = [sys.executable, "-m", "apps.recsys", *map(str, words), *limit, "-q", "--json"]
    record: dict[str, Any] = json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)
    return record


def seconds(record: dict[str, Any], *phases: str) -> float:
    """Seconds in some phases of a record."""
    return round(float(sum(one["seconds"] for one in record["measured"]["phases"] if one["name"] in phases)), 2)


def trained(events: Path, model: Path, options: list[str]) -> dict[str, Any]:
    """Train; what was measured."""
    record = run("train", events, "-o", model, "--model", "linear", *options)
    return {
        "read": seconds(record, "plan", "probe"),
        "fit": seconds(record, "arrange", "fit", "write"),
        "peak_bytes": record["measured"]["peak_bytes"],
        "hyper": record["results"]["model"]["hyper"],
        "factors": record["results"]["model"]["factors"],
    }


def lists(model: Path) -> dict[str, Any]:
    """Make lists for users that are drawn at random; lists a second, and the largest peak."""
    ids = pq.read_table(model / "users.parquet")["id"].to_numpy()
    with tempfile.TemporaryDirectory() as folder:
        asked = Path(folder) / "users.txt"
        asked.write_text("".join(f"{one}\n" for one in np.random.default_rng(0).choice(ids, LISTED, replace=False)))
        record = run("recommend", model, "--users", asked, "-k", 20, "--output", Path(folder) / "lists.parquet")
    return {"lists_per_second": LISTED / seconds(record, "rank"), "peak_bytes": record["measured"]["peak_bytes"]}


if __name__ == "__main__":
    load = os.getloadavg()[0]
    place, rest = Path(sys.argv[2]), sys.argv[3:]
    made = lists(place) if rest == ["--lists"] else trained(Path(sys.argv[1]), place, rest)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = {"processor_seconds": round(used.ru_utime + used.ru_stime, 1), "load": round(load, 1)}
    sys.stdout.write(json.dumps({**made, **spent}) + "\n")
