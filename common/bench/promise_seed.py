"""Train a small CNN on CIFAR-10 plainly and under a ceiling: ``make bench-promise_seed``.

One comparison asks for the same learning curve in a fraction of the memory. The other asks what accuracy a larger
network reaches in the memory that the plain run takes.
"""

import sys

from common.bench.harness import Bound, Suite
from common.memory.process.budget import MIB

SMALL_CEILING = 680 * MIB
"""Enough for the whole batch at once with pixels as bytes: the arithmetic of the plain run, hence its curve exactly."""
TIGHT_CEILING = 448 * MIB
"""Images are decoded at each use, in micro-batches: the same curve up to rounding."""
LARGE_CEILING = 1000 * MIB
"""Less than the plain run's peak of the whole process."""
TIMED_RUNS = 3

ACCURATE = Bound("result.accuracy", at_least=0.85)
ONE_EPOCH = ("--epochs", 1)


def suite() -> Suite:
    """Declare the cases."""
    made = Suite("promise-seed")
    plain, controlled = ("-m", "common.bench.cifar.plain"), ("-m", "common.bench.cifar.train", "--json")
    small = (*controlled, "--network", "small", "--memory", SMALL_CEILING)
    large = (*controlled, "--network", "large", "--memory", LARGE_CEILING)
    made.case("seed-plain", plain, group="seed")
    made.case("seed-small", small, ceiling=SMALL_CEILING, group="seed")
    tight = (*controlled, "--network", "small", "--memory", TIGHT_CEILING)
    made.case("seed-tight", tight, ceiling=TIGHT_CEILING, group="seed")
    made.case("seed-large", large, ceiling=LARGE_CEILING, group="seed", bounds=(ACCURATE,))
    above = "result.above_floor_bytes"
    made.ratio("seed: memory of the same curve", "seed-small", "seed-plain", Bound(above, at_most=0.5))
    made.ratio("seed: same accuracy", "seed-small", "seed-plain", Bound("result.accuracy", 1.0, 1.0))
    made.ratio("seed: memory in micro-batches", "seed-tight", "seed-plain", Bound(above, at_most=0.15))
    made.ratio("seed: accuracy in micro-batches", "seed-tight", "seed-plain", Bound("result.accuracy", 0.97, 1.03))
    made.ratio("seed: the large network fits", "seed-large", "seed-plain", Bound(above, at_most=1.0))
    for name, command in (("plain", plain), ("small", small), ("large", large)):
        made.case(f"seed-time-{name}", (*command, *ONE_EPOCH), repeats=TIMED_RUNS, group="seed-time")
    seconds = "result.epoch_seconds"
    made.ratio("seed: time of the large", "seed-time-large", "seed-time-plain", Bound(seconds, at_most=6.0))
    made.ratio("seed: time of the same", "seed-time-small", "seed-time-plain", Bound(seconds, at_most=1.35))
    return made


if __name__ == "__main__":
    sys.exit(suite().main())
