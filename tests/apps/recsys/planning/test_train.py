"""The promise: predictions against true peaks, refusals that name a ceiling that works, and the wall itself."""

import json
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from apps.recsys.bench import headline
from apps.recsys.data.ingest import Facts
from apps.recsys.models import search_space
from apps.recsys.planning import embedding_terms
from apps.recsys.planning.train import TrainWorkload, training_probes
from common.errors import DoesNotFit
from common.memory.costs.probes import Costs, Probe
from common.memory.costs.store import CostStore
from common.memory.plan.planner import plan
from common.memory.process.budget import MIB, MemoryBudget
from common.training.distributed.world import World
from tests.apps.recsys.asked import train_request
from tests.apps.recsys.conftest import Trained
from tests.messages import says
from tests.promise import predicted_closely
from tests.schemas import read_record

Run = Callable[..., Any]


def test_terms_are_the_sizes_of_the_arrays() -> None:
    facts = Facts(rows=2000, users=100, items=50, interactions=1000, longest=30, ids=150, bucket=2000)
    work = TrainWorkload(train_request("--model", "ials", "--factors", 8), facts)
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


def _embedding(*options: object) -> tuple[TrainWorkload, dict[str, int], set[str]]:
    """An embedding on a small table, its terms, and the terms of the phase ``suggest``."""
    facts = Facts(rows=2000, users=100, items=50, interactions=1000, longest=30, ids=150, bucket=2000)
    work = TrainWorkload(train_request("--model", "embedding", *options), facts)
    setting = next(iter(work.settings()))
    step = {"bytes": 1.0, "activations": 1000.0, "workspace": 0.0, "kernels": 7.0, "unseen": 5.0}
    terms = work.footprint(setting, dict.fromkeys(work.probes(setting), step)).terms
    return work, {one.name: one.bytes for one in terms}, {one.name for one in terms if "suggest" in one.phases}


@pytest.mark.parametrize(("options", "windows"), [((), 325), (("--set", "batch=64"), 64)])
def test_a_step_is_priced_by_the_largest_batch_that_the_data_makes(options: tuple[object, ...], windows: int) -> None:
    work, terms, _ = _embedding(*options)
    # 1,000 interactions of 100 users make (1000 + 3 * 100) / 4 windows of four targets at most
    config = work.priced_embedding
    assert config is not None and config.batch == windows
    assert work.embedding is not None and work.embedding.batch == (64 if options else 512)
    assert terms["next batch"] == 64 * windows * 50
    priced = [json.loads(work.probes(setting)[2].arguments)["arguments"] for setting in work.settings()]
    assert {one["config"]["batch"] for one in priced} == {windows}
    assert max(one["micro_batch"] for one in priced) == windows


@pytest.mark.parametrize(("options", "values"), [((), {"whole", "shared"}), (("--table", "hash"), {None})])
def test_rows_of_tables_that_store_each_are_shared_out(options: tuple[object, ...], values: set[str | None]) -> None:
    """Over ranks only; a rank has the larger half of the rows, and a checkpoint goes through a few blocks."""
    work = _embedding(*options)[0]
    assert all("table_rows" not in setting for setting in work.settings())
    work = replace(work, request=replace(work.request, world=World(0, 3)))
    assert {setting.get("table_rows") for setting in work.settings()} == values
    if "shared" in values:
        setting = next(one for one in work.settings() if one["table_rows"] == "shared")
        step = {"bytes": 1.0, "activations": 1000.0, "workspace": 0.0, "kernels": 7.0, "unseen": 5.0}
        terms = {
            one.name: one.bytes for one in work.footprint(setting, dict.fromkeys(work.probes(setting), step)).terms
        }
        assert (terms["tables"], terms["optimizer state"]) == (17 * 64 * 4, 17 * 4)
        assert terms["rows on their way"] == 8 << 20 and not terms.get("checkpoint")
        assert work.seconds(setting) > work.seconds({**setting, "table_rows": "whole"})


def test_factors_are_shared_out_over_ranks() -> None:
    facts = Facts(rows=2000, users=100, items=50, interactions=1000, longest=30, ids=150, bucket=2000)
    work = TrainWorkload(replace(train_request("--model", "ials"), world=World(0, 3)), facts)
    setting = next(iter(work.settings()))
    terms = {
        one.name: one.bytes
        for one in work.footprint(setting, {probe: {"bytes": 1.0} for probe in work.probes(setting)}).terms
    }
    assert terms["factors"] == 4 * (34 + 17) * 64
    assert terms["factors of a block"] == 4 * (100 + 64) * 64


def test_a_search_is_priced_with_what_its_trials_leave() -> None:
    _, terms, suggest = _embedding("--tune", 2)
    assert terms["sampler"] == 20 << 20 and {"sampler", "left behind by trials", "kernels", "small blocks"} <= suggest
    assert terms["left behind by trials"] == (3 << 20) + 4096 * (256 - 64) + 8 * 256 * 30
    _, terms, suggest = _embedding("--tune", 2, "--factors", 32)
    assert terms["left behind by trials"] == (3 << 20) + 8 * 32 * 30
    _, terms, suggest = _embedding("--tune", 1)
    assert terms["left behind by trials"] and suggest.isdisjoint({"sampler", "left behind by trials", "kernels"})
    _, terms, suggest = _embedding()
    assert not {"sampler", "left behind by trials"} & terms.keys() and not suggest


def test_a_search_measures_all_its_factors_ahead() -> None:
    def factors(*options: object) -> list[int]:
        return [one.request.model.factors for one in _embedding(*options)[0].planned_later()]  # type: ignore[attr-defined]

    assert factors("--tune", 2) == [32, 64, 128, 256]
    assert factors("--tune", 2, "--factors", 16) == [16]
    assert factors("--tune", 1) == factors() == []
    work = TrainWorkload(train_request("--model", "ials", "--tune", 5), _embedding()[0].facts)
    assert not list(work.planned_later())
    # no other dimension of the space changes a size
    dimensions = {*search_space.EMBEDDING, *(name for loss in search_space.LOSSES.values() for name in loss)}
    assert dimensions - {"factors"} <= embedding_terms.UNPRICED.keys() and "learning_rate" in embedding_terms.UNPRICED


def test_an_exact_solver_gathers_no_more_than_there_is() -> None:
    facts = Facts(rows=2000, users=100, items=50, interactions=1000, longest=30, ids=150, bucket=2000)
    known = {probe: {"bytes": 1.0} for probe in training_probes("ials", 1)}

    def terms(work: TrainWorkload) -> dict[tuple[str, str], int]:
        found = work.footprint({"user_block": 8, "fit_block": 10**9}, known).terms
        return {(one.name, phase): one.bytes for one in found for phase in one.phases}

    options = ("--model", "ials", "--factors", 8, "--set", "frequency_scaling=1")
    small = terms(TrainWorkload(train_request(*options), facts))
    # the other side rotated; four arrays of all gathered factors, or of a system of all factors; indices
    assert small["exact solver", "fit"] == 4 * 100 * 8 + 4 * 4 * (1000 * 8 + 8 * 8) + 64 * 100
    assert ("solver's copy of confidences", "fit") not in small  # only ``implicit`` makes one
    large = terms(TrainWorkload(train_request(*options), replace(facts, interactions=10**6)))
    assert large["exact solver", "fit"] == 4 * 100 * 8 + 4 * 4 * ((1 << 19) + 8 * 8) + 64 * 100
    # a trial is scored when the solver has freed its workspace, with the factors in memory
    trial = terms(TrainWorkload(train_request(*options, "--tune", 2), facts))
    assert ("exact solver", "validate") not in trial and ("scores", "fit") not in trial
    assert trial["user factors", "validate"] == trial["user factors", "fit"] == 100 * 8 * 4
    assert ("scores", "validate") in trial


@pytest.mark.parametrize(
    ("name", "ceiling", "options"),
    [
        ("lastfm", "250MiB", ("--model", "ials", "--factors", "256", "--set", "iterations=1")),
        ("ml-1m", "170MiB", ("--model", "ials", "--factors", "32", "--set", "iterations=1")),
        ("gowalla", "250MiB", ("--model", "ials", "--factors", "64", "--set", "iterations=1")),
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
    options = ("--model", "ials", "--split", "user-holdout", "--factors", 32, "--set", "iterations=1", "-q", "--json")
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
    work = TrainWorkload(train_request("--model", "ials"), facts)
    with pytest.raises(DoesNotFit) as refusal:
        plan(work, MemoryBudget(250 * MIB), FixedCosts(tmp_path))
    for remedy, factors in zip(refusal.value.remedies, (32, 16), strict=True):
        says(remedy, f"--factors {factors}", "MiB")


def test_a_large_catalogue_of_many_interactions_has_few_eigenvalues_unless_they_are_asked_for() -> None:
    sizes = {"users": 10**6, "items": 10**6, "longest": 500, "ids": 2 * 10**6, "bucket": 1000}
    many, few = Facts(rows=1, interactions=6 * 10**7, **sizes), Facts(rows=1, interactions=10**6, **sizes)

    def factors(facts: Facts, *options: object) -> set[object]:
        return {setting["factors"] for setting in TrainWorkload(train_request(*options), facts).settings()}

    assert factors(few) == {512, 256, 128, 64, 32, 0} and factors(few, "--set", "form=filter") == {256, 128, 64, 32, 0}
    assert factors(many) == {67, 64, 32, 0} and factors(many, "--set", "form=filter") == {16, 0}
    assert factors(many, "--factors", 300) == {300}


def test_a_refusal_of_the_default_model_names_a_filter_without_a_search_and_popularity(tmp_path: Path) -> None:
    facts = Facts(rows=1, users=100_000, items=500_000, interactions=1_000_000, longest=30, ids=600_000, bucket=1000)
    work = TrainWorkload(train_request(), facts)
    with pytest.raises(DoesNotFit) as refusal:
        plan(work, MemoryBudget(160 * MIB), FixedCosts(tmp_path))
    filtered, popular = refusal.value.remedies
    says(filtered, "--set degree_power=0.2", "MiB")
    says(popular, "--model popularity", "MiB")
    given = TrainWorkload(train_request("--factors", 0, "--set", "degree_power=0.2"), facts)
    assert plan(given, MemoryBudget(160 * MIB), FixedCosts(tmp_path))["factors"] == 0
    with pytest.raises(DoesNotFit) as refusal:  # settings of the command line do not go with another model
        plan(TrainWorkload(train_request("--set", "bits=8"), facts), MemoryBudget(160 * MIB), FixedCosts(tmp_path))
    assert not refusal.value.remedies


def test_a_ceiling_below_the_index_alone_names_the_term(tmp_path: Path) -> None:
    facts = Facts(rows=1, users=90_000_000, items=500, interactions=1, longest=1, ids=0, bucket=1)
    work = TrainWorkload(train_request("--model", "ials", "--factors", 1), facts)
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
    options = ("--model", "ials", "--factors", 8, "--set", "iterations=1", "--memory", "400MiB", "--json", "-q")
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
