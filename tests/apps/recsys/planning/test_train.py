"""The promise: predictions against true peaks, refusals that name a ceiling that works, and the wall itself."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from apps.recsys.bench import headline
from apps.recsys.data.ingest import Facts
from apps.recsys.planning.train import TrainWorkload, training_probes
from common.errors import DoesNotFit
from common.memory.costs.probes import Costs, Probe
from common.memory.costs.store import CostStore
from common.memory.plan.planner import plan
from common.memory.process.budget import MIB, MemoryBudget
from tests.apps.recsys.asked import train_request
from tests.apps.recsys.conftest import Trained
from tests.messages import says
from tests.promise import predicted_closely
from tests.schemas import read_record

Run = Callable[..., Any]


def test_terms_are_the_sizes_of_the_arrays() -> None:
    facts = Facts(rows=2000, users=100, items=50, interactions=1000, longest=30, ids=150, bucket=2000)
    work = TrainWorkload(train_request("--factors", 8), facts)
    known = {probe: {"bytes": 1.0} for probe in training_probes("ials", 1)}
    held, stored = (
        {term.name: term.bytes for term in work.footprint({"user_block": 8, "fit_block": size}, known).terms}
        for size in (1000, 400)
    )
    assert held["interactions by user"] == 1000 * 8 + 100 * 4
    assert held["interactions by item"] == 1000 * 8 + 50 * 4
    assert (held["user factors"], held["item factors"]) == (100 * 8 * 4, 50 * 8 * 4)
    assert "interactions by user" not in stored
    # an item may have all of the users, so a block may be longer by that much
    assert stored["block of interactions"] == (400 + 100) * 12
    assert stored["row starts"] == (100 + 50 + 2) * 8


@pytest.mark.parametrize(
    ("name", "ceiling", "options"),
    [
        ("lastfm", "250MiB", ("--factors", "256", "--set", "iterations=1")),
        ("ml-1m", "160MiB", ("--factors", "32", "--set", "iterations=1")),
        ("gowalla", "250MiB", ("--factors", "64", "--set", "iterations=1")),
    ],
)
def test_predictions_on_real_data(
    run: Run, dataset: Callable[[str], Path], tmp_path: Path, name: str, ceiling: str, options: tuple[str, ...]
) -> None:
    dataset(name)
    path, model = headline.source(name, tmp_path), tmp_path / "model"
    common = ("--memory", ceiling, "--json", "-q")
    done = run("apps.recsys", "train", path, "-o", model, "--split", "user-holdout", *options, *common)
    assert done.code == 0, done.err
    predicted_closely(done.record)
    done = run("apps.recsys", "evaluate", model, *common)
    assert done.code == 0, done.err
    predicted_closely(done.record)


@pytest.mark.parametrize("ceiling", ["60MiB", "102MiB"])
def test_a_refusal_names_a_ceiling_that_works(trained: Trained, run: Run, tmp_path: Path, ceiling: str) -> None:
    command = ("apps.recsys", "train", trained.interactions, "-o", tmp_path / "model", "--factors", 16, "--json")
    done = run(*command, "--memory", ceiling)
    assert done.code == 3, done.err
    says(done.err, "1.")
    assert not (tmp_path / "model").exists()
    smallest = done.record["smallest_feasible_bytes"]
    says(done.err, f"--memory {smallest / MIB:.10g}MiB")
    done = run(*command, "--memory", smallest)
    assert done.code == 0, done.err
    assert done.record["measured"]["peak_bytes"] <= smallest


def test_a_small_ceiling_takes_smaller_blocks(run: Run, dataset: Callable[[str], Path], tmp_path: Path) -> None:
    model = tmp_path / "model"
    path = dataset("epinions") / "train.txt"
    options = ("--split", "user-holdout", "--factors", 32, "--set", "iterations=1", "-q", "--json")
    wide = run("apps.recsys", "train", path, "-o", model, *options, "--memory", "500MiB").record
    least = run("apps.recsys", "train", path, "-o", model, *options, "--memory", "100MiB").record
    tight = run(
        "apps.recsys", "train", path, "-o", model, *options, "--memory", least["smallest_feasible_bytes"]
    ).record
    assert (wide["exit_code"], least["exit_code"], tight["exit_code"]) == (0, 3, 0)
    assert tight["plan"]["knobs"]["user_block"] < wide["plan"]["knobs"]["user_block"]
    assert tight["results"]["metrics"] == pytest.approx(wide["results"]["metrics"], abs=1e-3)
    assert read_record(model / "run.json")["within_budget"]


class FixedCosts(CostStore):
    """Every baseline is 100 MiB."""

    def collect(self, probes: Iterable[Probe], *, ceiling: int | None) -> Costs:
        return {probe: {"bytes": 100 * MIB} for probe in probes}


def test_a_refusal_names_fewer_factors_that_fit(tmp_path: Path) -> None:
    facts = Facts(rows=1, users=100_000, items=500_000, interactions=1_000_000, longest=30, ids=600_000, bucket=1000)
    work = TrainWorkload(train_request(), facts)
    with pytest.raises(DoesNotFit) as refusal:
        plan(work, MemoryBudget(250 * MIB), FixedCosts(tmp_path))
    for remedy, factors in zip(refusal.value.remedies, (32, 16), strict=True):
        says(remedy, f"--factors {factors}", "MiB")


def test_a_ceiling_below_the_index_alone_names_the_term(tmp_path: Path) -> None:
    facts = Facts(rows=1, users=90_000_000, items=500, interactions=1, longest=1, ids=0, bucket=1)
    work = TrainWorkload(train_request("--factors", 1), facts)
    with pytest.raises(DoesNotFit) as refusal:
        plan(work, MemoryBudget(300 * MIB), FixedCosts(tmp_path))
    smallest = refusal.value.smallest_feasible_bytes
    assert smallest is not None
    says(refusal.value, "history index 686.6 MiB", f"--memory {smallest / MIB:.10g}MiB")
    assert plan(work, MemoryBudget(smallest), FixedCosts(tmp_path)).needed_bytes <= smallest


def test_reading_grows_by_what_is_priced(run: Run, tmp_path: Path) -> None:
    """Half a million ids of 40 letters: their text stays on disk."""
    path, model = tmp_path / "a.csv", tmp_path / "model"
    with path.open("w") as rows:
        rows.write("user,item\n")
        rows.writelines(f"{n:040d},{n % 1000}\n" for n in range(500_000))
    options = ("--factors", 8, "--set", "iterations=1", "--memory", "400MiB", "--json", "-q")
    for _ in range(2):  # the first run measures costs in its phase "plan"
        done = run("apps.recsys", "train", path, "-o", model, *options)
    assert done.code == 0, done.err
    reading = done.record["measured"]["phases"][0]
    terms = [term for term in done.record["plan"]["terms"] if {"plan", "*"} & set(term["phases"])]
    predicted = sum(term["bytes"] for term in terms)
    assert reading["name"] == "plan"
    assert reading["peak_bytes"] <= predicted + done.record["plan"]["reserve_bytes"]
    assert predicted <= 1.35 * reading["peak_bytes"]
    assert {term["name"]: term["bytes"] for term in terms}["ids"] == 48 * 501_000
