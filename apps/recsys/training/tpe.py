"""Which settings to try next: Optuna's tree-structured Parzen estimator (Bergstra et al. 2011).

It is asked in a process of its own (``common.memory.process.fork``), from nothing but the trials so far: so its
libraries do not count while a model is trained, and a search that was killed goes on as it would have gone.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from apps.recsys.models.search_space import Choice, Dimension, Space

DRAWN = 8
"""Trials drawn at random before what they reached is looked at."""

State = Literal["done", "stopped", "skipped", "failed"]


@dataclass(slots=True)
class Trial:
    """Some settings and what they reached."""

    number: int
    settings: Mapping[str, Any]
    scores: dict[int, float] = field(default_factory=dict)
    """On the hidden items, by iterations done."""
    state: State = "done"
    """``stopped``: others had reached more by then; ``skipped``: it does not fit; ``failed``: numbers ran away."""
    why: str = ""

    @property
    def reached(self) -> float:
        """The last score."""
        return self.scores[max(self.scores)]


def ask(space: Space, trials: Sequence[Trial], *, seed: int) -> dict[str, Any]:
    """Settings for the next trial; the same ones whenever it is asked the same."""
    import optuna
    from optuna.trial import TrialState, create_trial

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    distributions = {name: _distribution(dimension) for name, dimension in space.items()}
    with warnings.catch_warnings(category=optuna.exceptions.ExperimentalWarning, action="ignore"):
        sampler = optuna.samplers.TPESampler(n_startup_trials=DRAWN, multivariate=True, seed=_seed(seed, len(trials)))
    study = optuna.create_study(direction="maximize", sampler=sampler)
    for trial in trials:
        done = trial.state == "done"
        study.add_trial(
            create_trial(
                state=TrialState.COMPLETE if done else TrialState.PRUNED,
                value=trial.reached if done else None,
                params={name: trial.settings[name] for name in space},
                distributions=distributions,
                intermediate_values=trial.scores,
            )
        )
    return dict(study.ask(distributions).params)


def _seed(seed: int, number: int) -> int:
    """A seed for one question."""
    import numpy as np

    return int(np.random.SeedSequence([seed, number]).generate_state(1)[0])


def _distribution(dimension: Dimension) -> Any:
    import optuna

    if isinstance(dimension, Choice):
        return optuna.distributions.CategoricalDistribution(dimension.values)
    return optuna.distributions.FloatDistribution(dimension.low, dimension.high, log=True)
