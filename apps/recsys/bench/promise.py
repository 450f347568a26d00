"""Check the promise for ``recsys``: its commands on real data at every ceiling.

``make bench-promise``; it needs the real data sets in ``PEAKLINE_DATA``.
"""

import sys
from pathlib import Path

from apps.recsys.bench.headline import source
from common.bench import promise
from common.bench.harness import Bound, Suite

WORK = Path("bench/work/promise-recsys")
TRAIN = (
    ("ials-lastfm", "lastfm", "--model ials --factors 64 --split user-holdout --set iterations=3"),
    ("ials-ml-1m", "ml-1m", "--model ials --factors 64 --split user-holdout --set iterations=2"),
    ("ials-gowalla", "gowalla", "--model ials --factors 128 --split user-holdout --set iterations=1"),
    ("ials-epinions", "epinions", "--model ials --factors 64 --split user-holdout --set iterations=1"),
    ("ials-ml-1m-last", "ml-1m", "--model ials --factors 32 --split leave-last --set iterations=1"),
    ("popularity-ml-1m", "ml-1m", "--model popularity --split user-holdout"),
    ("popularity-gowalla", "gowalla", "--model popularity"),
    ("linear-lastfm", "lastfm", "--split user-holdout"),
    ("linear-ml-1m", "ml-1m", "--set degree_power=0.2 --set saturation=0.1 --set form=spectral"),
)
"""Name, data set and options of each ``train``; the other commands use the models of the first four."""
ANSWERS = (
    ("recommend-ml-1m", "ials-ml-1m", ("recommend", "--user", "1")),
    ("recommend-all-ml-1m", "ials-ml-1m", ("recommend", "--all-users", "-o", WORK / "all-ml-1m.parquet")),
    ("recommend-all-gowalla", "ials-gowalla", ("recommend", "--all-users", "-o", WORK / "all-gowalla.parquet")),
    ("recommend-epinions", "ials-epinions", ("recommend", "--history", "1,2,3")),
    ("similar-lastfm", "ials-lastfm", ("similar", "--item", "289")),
    ("similar-gowalla", "ials-gowalla", ("similar", "--item", "10")),
)

SERVED = (("ml-1m", "ials-ml-1m", "1"), ("epinions", "ials-epinions", "1"))
"""Name, model, and the item in the requests."""


def prepare(work: Path) -> None:
    """Train the models that the other commands use; existing ones are kept."""
    import subprocess

    for name, data, options in TRAIN[:4]:
        if not (work / name / "model.json").is_file():
            command = [sys.executable, "-m", "apps.recsys", "train", source(data, work), "-o", work / name]
            subprocess.run([*map(str, command), *options.split(), "-q"], check=True)


def suite() -> Suite:
    """Make the models and declare the cases."""
    grid = Suite("promise")
    prepare(WORK)
    for name, data, options in TRAIN:
        out = WORK / f"out-{name}"
        argv = ["apps.recsys", "train", source(data, WORK), "-o", out, *options.split(), "-q"]
        promise.add_command(grid, f"recsys-train-{name}", argv, fresh=out)
    for name, _, _ in TRAIN[:4]:
        promise.add_command(grid, f"recsys-evaluate-{name}", ["apps.recsys", "evaluate", WORK / name, "-q"])
    for name, model, (command, *arguments) in ANSWERS:
        promise.add_command(grid, f"recsys-{name}", ["apps.recsys", command, WORK / model, *arguments, "-q"])
    for name, model, item in SERVED:
        for ceiling in promise.CEILINGS:
            grid.case(
                promise.at(f"recsys-serve-{name}", ceiling),
                ["-m", "apps.recsys.bench.serving", ceiling, WORK / model, item],
                group=f"recsys-serve-{name}",
                bounds=(promise.WITHIN_5_PERCENT, Bound("peak", at_most=ceiling)),
                exits=promise.exits(ceiling),
            )
    return grid


if __name__ == "__main__":
    sys.exit(suite().main())
