"""Rungs, and which trials pass them; the file of a search."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import UsageError
from common.search.space import Choice, Range, from_json
from common.search.tpe import Trial
from common.search.trials import Search, Terms, TrialLog, TrialStopped, judge, promising, rungs
from tests.messages import continued, refused, says

SPACE = {"rate": Range(0.001, 1.0), "kind": Choice(("a", "b")), "depth": Choice((1, 2))}


class Arithmetic(Search):
    """Trials that score their rate, and are better with kind b; those of depth 2 do not fit."""

    def first(self) -> dict[str, Any]:
        """The command line's."""
        return {"rate": 0.01, "kind": "a", "depth": 1}

    def attempt(self, number: int, settings: Mapping[str, Any]) -> Trial:
        """Three rungs."""
        trial = Trial(number, settings)
        if settings["depth"] == 2:
            trial.state, trial.why = "skipped", "needs 2 GiB"
            return trial
        try:
            for done in self.terms.rungs:
                score = settings["rate"] * done / 8 + (settings["kind"] == "b")
                judge(trial, done, score, self.log.trials, last=self.terms.rungs[-1])
        except TrialStopped:
            trial.state = "stopped"
        return trial


def search(folder: Path, said: list[str], trials: int, **settings: Any) -> Arithmetic:
    log = TrialLog(folder / "tuning.jsonl", settings, output=folder, say=said.append)
    return Arithmetic(Terms(SPACE, trials, 1, "dice", rungs(8), "validations"), log, said.append)


def test_a_search_finds_the_better_kind_and_goes_on_where_it_was(tmp_path: Path) -> None:
    said: list[str] = []
    begun = search(tmp_path, said, 5)
    begun.search()
    further = search(tmp_path, said, 12)
    continued(said[-1], "5 trials")
    best = further.search()
    assert further.log.trials[:5] == begun.log.trials and len(further.log.trials) == 12
    assert best.settings["kind"] == "b" and best.reached > further.log.trials[0].reached
    assert {trial.state for trial in further.log.trials} == {"done", "stopped", "skipped"}
    says(said[0], "trial 1 of 5", "rate=0.01 kind=a depth=1", "dice 0.0100")
    stopped = next(line for line in said if "stopped" in line)
    says(stopped, "of 8 validations")
    says(said[-1], f"best: trial {best.number + 1}", "kind=b")
    found = further.results(best)
    assert found["best"] == best.number and found["gain"] == best.reached / 0.01
    assert from_json(json.loads(json.dumps(found["space"]))) == SPACE
    whole = search(tmp_path / "other", [], 12)
    whole.search()
    assert whole.log.trials == further.log.trials


def test_no_trial_finished(tmp_path: Path) -> None:
    none = search(tmp_path, [], 2)
    none.log.trials = [Trial(0, {}, state="failed"), Trial(1, {}, state="skipped")]
    with pytest.raises(ArithmeticError, match="no trial finished"):
        none.search()


def test_a_search_with_other_settings_is_not_continued(tmp_path: Path) -> None:
    search(tmp_path, [], 1, seed=1).search()
    said: list[str] = []
    assert search(tmp_path, said, 1, seed=2).log.trials == []
    says(said[0], "other settings", "seed", "beginning")
    with refused(UsageError, "--resume", "seed"):
        TrialLog(tmp_path / "tuning.jsonl", {"seed": 3}, output=tmp_path, required=True, say=print)


def test_rungs() -> None:
    assert [rungs(n) for n in (1, 2, 8, 15, 40)] == [[1], [1, 2], [2, 4, 8], [4, 8, 15], [10, 20, 40]]


@given(st.lists(st.floats(0, 1), max_size=30), st.floats(0, 1))
def test_less_than_half_of_those_known_is_better_than_one_that_goes_on(others: list[float], score: float) -> None:
    better = sum(other > score for other in others)
    assert promising(score, others) is (better == 0 or better + 1 <= (len(others) + 1) / 2)
