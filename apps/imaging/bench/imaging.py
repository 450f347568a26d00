"""The suite ``imaging``: exactness, memory, speed and robustness of inference on large volumes, each with a bound.

``make bench-imaging``. The long cases (118 classes on 1,000 slices, the series of 2,000 slices) take hours on 2 cores;
``ONLY=exact`` takes a minute.
"""

import sys
from pathlib import Path

from apps.imaging.bench import large, memory, speed
from apps.imaging.bench.peers import nnunet, nnunet_kinds, zoo
from apps.imaging.bench.robustness import hostile
from apps.imaging.bench.whole_body import cases
from common import datasets
from common.bench.harness import Bound, Suite
from common.memory.process.budget import GIB, MIB

WORK = Path("bench/work/imaging-large")
EXACT = tuple(Bound(f"result.{mode}", at_most=0) for mode in ("carry", "rows", "columns", "features"))
FLAT = (Bound("result.mib_per_100", at_most=1.0), Bound("result.plans", 1, 1))
AS_FAST = Bound("seconds", at_most=1.15)
NEVER_UNDER = Bound("predicted_over_measured", 1.0, 1.15)


def suite() -> Suite:
    """Make missing series and models, and declare the cases."""
    imaging = Suite("imaging")
    imaging.case("exact", ["-m", "apps.imaging.bench.exact"], bounds=EXACT)
    sample = datasets.find("ct-sample")
    source = sample / "example_ct.nii.gz" if sample is not None else None
    small = WORK / "model-small"
    many = WORK / "model-118"
    if _wanted("speed"):
        speed.add_cases(imaging, WORK, source)
    if not memory.PEER_PYTHON.is_file():
        sys.stderr.write("imaging: cases against nnU-Net and KonfAI are left out; `make peers` installs both\n")
    else:
        _add_peers(imaging, source)
    if _wanted("flat"):
        large.make_model(small, classes=30, filters=8, tile=96)
        folders = [large.make_series(WORK / f"ct-{length}", length, source) for length in large.LONG_LENGTHS]
        command = ["-m", "apps.imaging.bench.large", *folders, small, WORK / "out-flat"]
        imaging.case("flat", command, bounds=FLAT)
    whole = [Bound(f"result.{name}", at_most=0) for name in ("crashes", "untyped")]
    in_time = Bound("result.slowest_seconds", at_most=hostile.HANG)
    small_enough = Bound("result.peak_mib", at_most=hostile.CEILING / MIB)
    imaging.case(
        "hostile-read", ["-m", "apps.imaging.bench.robustness.hostile", "read"], bounds=(*whole, in_time, small_enough)
    )
    quiet = [Bound(f"result.{name}", at_most=0) for name in ("wrong_endings", "above_ceiling", "leaks")]
    imaging.case("hostile-infer", ["-m", "apps.imaging.bench.robustness.hostile", "infer", WORK], bounds=quiet)
    nothing = [Bound(f"result.{name}", at_most=0) for name in ("lost", "repeated", "partial", "left_over")]
    imaging.case("kills", ["-m", "apps.imaging.bench.robustness.kills", WORK], bounds=nothing)
    if _wanted("whole-body"):
        cases.add_cases(imaging, WORK)
    if _wanted("classes"):
        large.make_model(many, classes=118, filters=32, tile=96)
        for length, ceiling in ((250, 1), (250, 8), (1000, 1)):
            folder = large.make_series(WORK / f"ct-{length}", length, source)
            infer = large.infer_command(
                folder, many, WORK / f"out-{length}-{ceiling}", f"--overlap 0.25 --memory {ceiling}GiB"
            )
            name, group = f"classes-118-{length}-{ceiling}GiB", f"classes-{length}"
            imaging.case(name, infer, ceiling=ceiling * GIB, group=group, bounds=(NEVER_UNDER,))
        title = "118 classes: time in 1 GiB against 8 GiB"
        imaging.ratio(title, "classes-118-250-1GiB", "classes-118-250-8GiB", AS_FAST)
    return imaging


def _add_peers(imaging: Suite, source: Path | None) -> None:
    """Declare the cases that need ``.venv-peers``."""
    if _wanted("memory") or _wanted("konfai"):
        memory.add_cases(imaging, WORK, source)
    if _wanted("parity") and (hippocampus := datasets.find("msd-hippocampus")) is not None:
        nnunet.add_cases(imaging, WORK, hippocampus)
    if _wanted("nnunet"):
        nnunet_kinds.add_cases(imaging, WORK)
    if _wanted("zoo"):
        zoo.add_cases(imaging, WORK)


def _wanted(name: str) -> bool:
    """Return True if ``--only`` may select cases whose names start with ``name``; their inputs take minutes to make."""
    chosen = sys.argv[sys.argv.index("--only") + 1] if "--only" in sys.argv else "*"
    return any(pattern.startswith((name[:3], "*")) for pattern in chosen.split(","))


if __name__ == "__main__":
    sys.exit(suite().main())
