"""The suite ``scaling``, part of the recommender: two ranks of PyTorch's launcher against one process.

``embedding-shared`` and ``embedding-shared-unvalidated`` train a table of 2,000,000 rows of 64 numbers for an epoch, of
which each rank has half; made interactions touch each item once. ``ials-ranks`` and ``linear-ranks`` compare weights on
MovieLens-1M, and ``linear-memory`` the peaks of a spectrum and of EASE on made interactions with many items.
``killed-rank`` reads how long a job lives after one of its ranks was killed, and was stopped.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from apps.recsys.models import weights
from apps.recsys.models.linear import ease
from apps.recsys.models.linear.spectral import response
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
SPECTRAL = ("form=spectral", "degree_power=0.3", "user_power=1", "item_power=0.25", "saturation=0.1")
EASE = ("form=ease", "ridge=300")
SAME_WEIGHTS = tuple(
    bound
    for form in ("spectral", "ease")
    for bound in (Bound(f"result.{form}", at_most=1e-5), Bound(f"result.{form}_lists", at_most=1e-3))
)
LESS = tuple(
    bound
    for form in ("spectral", "ease")
    for bound in (
        Bound(f"result.{form}.above_floor", at_most=0.56),
        Bound(f"result.{form}.prediction_error", at_least=-0.05, at_most=0.05),
    )
)
LARGE = {"spectral": (300_000, ("--factors", "256")), "ease": (10_000, ())}
"""Items, and options, of which a spectrum takes a GB in one process, and EASE's weights 400 MB."""
IN_TIME = (Bound("result.killed_seconds", at_most=30), Bound("result.stopped_seconds", at_most=30))
STARTED_SECONDS = 300
"""For a job to write its first checkpoint."""
MODULE = "apps.recsys.bench.scaling.ranks"


def suite() -> Suite:
    """Declare the cases."""
    scaling = Suite("scaling")
    for name in ("embedding-shared", "embedding-shared-unvalidated"):
        scaling.case(name, ["-m", MODULE, name], bounds=SHARED if name == "embedding-shared" else SHARED[1:])
    if datasets.find("ml-1m") is not None:
        scaling.case("ials-ranks", ["-m", MODULE, "ials-ranks"], bounds=(SAME_FACTORS,))
        scaling.case("linear-ranks", ["-m", MODULE, "linear-ranks"], bounds=SAME_WEIGHTS)
        scaling.case("killed-rank", ["-m", MODULE, "killed-rank"], bounds=IN_TIME)
    scaling.case("linear-memory", ["-m", MODULE, "linear-memory"], bounds=LESS)
    return scaling


def command(source: Path, out: Path, options: Sequence[object], ranks: int) -> tuple[list[str], dict[str, str]]:
    """The words and the environment of a training into an empty folder, in one process or over ranks."""
    shutil.rmtree(out, ignore_errors=True)
    words = ["-m", "apps.recsys", "train", str(source), "-o", str(out), "-q", *map(str, options)]
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)] if ranks > 1 else []
    variables = {"PYTHONSAFEPATH": "1", "PYTHONPATH": str(Path.cwd()), "GLOO_SOCKET_IFNAME": "lo"}
    return [sys.executable, *launcher, *words], os.environ | variables


def trained(source: Path, out: Path, options: Sequence[object], *, ranks: int = 1) -> dict[str, Any]:
    """Train into an empty folder, in one process or over ranks; returns the record."""
    words, environment = command(source, out, options, ranks)
    subprocess.run(words, check=True, env=environment)
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


def multiplied(model: Path) -> np.ndarray[Any, Any]:
    """The matrix by which a linear model multiplies a history, but for powers of the items' numbers of users."""
    if (model / ease.FILE).exists():
        return np.asarray(np.load(model / ease.FILE))
    file = model / weights.WEIGHTS
    vectors = weights.read(file, weights.SPECTRUM)
    matrix: np.ndarray[Any, Any] = (vectors * response(weights.read_eigenvalues(file), 0.1)) @ vectors.T
    return matrix


def linear(work: Path) -> dict[str, float]:
    """Compute linear models in one process and on two ranks.

    Returns
    -------
    dict
        By form the largest difference over the largest number; and the share of all users' items that differ.
    """
    source, worst = datasets.find("ml-1m"), {}
    assert source is not None
    for name, pairs in (("spectral", SPECTRAL), ("ease", EASE)):
        for folder, ranks in (("one", 1), ("two", 2)):
            trained(source / "ratings.csv.gz", work / folder, form_options(pairs), ranks=ranks)
        one, two = (multiplied(work / folder) for folder in ("one", "two"))
        worst[name] = float(np.abs(one - two).max() / np.abs(one).max())
        first, second = (recommended(work / folder) for folder in ("one", "two"))
        worst[f"{name}_lists"] = float((first != second).mean())
    return worst


def recommended(model: Path) -> np.ndarray[Any, Any]:
    """Ids of the ten items that a model recommends to each of its users."""
    import pyarrow.parquet as pq

    out = model.with_suffix(".parquet")
    words = ["recommend", model, "--all-users", "-o", out, "-q", "--threads", "1", "--memory", "1GiB"]
    subprocess.run([sys.executable, "-m", "apps.recsys", *map(str, words)], check=True)
    return np.asarray(pq.read_table(out, columns=["item"])["item"].to_numpy(zero_copy_only=False))


def form_options(pairs: Sequence[str], ceiling: str = "3GiB") -> list[str]:
    """Options of a linear model with these settings."""
    return ["--threads", "1", "--memory", ceiling, *(word for pair in pairs for word in ("--set", pair))]


def linear_memory(work: Path) -> dict[str, dict[str, Any]]:
    """Compute linear models of many items in one process and on two ranks.

    Returns
    -------
    dict
        By form: ``above_floor``: peak above the floor of the larger rank over that of one process; ``prediction_error``
        above the floor; the peaks.
    """
    work.mkdir(parents=True, exist_ok=True)
    found = {}
    for name, pairs in (("spectral", SPECTRAL), ("ease", EASE)):
        source, (items, more), random = work / f"{name}.csv", LARGE[name], np.random.default_rng(0)
        rows = np.stack(
            [np.repeat(np.arange(2 * items // EACH), EACH), np.resize(random.permutation(items), 2 * items)]
        )
        np.savetxt(source, rows.T, fmt="%d", delimiter=",", header="user,item", comments="")
        records = [trained(source, work / str(ranks), [*form_options(pairs), *more], ranks=ranks) for ranks in (1, 2)]
        floors = [record["measured"]["floor_bytes"] for record in records]
        peaks = [records[0]["measured"]["peak_bytes"], max(records[1]["results"]["ranks"]["peak_bytes"])]
        above = peaks[1] - floors[1]
        found[name] = {
            "above_floor": above / (peaks[0] - floors[0]),
            "prediction_error": (records[1]["plan"]["predicted_peak_bytes"] - floors[1]) / above - 1,
            "peak_bytes": peaks,
            "seconds": [record["seconds"] for record in records],
        }
    return found


def lifetimes(work: Path) -> dict[str, float]:
    """Train over two ranks, of which one is killed, then stopped, after the first checkpoint; seconds until the job has
    ended."""
    source, out, seconds = datasets.find("ml-1m"), work / "out", {}
    assert source is not None
    lasting = ("--model", "embedding", "--epochs", "100", "--threads", "1", "--memory", "1GiB")
    for name, number in (("killed", signal.SIGKILL), ("stopped", signal.SIGSTOP)):
        words, environment = command(source / "ratings.csv.gz", out, lasting, 2)
        job = subprocess.Popen(words, env=environment, stderr=subprocess.DEVNULL)  # reports of 40 lines
        deadline = time.monotonic() + STARTED_SECONDS
        while not (out / ".training" / "last.safetensors").exists():
            if job.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"no checkpoint after {STARTED_SECONDS} s")
            time.sleep(0.05)
        os.kill(computing(out, rank=1), number)
        began = time.monotonic()
        job.wait(timeout=STARTED_SECONDS)
        seconds[f"{name}_seconds"] = time.monotonic() - began
    return seconds


def computing(out: Path, rank: int) -> int:
    """The process that computes as a rank of the training into ``out``: the child of a supervisor."""
    for place in Path("/proc").iterdir():
        try:
            words = (place / "cmdline").read_bytes().split(b"\0")
            variables = (place / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if str(out).encode() in words and b"-P" in words and b"RANK=%d" % rank in variables:
            return int(place.name)
    raise RuntimeError(f"no process computes as rank {rank}")


CASES: Mapping[str, Callable[[], object]] = {
    "embedding-shared": lambda: shared(WORK / "validated", validates=True),
    "embedding-shared-unvalidated": lambda: shared(WORK / "unvalidated", validates=False),
    "ials-ranks": lambda: factors(WORK / "ials"),
    "linear-ranks": lambda: linear(WORK / "linear"),
    "linear-memory": lambda: linear_memory(WORK / "memory"),
    "killed-rank": lambda: lifetimes(WORK / "killed"),
}

if __name__ == "__main__":
    if sys.argv[1:] and not sys.argv[1].startswith("-"):
        sys.stdout.write(json.dumps(CASES[sys.argv[1]]()) + "\n")
        sys.exit(0)
    sys.exit(suite().main())
