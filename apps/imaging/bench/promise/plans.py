"""Check plans of ``imaging``: how long planning takes, and whether the chosen setting is as fast as the best one.

``python -m apps.imaging.bench.promise.plans search DATASET OPTIONS...`` runs training steps of *every* setting in
turn, A B C A B C. For each ceiling at which the choice could change it compares the planner's choice with the fastest
setting that fits. Both run further rounds, because among 96 settings one is always the fastest by chance. Every run has
its own process: after another run glibc would take memory from the heap that it otherwise maps.
"""

import json
import math
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apps.imaging.bench.promise import grid
from common import datasets
from common.bench.harness import Bound, Suite
from common.memory.process.budget import GIB, MIB

if TYPE_CHECKING:
    from apps.imaging.planning.train import TrainWorkload
    from apps.imaging.training.data.patch_sampling import Volumes
    from common.memory.plan.plan import Plan

WORK = grid.WORK
SEARCHES = (
    ("segresnet", "--patch 32,32,32"),
    ("segresnet-batch-4", "--set batch=4 --patch 24,24,24"),
    ("unet", "--network unet --patch 32,32,32"),
)
"""Names and options of the small networks whose whole grid is run."""
ROUNDS, STEPS = 3, 4
"""Rounds, and steps of each setting per round. The fastest step counts, because other processes only slow it down."""
FINALS = 5
"""Further rounds of the settings that are compared."""
ENOUGH_SECONDS = 300.0
"""No round starts after this time."""
NOT_WASTEFUL = Bound("result.worst_throughput", at_least=0.95)
NEW_TRAINING, NEW_INFERENCE = Bound("seconds", at_most=60), Bound("seconds", at_most=10)
CACHED, NO_TORCH = Bound("result.cached_ms", at_most=50), Bound("result.imports_torch", at_most=0)
CACHED_TRIES = 7


def suite() -> Suite:
    """Make the inputs and declare the cases."""
    hippocampus = datasets.find("msd-hippocampus")
    if hippocampus is None:
        raise SystemExit("data set msd-hippocampus not found: set PEAKLINE_DATA")
    plans = Suite("promise")
    grid.prepare(WORK, hippocampus.parent)
    train = ["train", WORK / "hippocampus", "-o", WORK / "out-plans", "--fold", "0/4"]
    infer = ["infer", WORK / "images", "-m", grid.SHIPPED, "-o", WORK / "out-plans"]
    for name, command, ceilings, bound in (
        ("train", train, (GIB, 512 * MIB), NEW_TRAINING),
        ("infer", infer, (GIB, 256 * MIB), NEW_INFERENCE),
    ):
        for ceiling in ceilings:
            argv = [str(word) for word in (*command, "--dry-run", "--json", "--memory", ceiling)]
            script = f"exec env XDG_CACHE_HOME=$(mktemp -d) {sys.executable} -m apps.imaging {' '.join(argv)}"
            case_name = f"plan-new-{name}@{ceiling // MIB}MiB"
            plans.case(case_name, ["sh", "-c", script], ceiling=ceiling, bounds=(bound,), exits=(0, 3))
        judge = ["-m", "apps.imaging.bench.promise.plans", "cached", *command]
        plans.case(f"plan-cached-{name}", judge, bounds=(CACHED, NO_TORCH))
    for name, options in SEARCHES:
        search = ["-m", "apps.imaging.bench.promise.plans", "search", *train, *options.split()]
        plans.case(f"plan-search-{name}", search, bounds=(NOT_WASTEFUL,))
    return plans


def _workload(argv: Sequence[str]) -> Any:
    from apps.imaging.cli import parser
    from common.memory.process.budget import MemoryBudget

    args = parser().parse_args([*argv, "--memory", "1TiB", "-q"])
    return args.command.workload(args.command.request(args), MemoryBudget(1 << 40))


def cached(argv: Sequence[str]) -> dict[str, Any]:
    """Measure planning when all costs are cached: the median time of several plans, each with a new store."""
    from common.memory.costs.store import CostStore
    from common.memory.plan import planner
    from common.memory.process.budget import MemoryBudget

    work, budget = _workload(argv), MemoryBudget(1 << 40)
    planner.plan(work, budget, CostStore())  # measures missing costs in children
    times = []
    for _ in range(CACHED_TRIES):
        began = time.perf_counter()
        planner.plan(work, budget, CostStore())
        times.append(1000 * (time.perf_counter() - began))
    return {"cached_ms": round(statistics.median(times), 2), "imports_torch": int("torch" in sys.modules)}


def search(argv: Sequence[str]) -> dict[str, Any]:
    """Run every setting and compare, for all ceilings at which the choice could change.

    Returns
    -------
    dict
        ``worst_throughput``, the smallest ratio of the chosen setting's throughput to the best one's; ``settings``,
        their number; ``ceilings``, one row each; ``table``, one row per setting with bytes needed and seconds.
    """
    from common.memory.costs.probes import ProbeFailed
    from common.memory.costs.store import CostStore
    from common.memory.plan import planner
    from common.memory.process.budget import MemoryBudget

    work, costs = _workload(argv), CostStore()
    plans = []
    for setting in work.settings():
        with suppress(ProbeFailed):  # not available on this machine, for example bfloat16 where it is slower
            plans.append(planner.price(work, setting, costs, ceiling=None))
    settings, needs = [dict(plan.knobs) for plan in plans], [plan.needed_bytes for plan in plans]
    choices = {
        ceiling: settings.index(dict(planner.plan(work, MemoryBudget(ceiling), costs).knobs))
        for ceiling in sorted(set(needs))
    }

    def fastest(ceiling: int, seconds: Sequence[float]) -> int:
        return min((index for index, need in enumerate(needs) if need <= ceiling), key=seconds.__getitem__)

    def compared(seconds: Sequence[float]) -> set[int]:
        return {*choices.values(), *(fastest(ceiling, seconds) for ceiling in choices)}

    seconds = run_all(work, plans, compared)
    rows: list[dict[str, Any]] = []
    for ceiling, chosen in choices.items():
        best = fastest(ceiling, seconds)
        ratio = round(seconds[best] / seconds[chosen], 4)
        rows.append({"ceiling": ceiling, "chosen": settings[chosen], "best": settings[best], "throughput": ratio})
    table = [{**s, "needs": n, "seconds": round(t, 4)} for s, n, t in zip(settings, needs, seconds, strict=True)]
    worst = min(row["throughput"] for row in rows)
    return {"worst_throughput": worst, "settings": len(settings), "ceilings": rows, "table": table}


def run_all(
    work: "TrainWorkload", plans: Sequence["Plan"], finalists: Callable[[Sequence[float]], set[int]]
) -> list[float]:
    """Run one optimiser step of each plan in turn, and further rounds of the finalists; returns seconds per plan."""
    import tempfile

    import torch

    from apps.imaging import warm_up
    from common.memory.process import glibc

    glibc.pin_thresholds()
    torch.set_num_threads(1)  # a forked child has only the calling thread
    warm_up.train()
    with tempfile.TemporaryDirectory() as scratch:
        stores = {"memory": _load(work, None), "disk": _load(work, Path(scratch) / "cases")}
        seconds, began, rounds = [math.inf] * len(plans), time.monotonic(), 0

        def run(indices: Sequence[int]) -> None:
            for index in indices:
                seconds[index] = min(seconds[index], _in_a_child(partial(_seconds, work, plans[index], stores)))
            sys.stderr.write(f"{len(indices)} plans: done after {time.monotonic() - began:.1f} s\n")

        while rounds < ROUNDS and time.monotonic() - began < ENOUGH_SECONDS:
            run(range(len(plans)))
            rounds += 1
        for _ in range(FINALS):
            run(sorted(finalists(seconds)))
    return seconds


def _in_a_child(measure: Callable[[], float]) -> float:
    context = multiprocessing.get_context("fork")
    receiving, sending = context.Pipe(duplex=False)
    child = context.Process(target=lambda: sending.send(measure()))
    child.start()
    sending.close()
    seconds = float(receiving.recv())
    child.join()
    return seconds


def _load(work: "TrainWorkload", file: Path | None) -> "Volumes":
    from apps.imaging.training.data.patch_sampling import Volumes
    from apps.imaging.training.data.prepared import load_case

    volumes = Volumes(file)
    data = work.request.data
    for case in data.training:
        volumes.add(*load_case(case, data.dataset, data.operations))
    return volumes


def _seconds(work: "TrainWorkload", plan: "Plan", stores: dict[str, "Volumes"]) -> float:
    import torch

    from apps.imaging.training.data.patch_sampling import Sampler
    from apps.imaging.training.loop import bounded_heap
    from apps.imaging.training.recipe import make_step
    from common.memory.process.bounded_heap import PASSES

    torch.set_num_threads(work.request.options.threads)
    recipe = work.request.recipe
    network, _, step = make_step(
        recipe,
        micro_batch=plan["micro_batch"],
        amp=plan["amp"],
        checkpoint=plan["checkpoint"],
        step_in_backward=plan["step_in_backward"] == "on",
    )
    sampler = Sampler(stores[plan["cache"]], recipe.patch, recipe.batch, recipe.seed, recipe.mirror)
    with bounded_heap(network, plan):
        for number in range(PASSES):  # until the heap has measured its working set
            step(sampler(number))
        return min(_timed(lambda number: step(sampler(number)), range(PASSES, PASSES + STEPS)))


def _timed(action: Any, numbers: Sequence[int]) -> Iterator[float]:
    for number in numbers:
        began = time.perf_counter()
        action(number)
        yield time.perf_counter() - began


def _as_a_command_starts() -> None:
    """Restart with the environment that the supervisor gives a command; page faults depend on it."""
    from common.cli.main import _default_threads
    from common.memory.process import glibc

    wanted = glibc.environment(_default_threads()) | glibc.tunables(huge_pages=True, merge=True)
    if any(os.environ.get(name) != value for name, value in wanted.items()):
        os.execve(sys.executable, [sys.executable, "-m", __spec__.name, *sys.argv[1:]], os.environ | wanted)


if __name__ == "__main__":
    if len(sys.argv) > 1 and sys.argv[1] in ("search", "cached"):
        _as_a_command_starts()
        result = {"search": search, "cached": cached}[sys.argv[1]](sys.argv[2:])
        sys.stdout.write(json.dumps(result) + "\n")
        sys.exit(0)
    sys.exit(suite().main())
