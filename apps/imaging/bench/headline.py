"""The headline figures of ``imaging``: training against a plain script, inference against MONAI, predictions.

``make bench-headline``; about 45 minutes on 2 cores. It needs ``msd-hippocampus`` in ``PEAKLINE_DATA``.
"""

import sys
from pathlib import Path

from apps.imaging.bench import headline_infer, headline_train
from common import datasets
from common.bench.harness import Suite

WORK = Path("bench/work/imaging")


def suite() -> Suite:
    """Make the inputs and declare the cases."""
    hippocampus = datasets.find("msd-hippocampus")
    if hippocampus is None:
        raise SystemExit("data set msd-hippocampus not found: set PEAKLINE_DATA")
    headline = Suite("headline")
    headline_infer.prepare(WORK, hippocampus.parent)
    headline_train.prepare(WORK, hippocampus.parent)
    headline_train.add_cases(headline, WORK)
    headline_infer.add_cases(headline, WORK)
    return headline


if __name__ == "__main__":
    sys.exit(suite().main())
