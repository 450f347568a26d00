"""The ground floor's suite for ``imaging``: training against a plain script, inference against MONAI, predictions.

``make bench-ground``; about 45 minutes on 2 cores. Needs ``msd-hippocampus`` below ``PEAKLINE_DATA``.
"""

import sys
from pathlib import Path

from apps.imaging.bench import headline_infer, headline_train
from common import datasets
from common.bench.harness import Suite

WORK = Path("bench/work/imaging")


def suite() -> Suite:
    """The cases; what they need is made first."""
    hippocampus = datasets.find("msd-hippocampus")
    if hippocampus is None:
        raise SystemExit("data set msd-hippocampus is not at hand: set PEAKLINE_DATA")
    ground = Suite("ground")
    headline_infer.prepare(WORK, hippocampus.parent)
    headline_train.prepare(WORK, hippocampus.parent)
    headline_train.add_cases(ground, WORK)
    headline_infer.add_cases(ground, WORK)
    return ground


if __name__ == "__main__":
    sys.exit(suite().main())
