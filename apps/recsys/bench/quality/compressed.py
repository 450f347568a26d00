"""Measure what codes of item vectors cost: a float32 model of factors, and the same compressed (``recsys compress``).

``python -m apps.recsys.bench.quality.compressed WORK CASE SIZE [OPTION...]``: CASE is one of ``CASES``, SIZE the bytes
of an item. A float32 model is trained once and kept in WORK. The same held-out items are ranked by both. With several
data sets in a case, ``loss`` is the mean of their losses.
"""

import json
import shutil
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import datasets

CEILING = "1500MiB"
ML_1M = ("--set", "weight=binary", "--set", "alpha=4.33", "--set", "regularization=34", "--set", "iterations=12")
GOWALLA = ("--set", "weight=binary", "--set", "alpha=80", "--set", "regularization=100", "--set", "iterations=8")
EPINIONS = ("--set", "weight=binary", "--set", "alpha=80", "--set", "regularization=300", "--set", "iterations=8")
SCALED = ("--set", "frequency_scaling=1")
"""Settings of the suite ``recsys``, and of Epinions, which were compared on hidden training items (Epinions: 64
factors, a tenth of the pairs hidden; NDCG@20 .0372, .0361 with alpha 20 and regularization 100, .0302 with those of
Gowalla)."""


@dataclass(frozen=True, slots=True)
class Source:
    """A data set with the settings of its model.

    Attributes
    ----------
    name
        Of the data set.
    interactions, options
        File of interactions, and options of the training.
    factors
        Factors of the model that is compressed.
    test
        File of test pairs; ``None``: what the split holds out.
    metric
        The metric that is judged.
    base
        Factors of the float32 model that the loss is relative to.
    every
        Only every so many users of the test file are scored.
    kind
        Told apart from other models of the data set by this name.
    """

    name: str
    interactions: str
    options: Sequence[str]
    factors: int = 128
    test: str | None = None
    metric: str = "ndcg@20"
    base: int = 128
    every: int = 1
    kind: str = ""


_RATINGS = ("--model", "ials", *ML_1M, *SCALED, "--min-value", "4")
_PAIRS = ("--model", "ials", *GOWALLA, *SCALED)
_TRUST = ("--model", "ials", *EPINIONS, *SCALED)
_SAMPLED = ("--model", "embedding", "--epochs", "12", "--min-value", "4", "--split", "random", "--set")
_SUMS = (*_SAMPLED, "user_vectors=history", "--set")
SETS = (
    Source("gowalla", "train_lightgcn.txt.gz", _PAIRS, test="test.txt", every=5),
    Source("ml-1m", "ratings.csv.gz", (*_RATINGS, "--split", "random")),
    Source("epinions", "train.txt", _TRUST, test="test.txt", every=5),
)
CASES: dict[str, tuple[Source, ...]] = {
    "ials": SETS,
    "gowalla": SETS[:1],
    "ml-1m": SETS[1:2],
    "epinions": SETS[2:],
    **{f"gowalla-{n}": (Source("gowalla", "train_lightgcn.txt.gz", _PAIRS, n, "test.txt"),) for n in (256, 320)},
    "ml-1m-embedding": (
        Source("ml-1m", "ratings.csv.gz", (*_SAMPLED, "user_vectors=learned"), 64, base=64, kind="learned"),
    ),
    "ml-1m-tied": (Source("ml-1m", "ratings.csv.gz", (*_SUMS, "tables=1"), 64, kind="tied"),),
    "ml-1m-untied": (Source("ml-1m", "ratings.csv.gz", (*_SUMS, "tables=2"), 64, kind="untied"),),
    "ml-1m-users": (Source("ml-1m", "ratings.csv.gz", (*_RATINGS, "--split", "user-holdout"), metric="ndcg@100"),),
}


def run(*words: object) -> dict[str, Any]:
    """Run a command of ``recsys``; returns its record."""
    command = [sys.executable, "-m", "apps.recsys", *map(str, words), "--memory", CEILING, "--threads", "1"]
    done = subprocess.run([*command, "-q", "--json"], stdout=subprocess.PIPE, text=True, check=True)
    record: dict[str, Any] = json.loads(done.stdout)
    return record


def judged(source: Source, folder: Path, model: Path) -> dict[str, Any]:
    """Metrics of a model, and the peak of its evaluation; they are kept beside it."""
    path = model / f"judged-{source.every}.json"
    if not path.is_file():
        test = (
            ["--test", _sampled(folder / source.test, source, model.parent), "--protocol", "lightgcn"]
            if source.test
            else []
        )
        names = ("ndcg@20", "recall@20", "ndcg@100")
        record = run("evaluate", model, *test, "--metrics", ",".join(names))
        kept = {name: record["results"]["metrics"][name] for name in names}
        path.write_text(json.dumps({**kept, "peak_bytes": record["measured"]["peak_bytes"]}))
    read: dict[str, Any] = json.loads(path.read_text())
    return read


def _sampled(path: Path, source: Source, work: Path) -> Path:
    """The test file, or one with the lines of every so many users."""
    if source.every == 1:
        return path
    out = work / f"{source.name}-every-{source.every}.txt"
    with path.open() as lines, out.open("w") as some:
        some.writelines(line for number, line in enumerate(lines) if number % source.every == 0)
    return out


def trained(source: Source, folder: Path, work: Path, factors: int) -> Path:
    """The float32 model, which is made if it is not there."""
    model = work / f"{source.name}-{source.kind or source.metric.replace('@', '')}-{factors}"
    if not (model / "model.json").is_file():
        run("train", folder / source.interactions, "-o", model, *source.options, "--factors", factors)
    return model


def measure(source: Source, work: Path, size: int, options: Sequence[str]) -> dict[str, Any]:
    """Train, compress and evaluate."""
    folder = datasets.find(source.name)
    if folder is None:
        raise SystemExit(f"data set {source.name} not found: set PEAKLINE_DATA")
    model = trained(source, folder, work, source.factors)
    base = judged(source, folder, trained(source, folder, work, source.base))
    out = work / f"{model.name}-{size}"
    shutil.rmtree(out, ignore_errors=True)
    record = run("compress", model, "--target-bytes", size, "-o", out, *options)
    found, results = judged(source, folder, out), record["results"]
    return {
        "data": source.name,
        "before": base,
        "after": found,
        "loss": 1 - found[source.metric] / base[source.metric],
        "recall": found["recall@20"],
        "item_bytes": results["item_bytes"],
        "file_bytes": [results["file_bytes_before"], results["file_bytes"]],
        "seconds": record["seconds"],
        "peak_bytes": record["measured"]["peak_bytes"],
        "predicted": record["plan"]["predicted_peak_bytes"],
    }


if __name__ == "__main__":
    made = [measure(each, Path(sys.argv[1]), int(sys.argv[3]), sys.argv[4:]) for each in CASES[sys.argv[2]]]
    loss = statistics.mean(each["loss"] for each in made)
    least = min(each["recall"] for each in made)
    sys.stdout.write(json.dumps({"loss": loss, "recall": least, "kept": 1 - loss, "each": made}) + "\n")
