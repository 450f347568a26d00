"""The suite ``scaling``, part of the recommender: two ranks of PyTorch's launcher against one process.

``embedding-shared`` and ``embedding-shared-unvalidated`` train a table of 2,000,000 rows of 64 numbers for an epoch, of
which each rank has half; made interactions touch each item once. ``ials-ranks`` compares factors on MovieLens-1M.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from apps.recsys.models import weights
from common import datasets
from common.bench.harness import Bound, Suite

WORK = Path("bench/work/scaling-recsys")
ITEMS, EACH = 2_000_000, 50
TRAINED = ("--model", "embedding", "--factors", "64", "--epochs", "1", "--threads", "1", "--memory", "3GiB")
FITTED = ("--model", "ials", "--threads", "1", "--memory", "1GiB", "--set", "frequency_scaling=1")
SHARED = (
    Bound("result.over_one_process", at_most=0.56),
    Bound("result.prediction_error", at_least=-0.05, at_most=0.05),
    Bound("result.loss_difference", at_most=1e-3),
)
SAME_FACTORS = Bound("result.worst", at_most=3e-5)
"""One process that is given the users and items of MovieLens-1M in another order differs from itself by 1.1e-5."""
MODULE = "apps.recsys.bench.scaling.ranks"


def suite() -> Suite:
    """Declare the cases."""
    scaling = Suite("scaling")
    for name in ("embedding-shared", "embedding-shared-unvalidated"):
        scaling.case(name, ["-m", MODULE, name], bounds=SHARED if name == "embedding-shared" else SHARED[1:])
    if datasets.find("ml-1m") is not None:
        scaling.case("ials-ranks", ["-m", MODULE, "ials-ranks"], bounds=(SAME_FACTORS,))
    return scaling


def trained(source: Path, out: Path, options: Sequence[object], *, ranks: int = 1) -> dict[str, Any]:
    """Train into an empty folder, in one process or over ranks; returns the record."""
    shutil.rmtree(out, ignore_errors=True)
    words = ["-m", "apps.recsys", "train", str(source), "-o", str(out), "-q", *map(str, options)]
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)] if ranks > 1 else []
    variables = {"PYTHONSAFEPATH": "1", "PYTHONPATH": str(Path.cwd()), "GLOO_SOCKET_IFNAME": "lo"}
    subprocess.run([sys.executable, *launcher, *words], check=True, env=os.environ | variables)
    record: dict[str, Any] = json.loads((out / "run.json").read_text("utf-8"))
    return record


def shared(work: Path, *, validates: bool, items: int = ITEMS) -> dict[str, Any]:
    """Train a table in one process and on two ranks that have half each.

    Returns
    -------
    dict
        ``over_one_process``: peak above the floor of the larger rank over that of one process; ``whole_over``: the same
        of whole processes; ``prediction_error`` above the floor; the peaks; ``loss_difference``: the largest relative
        one of the vectors that were trained.
    """
    work.mkdir(parents=True, exist_ok=True)
    source, plan = work / "pairs.csv", work / "plan.json"
    rows = np.stack([np.repeat(np.arange(items // EACH), EACH), np.random.default_rng(0).permutation(items)], 1)
    np.savetxt(source, rows, fmt="%d", delimiter=",", header="user,item", comments="")
    options = [*TRAINED, *([] if validates else ["--set", "validation=0"])]
    one = trained(source, work / "one", options)
    knobs = {**one["plan"]["knobs"], "table_rows": "shared", "user_block": 8 if validates else 256}
    plan.write_text(json.dumps({"workload": "recsys train", "knobs": knobs}), "utf-8")
    two = trained(source, work / "two", [*options, "--plan", plan], ranks=2)
    peaks, floors = two["results"]["ranks"]["peak_bytes"], [each["measured"]["floor_bytes"] for each in (one, two)]
    above = max(peaks) - floors[1]
    predicted = two["plan"]["predicted_peak_bytes"] - floors[1]
    vectors = [weights.read(work / name / weights.WEIGHTS) for name in ("one", "two")]
    return {
        "over_one_process": above / (one["measured"]["peak_bytes"] - floors[0]),
        "whole_over": max(peaks) / one["measured"]["peak_bytes"],
        "prediction_error": predicted / above - 1,
        "peak_bytes": {"one": one["measured"]["peak_bytes"], "ranks": peaks},
        "loss_difference": float(np.abs(vectors[0] - vectors[1]).max() / np.abs(vectors[0]).max()),
    }


def factors(work: Path) -> dict[str, float]:
    """Fit ``ials`` in one process and on two ranks; ``worst`` is the largest difference over the largest number."""
    source = datasets.find("ml-1m")
    assert source is not None
    for name, ranks in (("one", 1), ("two", 2)):
        trained(source / "ratings.csv.gz", work / name, FITTED, ranks=ranks)
    one, two = (weights.read(work / name / weights.WEIGHTS) for name in ("one", "two"))
    return {"worst": float(np.abs(one - two).max() / np.abs(one).max())}


if __name__ == "__main__":
    if sys.argv[1:] and not sys.argv[1].startswith("-"):
        asked = sys.argv[1]
        found = factors(WORK) if asked == "ials-ranks" else shared(WORK, validates=not asked.endswith("unvalidated"))
        sys.stdout.write(json.dumps(found) + "\n")
        sys.exit(0)
    sys.exit(suite().main())
