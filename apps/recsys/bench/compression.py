"""The suite ``compression`` of the recommender: what codes of item vectors cost in quality, and what they save.

``make bench-compression``; it needs the real data sets in ``PEAKLINE_DATA``. The rows of ``docs/techniques.md``.
"""

import sys
from pathlib import Path

from apps.recsys.bench.quality import compressed, structured
from common.bench.harness import Bound, Suite
from common.memory.process.budget import parse_size

WORK = Path("bench/work/compression")
RATIOS = ((8, 64, 0.003), (16, 32, 0.01), (32, 16, 0.04), (64, 8, 0.08))
"""Times smaller than 128 numbers of float32, bytes of an item, and the most that NDCG@20 may lose: the mean of Gowalla,
MovieLens-1M and Epinions."""


def suite() -> Suite:
    """Declare the cases."""
    compression = Suite("compression")
    module, ceiling = "apps.recsys.bench.quality.compressed", parse_size(compressed.CEILING)
    for ratio, size, most in RATIOS:
        argv = ["-m", module, WORK, "ials", size]
        compression.case(f"recsys-{ratio}x", argv, ceiling=ceiling, bounds=(Bound("result.loss", at_most=most),))
    for codes in ("product", "residual"):
        for _, size, _ in RATIOS:
            argv = ["-m", module, WORK, "ials", size, "--codes", codes]
            compression.case(f"recsys-{codes}-{size}-bytes", argv, ceiling=ceiling)
    for factors, size, least in ((320, 66, 0.172), (256, 34, 0.165)):
        argv = ["-m", module, WORK, f"gowalla-{factors}", size]
        bound = Bound("result.recall", at_least=least)
        compression.case(f"recsys-gowalla-{size}-bytes", argv, ceiling=ceiling, bounds=(bound,))
    for size, least in ((34, 0.98), (50, 0.993)):
        argv = ["-m", module, WORK, "ml-1m-users", size]
        compression.case(
            f"recsys-ml-1m-{size}-bytes", argv, ceiling=ceiling, bounds=(Bound("result.kept", at_least=least),)
        )
    compression.case("recsys-embedding-codes", ["-m", module, WORK, "ml-1m-embedding", 33], ceiling=ceiling)
    module = "apps.recsys.bench.quality.structured"
    for form in structured.FORMS[:-1]:
        compression.case(f"recsys-{form}", ["-m", module, WORK, "ml-1m", form, 33], ceiling=ceiling)
        argv = ["-m", module, WORK, "ml-1m-embedding", form, 33]
        compression.case(f"recsys-embedding-{form}", argv, ceiling=ceiling)
    for name, size in (("tied", 256), ("untied", 512)):
        argv = ["-m", module, WORK, f"ml-1m-{name}", structured.FORMS[-1], size]
        compression.case(f"recsys-{name}", argv, ceiling=ceiling)
    return compression


if __name__ == "__main__":
    sys.exit(suite().main())
