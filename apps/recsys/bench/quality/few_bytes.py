"""Measure how well a linear model ranks on Gowalla in few bytes an item: a spectrum as codes, or the interactions.

``python -m apps.recsys.bench.quality.few_bytes FOLDER WORK FACTORS BITS [POWER SATURATION]``; 0 factors: a filter. The
form is given; its numbers are too, or chosen on hidden training items. Counted are all bytes that scoring reads: of a
spectrum the whole weights file, of a filter also the interactions in the one orientation that it reads.
"""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

CEILING = "512MiB"
METRICS = ("recall@20", "ndcg@20")
READ_BY_FILTER = ("history.items.npy", "history.indptr.npy")


def run(*words: object) -> dict[str, Any]:
    """Run a command of ``recsys``; returns its record."""
    command = [sys.executable, "-m", "apps.recsys", *map(str, words), "--memory", CEILING, "-q", "--json"]
    record: dict[str, Any] = json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)
    return record


def measure(data: Path, work: Path, factors: int, bits: int, given: Sequence[str]) -> dict[str, Any]:
    """Train with a degree power and a saturation, if they are ``given``, and evaluate.

    Returns the metrics, bytes an item, the chosen numbers, seconds and the largest peak.
    """
    model, form = work / f"{factors}x{bits}", "spectral" if factors else "filter"
    options = ["--model", "linear", "--set", f"form={form}", "--factors", factors, "--set", f"bits={bits}"]
    for name, number in zip(("degree_power", "saturation"), given, strict=False):
        options += ["--set", f"{name}={number}"]
    trained = run("train", data / "train_lightgcn.txt.gz", "-o", model, *options)
    judged = run("evaluate", model, "--test", data / "test.txt", "--protocol", "lightgcn")
    read = ["weights.safetensors", *(() if factors else READ_BY_FILTER)]
    size = sum((model / name).stat().st_size for name in read)
    return {
        **{name: judged["results"]["metrics"][name] for name in METRICS},
        "bytes": size / trained["results"]["model"]["items"],
        "hyper": trained["results"]["model"]["hyper"],
        "seconds": trained["seconds"],
        "peak_bytes": max(record["measured"]["peak_bytes"] for record in (trained, judged)),
    }


if __name__ == "__main__":
    made = measure(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), sys.argv[5:])
    sys.stdout.write(json.dumps(made) + "\n")
