"""A training that is one trial of a search: which cases it is scored on, and where it is stopped."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from apps.imaging.training.data.dataset import LabelledCase
from apps.imaging.training.journal import VALIDATIONS
from common.errors import BadInput
from common.search.tpe import Trial
from common.search.trials import judge, read_trials, rungs

METRIC = "dice"
"""The metric by which trials are compared: the mean Dice of hidden cases."""
HIDDEN = 5
"""One in so many training cases is hidden from the trials and scores them."""
RUNGS = rungs(VALIDATIONS)
"""Eighths of a trial's length after which it is scored."""


def hide(training: Sequence[LabelledCase]) -> tuple[list[LabelledCase], list[LabelledCase]]:
    """Split the training cases into those that a trial sees and those that score it.

    Raises
    ------
    BadInput
        There is but one.
    """
    hidden = list(training[::HIDDEN])
    seen = [case for number, case in enumerate(training) if number % HIDDEN]
    if not seen:
        raise BadInput("--tune: of one training case none can be hidden", public="nothing to hide")
    return seen, hidden


class TrialCourse:
    """The scores of a trial under way.

    Parameters
    ----------
    file
        The file of the search, with the trials that have ended.
    """

    def __init__(self, file: Path) -> None:
        self.others = read_trials(file)
        self.trial = Trial(len(self.others), {})

    def validated(self, eighths: int, dice: float) -> None:
        """Note the mean Dice after so many eighths of the training.

        Raises
        ------
        TrialStopped
            Half of the other trials were better.
        ArithmeticError
            It is not a number: neither the hidden cases nor what was found in them have a class.
        """
        if dice != dice:
            raise ArithmeticError("the hidden cases have no class")
        judge(self.trial, eighths, dice, self.others, last=RUNGS[-1])

    def state(self) -> dict[str, float]:
        """What a checkpoint keeps."""
        return {str(eighths): score for eighths, score in self.trial.scores.items()}

    def load(self, state: Mapping[str, Any]) -> None:
        """Continue from what ``state`` returned."""
        self.trial.scores = {int(eighths): score for eighths, score in state.items()}
