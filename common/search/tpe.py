"""Propose the settings of the next trial, by Optuna's tree-structured Parzen estimator (Bergstra et al. 2011).

It runs in its own process (``common.memory.process.fork``) and sees only the trials so far. So Optuna is not in memory
while a model is trained, and a search that was killed continues as if it had not been.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from common.search.space import Choice, Dimension, Space

DRAWN = 8
"""Number of trials drawn at random before their scores are used."""

TrialState = Literal["done", "stopped", "skipped", "failed"]
"""``stopped``: other trials were better at a rung; ``skipped``: it does not fit; ``failed``: numbers diverged."""


@dataclass(slots=True)
class Trial:
    """Some settings and their scores."""

    number: int
    settings: Mapping[str, Any]
    scores: dict[int, float] = field(default_factory=dict)
    """Scores on the hidden items, by number of iterations."""
    state: TrialState = "done"
    why: str = ""
    """Why it was skipped or failed."""

    @property
    def reached(self) -> float:
        """The last score."""
        return self.scores[max(self.scores)]


def ask(space: Space, trials: Sequence[Trial], *, seed: int) -> dict[str, Any]:
    """Settings for the next trial, a function of the arguments.

    Parameters
    ----------
    space
        The hyper-parameters to search.
    trials
        All trials so far.
    seed
        Seed of the search.
    """
    import optuna
    from optuna.trial import TrialState as OptunaState
    from optuna.trial import create_trial

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    distributions = {name: _distribution(dimension) for name, dimension in space.items()}
    with warnings.catch_warnings(category=optuna.exceptions.ExperimentalWarning, action="ignore"):
        sampler = optuna.samplers.TPESampler(n_startup_trials=DRAWN, multivariate=True, seed=_seed(seed, len(trials)))
    study = optuna.create_study(direction="maximize", sampler=sampler)
    for trial in trials:
        done = trial.state == "done"
        study.add_trial(
            create_trial(
                state=OptunaState.COMPLETE if done else OptunaState.PRUNED,
                value=trial.reached if done else None,
                params={name: trial.settings[name] for name in space},
                distributions=distributions,
                intermediate_values=trial.scores,
            )
        )
    return dict(study.ask(distributions).params)


def _seed(seed: int, number: int) -> int:
    """A seed for the trial ``number``."""
    import numpy as np

    return int(np.random.SeedSequence([seed, number]).generate_state(1)[0])


def _distribution(dimension: Dimension) -> Any:
    import optuna

    if isinstance(dimension, Choice):
        return optuna.distributions.CategoricalDistribution(dimension.values)
    return optuna.distributions.FloatDistribution(dimension.low, dimension.high, log=True)
