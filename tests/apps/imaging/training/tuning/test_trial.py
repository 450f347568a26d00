"""What a trial of ``imaging train --tune`` sees, what scores it, and where it is stopped."""

import json
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from apps.imaging.cli import parser
from apps.imaging.training.journal import VALIDATIONS
from apps.imaging.training.request import TrainRequest
from apps.imaging.training.tuning import space as spaces
from apps.imaging.training.tuning.trial import RUNGS, TrialCourse, hide
from common.errors import BadInput
from common.search.space import Choice, Range
from common.search.tpe import Trial
from common.search.trials import TrialStopped
from tests.apps.imaging.commands.test_train import make
from tests.messages import refused


def test_a_fifth_of_the_training_cases_is_hidden_and_never_what_the_fold_holds_out(tmp_path: Path) -> None:
    make(tmp_path / "balls", cases=13, side=12)
    (tmp_path / "tuning.jsonl").write_text("{}\n")
    words = ("--fold", "1/4", "--patch", "8", "-o", str(tmp_path / "m"))
    plain, trial = (
        request(tmp_path / "balls", *words, *more) for more in ((), ("--trial", str(tmp_path / "tuning.jsonl")))
    )
    whole = [case.name for case in plain.data.training]
    hidden = [case.name for case in trial.data.held_out]
    assert len(whole) == 10 and hidden == [whole[0], whole[5]]
    assert [case.name for case in trial.data.training] == [name for name in whole if name not in hidden]
    assert not {case.name for case in plain.data.held_out} & {*hidden}
    assert trial.recipe == plain.recipe and trial.data.operations == plain.data.operations
    with refused(BadInput, "--tune", "one training case"):
        hide([plain.data.training[0]])


def request(folder: Path, *words: str) -> TrainRequest:
    args = parser().parse_args(["train", str(folder), *words])
    return TrainRequest.of(args.command.request(args))


@pytest.mark.parametrize(
    ("network", "widths"),
    [
        ("segresnet", ("init_filters=16", "init_filters=8", "init_filters=24", "init_filters=32")),
        (
            "dynunet",
            ("filters=16,32,64,128", "filters=8,16,32,64", "filters=24,48,96,192", "filters=32,64,128,256"),
        ),
        ("unet", ("channels=16,32,64,128", "channels=8,16,32,64", "channels=24,48,96,192", "channels=32,64,128,256")),
    ],
)
def test_the_space_has_the_command_lines_settings_and_networks_that_can_be_built(
    tmp_path: Path, network: str, widths: tuple[str, ...]
) -> None:
    made = request(make(tmp_path / "balls", side=32), "--network", network, "-o", str(tmp_path / "m"))
    space, first = spaces.of(made, set())
    assert space["layers"] == Choice(widths) and space["patch"] == Choice(("32,32,32", "24,24,24", "16,16,16"))
    assert first.keys() == space.keys()
    for name, dimension in space.items():
        if isinstance(dimension, Range):
            assert dimension.low < first[name] < dimension.high
        else:
            assert first[name] in dimension.values
    for width in widths:  # each is an argument that the network takes
        request(tmp_path / "balls", "--network", network, "--layers", width, "-o", str(tmp_path / "m"))
    assert spaces.of(made, {*space}) == ({}, {})
    assert spaces.of(made, {"patch", "layers", "learning_rate"})[0].keys() == {
        *("weight_decay", "dice", "balance", "augment")
    }


def test_a_trial_ends_where_half_of_the_others_were_better(tmp_path: Path) -> None:
    assert RUNGS == [2, 4, VALIDATIONS]
    others = [Trial(number, {}, {2: 0.1 * number, 4: 0.2 * number}) for number in range(4)]
    path = tmp_path / "tuning.jsonl"
    path.write_text("\n".join(["{}", *(json.dumps(asdict(trial)) for trial in others), ""]))
    course = TrialCourse(path)
    assert course.others == others and course.trial.number == 4
    course.validated(2, 0.25)
    again = TrialCourse(path)
    again.load(json.loads(json.dumps(course.state())))
    with pytest.raises(TrialStopped):
        again.validated(4, 0.1)
    assert again.trial.scores == {2: 0.25, 4: 0.1}
    course.validated(4, 0.7)
    course.validated(8, 0.0)  # the last rung stops nothing
    with pytest.raises(ArithmeticError, match="no class"):
        course.validated(8, float("nan"))


def test_a_course_of_few_steps_is_scored_at_the_end_too() -> None:
    """``loop._Training._is_due`` with the eighths that a training of two steps passes; those in which no step was done
    are validated in trials only."""
    from apps.imaging.training.loop import _Training

    passed: list[tuple[int, bool]] = [(1, True), (2, False), (3, False), (4, False), (8, True)]

    def validated(**course: Any) -> list[int]:
        made: Any = SimpleNamespace(**course)
        return [eighths for eighths, stepped in passed if _Training._is_due(made, eighths, stepped=stepped)]

    assert validated(trial=object()) == RUNGS
    assert validated(trial=None, progress=0.5) == [1, 8]
