"""The suite ``recsys``: published protocols run from the command line, each under a ceiling.

``make bench-recsys``; it needs the real data sets in ``PEAKLINE_DATA``. Hyper-parameters were chosen on validation
parts of the training data; test files are only evaluated on.
"""

import gzip
import sys
from collections.abc import Mapping
from pathlib import Path

from apps.recsys.bench.quality import few_bytes, tables
from common import datasets
from common.bench.harness import Bound, Suite
from common.compression import layouts
from common.memory.process.budget import parse_size

WORK = Path("bench/work/recsys")
NCF = {"weight": "binary", "alpha": 4.33, "regularization": 34, "frequency_scaling": 1, "iterations": 12}
"""iALS on MovieLens-1M: the unobserved weight 0.3 and the ridge of Rendle et al. (2021) in ``implicit``'s terms. The
settings were compared on each user's last item before the tested one, against 99 sampled negatives."""

FEW_BYTES = (
    ("110-bytes", 0, 32, (), 0.185, 110),
    ("66-bytes", 472, 1, (0.5, 0.14), 0.175, 66),
    ("34-bytes", 216, 1, (0.5, 0.02), 0.165, 34),
)
"""Linear models on Gowalla: name, eigenvalues, bits of each, degree power and saturation unless they are chosen, least
R@20, most bytes an item."""

LEARNED_USERS = ["--model", "embedding", "--factors", 64, "--epochs", 160, "--threads", 1]
LEARNED_USERS += ["--set", "user_vectors=learned", "--set", "negatives=4096"]
LEARNED_USERS += ["--set", "popularity=0.5", "--set", "patience=1000"]
"""The embedding on Gowalla: learned user vectors, sampled softmax, a popularity prior; compared on validation items of
2,000 users (``docs/recsys.md``). The training keeps its best epoch, also by validation items. The learning rate falls
until the end, so early stopping is off."""

GOWALLA = {"weight": "binary", "alpha": 80, "regularization": 100, "frequency_scaling": 1, "iterations": 8}
"""iALS on Gowalla; compared with 64 factors on validation items of 3,000 users."""


def settings(hyper: Mapping[str, object]) -> list[str]:
    """Return the hyper-parameters as options of ``recsys train``."""
    return [word for name, value in hyper.items() for word in ("--set", f"{name}={value}")]


def data(name: str) -> Path:
    """Return the folder of a real data set."""
    base = datasets.find(name)
    if base is None:
        raise SystemExit(f"data set {name} not found: set PEAKLINE_DATA")
    return base


def ncf_training(scratch: Path) -> Path:
    """Write NCF's training file of MovieLens-1M: all ratings but the test pairs, ids in order of first appearance."""
    base, out = data("ml-1m"), scratch / "ml-1m.train.rating"
    if out.is_file():
        return out
    with gzip.open(base / "ncf" / "ml-1m.test.rating.gz", "rt") as stream:
        tested = {int(user): int(item) for user, item, *_ in (line.split("\t") for line in stream)}
    users: dict[str, int] = {}
    items: dict[str, int] = {}
    out.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(base / "ratings.csv.gz", "rt") as stream, out.open("w") as rows:
        next(stream)
        for line in stream:
            user, item, rating, when = line.split(",")
            pair = users.setdefault(user, len(users)), items.setdefault(item, len(items))
            if tested[pair[0]] != pair[1]:
                rows.write(f"{pair[0]}\t{pair[1]}\t{rating}\t{when}")
    return out


def suite() -> Suite:
    """Declare the cases."""
    recsys = Suite("recsys")
    common = ["-q", "--json"]

    size = "256MiB"
    model, ceiling, group = WORK / "ncf-ials", parse_size(size), "ncf"
    options = ["--model", "ials", "--factors", 192, *settings(NCF)]
    train = ["-m", "apps.recsys", "train", ncf_training(WORK), "-o", model, *options]
    in_time = (Bound("seconds", at_most=120),)
    recsys.case("ncf-ml-1m-train", [*train, "--memory", size, *common], ceiling=ceiling, group=group, bounds=in_time)
    negatives = data("ml-1m") / "ncf" / "ml-1m.test.negative.gz"
    judge = ["-m", "apps.recsys", "evaluate", model, "--protocol", "ncf", "--negatives", negatives, "--memory", size]
    bounds = (Bound("result.metrics.hr@10", at_least=0.722), Bound("result.metrics.ndcg@10", at_least=0.445))
    recsys.case("ncf-ml-1m-ials", [*judge, *common], ceiling=ceiling, group=group, bounds=bounds)

    gowalla, size = data("gowalla"), "1GiB"
    ceiling = parse_size(size)
    runs = (
        ("embedding", LEARNED_USERS, (0.1837, 0.1493)),
        ("embedding-int8", [*LEARNED_USERS, "--table", "int8"], (None, None)),
        ("embedding-int4", [*LEARNED_USERS, "--table", "int4"], (None, None)),
        ("ials", ["--model", "ials", "--factors", 256, *settings(GOWALLA)], (0.168, None)),
    )
    for name, options, (recall, ndcg) in runs:
        model, group = WORK / f"gowalla-{name}", f"gowalla-{name}"
        train = ["-m", "apps.recsys", "train", gowalla / "train_lightgcn.txt.gz", "-o", model, *options]
        recsys.case(f"gowalla-{name}-train", [*train, "--memory", size, *common], ceiling=ceiling, group=group)
        judge = ["-m", "apps.recsys", "evaluate", model, "--test", gowalla / "test.txt", "--protocol", "lightgcn"]
        asked = {"recall@20": recall, "ndcg@20": ndcg}
        least = [Bound(f"result.metrics.{of}", at_least=low) for of, low in asked.items() if low is not None]
        recsys.case(f"gowalla-{name}", [*judge, "--memory", size, *common], ceiling=ceiling, group=group, bounds=least)
    for table, kept in (("int8", 0.99), ("int4", 0.97)):
        bound = Bound("result.metrics.ndcg@20", at_least=kept)
        recsys.ratio(f"gowalla-{table}-over-full", f"gowalla-embedding-{table}", "gowalla-embedding", bound)
    _tables(recsys)
    _linear(recsys, gowalla)
    return recsys


def _linear(recsys: Suite, gowalla: Path) -> None:
    """Declare the cases of the linear model: settings that are given, or chosen on hidden items only."""
    runs: tuple[tuple[str, str, list[str], float, float, int], ...] = (
        ("filter", "256MiB", ["--factors", "0", *settings({"form": "filter", "degree_power": 0.4})], 0.1887, 0.157, 60),
        ("given", "512MiB", settings({"form": "filter", "degree_power": 0.4, "saturation": 3}), 0.190, 0.159, 180),
        ("chosen", "512MiB", [], 0.190, 0.159, 300),
    )
    common = ["-q", "--json"]
    for name, size, options, recall, ndcg, seconds in runs:
        model, group = WORK / f"linear-gowalla-{name}", f"linear-gowalla-{name}"
        train = ["-m", "apps.recsys", "train", gowalla / "train_lightgcn.txt.gz", "-o", model, "--model", "linear"]
        in_time = (Bound("seconds", at_most=seconds),)
        ends = ["--memory", size, *common]
        recsys.case(f"{group}-train", [*train, *options, *ends], ceiling=parse_size(size), group=group, bounds=in_time)
        judge = ["-m", "apps.recsys", "evaluate", model, "--test", gowalla / "test.txt", "--protocol", "lightgcn"]
        least = Bound("result.metrics.recall@20", at_least=recall), Bound("result.metrics.ndcg@20", at_least=ndcg)
        recsys.case(group, [*judge, *ends], ceiling=parse_size(size), group=group, bounds=least)
    compared = ["-m", "apps.recsys.bench.quality.ease", data("ml-1m") / "ratings.csv.gz", WORK / "ease"]
    bounds = Bound("result.ratio", at_least=0.985), Bound("result.bytes", at_most=0.1)
    recsys.case("linear-ml-1m-ease", compared, ceiling=parse_size("4GiB"), bounds=bounds)
    for name, factors, bits, given, recall, most in FEW_BYTES:
        trained = ["-m", "apps.recsys.bench.quality.few_bytes", gowalla, WORK / "few-bytes", factors, bits, *given]
        least = Bound("result.recall@20", at_least=recall), Bound("result.bytes", at_most=most)
        recsys.case(f"linear-gowalla-{name}", trained, ceiling=parse_size(few_bytes.CEILING), bounds=least)


def _tables(recsys: Suite) -> None:
    """Declare cases that compare the ranking quality of table kinds; the training is the same for all."""
    for kind in layouts.KINDS:
        trainings = ["-m", "apps.recsys.bench.quality.tables", data("ml-1m") / "ratings.csv.gz", WORK / "tables", kind]
        recsys.case(f"table-ml-1m-{kind}", trainings, ceiling=parse_size(tables.CEILING))
    for kind, kept in (("int8", 0.99), ("int4", 0.97), ("hash", 0.97)):
        recsys.ratio(
            f"table-ml-1m-{kind}-over-full",
            f"table-ml-1m-{kind}",
            "table-ml-1m-full",
            Bound(f"result.{tables.METRIC}", at_least=kept),
        )


if __name__ == "__main__":
    sys.exit(suite().main())
