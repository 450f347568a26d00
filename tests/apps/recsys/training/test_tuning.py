"""``--tune``: what is stopped and skipped, the same search again after a kill, and a model that is better for it."""

import json
import math
import os
import signal
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from apps.recsys.data.ingest import Facts
from apps.recsys.models import search_space, weights
from apps.recsys.models.als import ials
from apps.recsys.planning.train import TrainWorkload, training_probes
from apps.recsys.training import tuning
from apps.recsys.training.fit_factors import IterationCallback
from apps.recsys.training.tuning import Search
from common.errors import EXIT_BAD_INPUT, BadInput, DoesNotFit, UsageError
from common.memory.plan.plan import Plan
from common.memory.process.budget import MIB, MemoryBudget
from common.search import tpe, trials
from common.search.space import Choice
from common.search.tpe import Trial
from common.search.trials import TrialLog
from common.training.distributed.group import ALONE, Group
from tests.apps.recsys import in_process
from tests.apps.recsys.asked import train_request
from tests.apps.recsys.conftest import Trained
from tests.apps.recsys.interrupted import started, wait_for
from tests.messages import continued, refused, says
from tests.promise import predicted_closely
from tests.schemas import read_manifest

Run = Callable[..., Any]
FACTS = Facts(rows=2000, users=100, items=50, interactions=1000, longest=30, ids=150, bucket=2000)


def work(trials: int = 20) -> TrainWorkload:
    """An ``ials`` that is to be tuned."""
    return TrainWorkload(train_request("--model", "ials", "--tune", trials, "--seed", 3), FACTS)


@dataclass
class Session:
    """The parts of ``common.cli.session.Session`` that a search needs."""

    budget: MemoryBudget = field(default_factory=lambda: MemoryBudget(300 * MIB))
    threads: int = 1
    group: Group = ALONE
    stopping: bool = False
    said: list[str] = field(default_factory=list)

    @property
    def plan(self) -> Plan:
        """For the command line's settings."""
        return planned(work())

    def say(self, message: str) -> None:
        """Keep it."""
        self.said.append(message)

    def phase(self, name: str) -> Any:
        """Nothing is measured here."""
        return nullcontext()


def planned(wanted: TrainWorkload, *_: object) -> Plan:
    """A plan with baselines of 100 MiB; 256 factors do not fit."""
    if wanted.request.model.factors > 128:
        raise DoesNotFit(ceiling=300 * MIB, reasons=["far too large"])
    known = {probe: {"bytes": 100.0 * MIB} for probe in training_probes("ials", 1)}
    setting = {"user_block": 8, "fit_block": 1000}
    return Plan("recsys train", tuple(sorted(setting.items())), wanted.footprint(setting, known))


def fit(trial: TrainWorkload, session: object, callback: IterationCallback) -> None:
    """Fifteen iterations towards a score that is best at alpha 1 with many factors; binary weights run away."""
    best = trial.request.model.factors / 256 - 0.1 * abs(math.log(trial.request.model.hyper["alpha"]))
    for done in range(1, 16):
        if trial.request.model.hyper["weight"] == "binary" and done == 2:
            raise ArithmeticError("the factors are not finite")
        callback(done, lambda done=done: {tuning.METRIC: best - 1 / done})  # type: ignore[misc]


@pytest.fixture
def search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Search]:
    """A search whose trainings are arithmetic."""
    monkeypatch.setattr(tuning.planner, "plan", planned)

    def make(name: str = "tuning.jsonl", **settings: object) -> Search:
        session = Session()
        log = TrialLog(tmp_path / name, settings, output=tmp_path, say=session.say)
        return Search(work(), session, log, fit)  # type: ignore[arg-type]

    return make


def test_a_search_ends_with_the_best_of_its_trials(search: Callable[..., Search]) -> None:
    made = search()
    found = made.run()
    tried = made.log.trials
    assert len(tried) == 20 and tried[0].settings == tuning.searched_settings(work())
    assert {trial.state for trial in tried} == {"done", "stopped", "skipped", "failed"}
    for trial in tried:
        fits = trial.settings["factors"] <= 128
        assert (trial.state == "skipped") == (not fits)
        assert bool(trial.scores) == (trial.state in ("done", "stopped"))
        assert trial.state != "done" or sorted(trial.scores) == made.terms.rungs == [4, 8, 15]
        assert trial.state != "failed" or trial.settings["weight"] == "binary"
    done = [trial for trial in tried if trial.state == "done"]
    best = max(done, key=lambda trial: trial.reached)
    assert best.reached > tried[0].reached
    model = found.work.request.model
    assert (model.factors, model.hyper["alpha"]) == (best.settings["factors"], best.settings["alpha"])
    assert found.results["best"] == best.number
    phases = found.plan.footprint.phases()
    # a baseline, the supervisor, what the sampler takes, what trials leave behind (256 factors, histories of 30)
    left = (3 << 20) + 4096 * (256 - 64) + 8 * 256 * 30
    assert phases["suggest"] == 100 * MIB + (512 << 10) + (4 << 20) + (14 << 20) + left
    fitted = [planned(work().with_settings(trial.settings)) for trial in tried if trial.state != "skipped"]
    assert phases["tune"] == max(max(one.footprint.phases()[name] for name in ("fit", "validate")) for one in fitted)
    said = made.session.said  # type: ignore[attr-defined]
    assert sum("far too large" in line for line in said) == sum(t.state == "skipped" for t in tried)
    says(said[-1], "best", best.number + 1, "ndcg@10")
    (page,) = trials.section({"results": {"tuning": json.loads(json.dumps(found.results))}}, Path())
    assert page.count("<tr>") == 21 and page.count("best") == 1


def test_a_search_that_was_killed_goes_on_as_it_would_have(search: Callable[..., Search]) -> None:
    whole = search()
    whole.run()
    lines = whole.log.path.read_text().splitlines()
    cut = whole.log.path.with_name("cut")
    cut.write_text("\n".join(lines[:6]) + "\n" + lines[6][:20])  # killed while it wrote the sixth trial
    again = search("cut")
    assert len(again.log.trials) == 5
    again.run()
    assert again.log.trials == whole.log.trials
    continued(again.session.said[0], "5 trials")  # type: ignore[attr-defined]
    assert search("cut", data="another").log.trials == []


def test_every_space_is_of_settings_that_exist() -> None:
    from apps.recsys.models import bpr
    from apps.recsys.models.embedding import embedding_config

    hypers: Mapping[str, Mapping[str, Any]] = {"ials": ials.HYPER, "bpr": bpr.HYPER}
    for kind, hyper in hypers.items():
        assert search_space.of(kind, hyper, set()).keys() <= {"factors", *hyper}
    for loss in embedding_config.LOSSES:
        for user in embedding_config.USER_VECTORS:
            made = search_space.of("embedding", {"user_vectors": user, "loss": loss}, {"factors"})
            assert made.keys() <= embedding_config.HYPER.keys() and "factors" not in made


def test_settings_lie_in_the_space() -> None:
    tried = [
        Trial(n, {**tuning.searched_settings(work()), "alpha": 1.0 + n}, {4: 0.1 * n}, "stopped") for n in range(10)
    ]
    settings = tpe.ask(search_space.IALS, tried, seed=1)
    assert settings == tpe.ask(search_space.IALS, tried, seed=1) != tpe.ask(search_space.IALS, tried, seed=2)
    for name, dimension in search_space.IALS.items():
        if isinstance(dimension, Choice):
            assert settings[name] in dimension.values
        else:
            assert dimension.low <= settings[name] <= dimension.high


def test_killed_and_continued_from_the_command_line(trained: Trained, run: Run, tmp_path: Path) -> None:
    options = ["--model", "ials", "--tune", "7", "--split", "user-holdout", "--threads", "1", "--seed", "2"]
    whole, model = tmp_path / "whole", tmp_path / "model"
    command = ("apps.recsys", "train", trained.interactions, *options, "--memory", "250MiB", "--json")
    done = run(*command, "-o", whole, "--report")
    assert done.code == 0, done.err
    record = done.record
    found = record["results"]["tuning"]
    assert len(found["trials"]) == 7 and found["trials"][0]["settings"]["alpha"] == 2.0
    page = (whole / "report.html").read_text()
    for scores in (trial["scores"] for trial in found["trials"] if trial["scores"]):
        assert f"{scores[max(scores, key=int)]:.4f}" in page
    best = found["trials"][found["best"]]
    manifest = read_manifest(whole)
    assert (
        manifest["factors"] == best["settings"]["factors"] and manifest["hyper"]["alpha"] == best["settings"]["alpha"]
    )
    assert record["within_budget"] and [p["name"] for p in record["measured"]["phases"]].count("tune") == 7
    for phase in record["measured"]["phases"]:
        if phase["name"] not in ("plan", "probe", "start"):
            terms = [term for term in record["plan"]["terms"] if phase["name"] in term["phases"]]
            predicted = sum(term["bytes"] for term in terms) + record["plan"]["reserve_bytes"]
            assert phase["peak_bytes"] <= predicted, phase
    book = model / ".training" / trials.FILE
    with started(trained.interactions, model, "250MiB", options) as process:
        wait_for(lambda: book.is_file() and book.read_text().count("\n") >= 4, process)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(60)
    done = run(*command, "-o", model, "--resume")
    assert done.code == 0, done.err
    continued(done.err)
    assert done.record["results"]["tuning"] == found
    assert (model / weights.WEIGHTS).read_bytes() == (whole / weights.WEIGHTS).read_bytes()
    assert not (model / ".training").exists() and not list(model.glob("validation*"))


@pytest.mark.parametrize("kind", ["bpr", "embedding"])
def test_other_models_are_tuned_too(trained: Trained, run: Run, tmp_path: Path, kind: str) -> None:
    options = ("--model", kind, "--tune", 2, "--epochs", 2, "--factors", 16, "--memory", "600MiB", "--json")
    done = run("apps.recsys", "train", trained.interactions, "-o", tmp_path / "model", *options)
    assert done.code == 0, done.err
    predicted_closely(done.record)
    found = done.record["results"]["tuning"]
    assert [trial["state"] for trial in found["trials"]].count("done") >= 1 and "factors" not in found["space"]
    chosen = found["trials"][found["best"]]["settings"]
    assert chosen.items() <= read_manifest(tmp_path / "model")["hyper"].items()
    assert done.record["within_budget"]


def test_trials_measure_nothing_beside_what_they_train(trained: Trained, run: Run, tmp_path: Path) -> None:
    options = ("--model", "embedding", "--tune", 2, "--seed", 3, "--epochs", 1, "--memory", "600MiB", "--json", "-q")
    cold = {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    done = run("apps.recsys", "train", trained.interactions, "-o", tmp_path / "model", *options, env=cold)
    assert done.code == 0, done.err
    tried = done.record["results"]["tuning"]["trials"]
    assert len({trial["settings"]["factors"] for trial in tried if trial["scores"]}) > 1
    peaks = {phase["name"]: phase["peak_bytes"] for phase in done.record["measured"]["phases"]}
    assert "probe" in peaks
    terms = [term for term in done.record["plan"]["terms"] if {"tune", "*"} & set(term["phases"])]
    assert peaks["tune"] <= sum(term["bytes"] for term in terms) + done.record["plan"]["reserve_bytes"]


def test_what_cannot_be_tuned(trained: Trained, tmp_path: Path) -> None:
    command = ("train", trained.interactions, "-o", tmp_path / "model", "--tune", 3)
    everything = [f"--set={name}={value}" for name, value in ials.HYPER.items()]
    for options, code, facts in (
        (("--model", "popularity"), 2, ("--tune", "popularity")),
        (("--model", "linear"), 2, ("--tune", "--model ials")),
        (("--model", "ials", "--factors", 8, *everything), 2, ("--tune",)),
        (("--model", "ials", "--resume"), 4, (tmp_path / "model", "resume")),
    ):
        with refused(BadInput if code == EXIT_BAD_INPUT else UsageError, *facts):
            in_process.done(*command, *options)
        assert not (tmp_path / "model" / "model.json").exists()
