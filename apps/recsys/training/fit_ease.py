"""Fit EASE: choose its ridge on hidden items unless it is given, and write its item-to-item weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from apps.recsys.data.csr_store import History
from apps.recsys.data.splits import HeldOut
from apps.recsys.evaluation.full_ranking import User, evaluate
from apps.recsys.evaluation.metrics import Tally
from apps.recsys.models import weights
from apps.recsys.models.linear import ease
from apps.recsys.models.linear.log import Log
from apps.recsys.models.linear.options import AUTO, EASE_ITEMS, HYPER, USUAL, WORTH
from apps.recsys.training.fit_linear import METRIC, SAMPLE, Fitted, LinearConfig, LinearTrainer
from apps.recsys.training.linear_candidates import Candidate
from common.memory.process.budget import format_size

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from apps.recsys.training.session import TrainingSession

RIDGES = (30.0, 100.0, 300.0, 1000.0, 3000.0)
"""Candidates for the ridge. On MovieLens-1M the best one is near 500, on small data below 100."""
FINER_RIDGE = 3**0.5
"""Step from the best candidate to those that are compared after it."""
USUAL_RIDGE = 300.0
"""Ridge where no items can be hidden."""


@dataclass(frozen=True, slots=True)
class EaseTrainer:
    """Trains a ``LinearConfig`` of the form ``ease``.

    Attributes
    ----------
    config
        The training; its folder gets ``ease.npy``.
    session
        Plan (knob ``user_block``), threads and progress.
    """

    config: LinearConfig
    session: TrainingSession

    def run(self) -> Fitted:
        """Choose the ridge if it is open, and compute the weights.

        Raises
        ------
        KeyboardInterrupt
            The session is stopping.
        """
        linear, wanted = LinearTrainer(self.config, self.session), self.config.hyper["ridge"]
        linear.arrange()
        if wanted != AUTO:
            return self.fitted(float(wanted))
        chosen, ordered = linear.ranked(self.compare, ridge_text)
        return self.fitted(chosen or USUAL_RIDGE, [tried(one, mean) for one, mean in ordered])

    def fitted(self, ridge: float, tried: Sequence[Mapping[str, Any]] = ()) -> Fitted:
        """Compute the weights for a ridge, and write them."""
        with self.session.phase("fit"):
            log = Log(self.config.directory, self.config.items)
            variances = self._written(log, ridge)
        tensors = {weights.COUNTS: log.counts(), weights.VARIANCES: variances}
        return Fitted(tensors, {**settings(ridge), "factors": 0}, tried)

    def _written(self, log: Log, ridge: float) -> NDArray[np.float32]:
        """Write the weights; returns the diagonal of C."""
        matrix, variances = self._weights(log, ridge)
        ease.write(self.config.directory, matrix)
        return variances

    def _weights(self, log: Log, ridge: float) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        with self._bar(log.items, ridge) as after_panel:
            return ease.item_weights(log, ridge, after_panel)

    @contextmanager
    def _bar(self, items: int, ridge: float) -> Iterator[Callable[[], None]]:
        """A bar of progress; the block calls what it gets after each panel."""
        with self.session.progress(total=ease.steps(items), unit="panel", label=f"ridge {ridge:g}") as bar:

            def after_panel() -> None:
                bar.update()
                if self.session.group.sums([float(self.session.stopping)])[0]:
                    raise KeyboardInterrupt

            yield after_panel

    def compare(self, hidden: HeldOut) -> dict[float, float]:
        """The mean metric on the hidden items of each candidate, then of the neighbours of the best one."""
        means = {ridge: self._mean(ridge, hidden) for ridge in RIDGES}
        best = max(means, key=means.__getitem__)
        for ridge in (round(best / FINER_RIDGE, 1), round(best * FINER_RIDGE, 1)):
            means[ridge] = self._mean(ridge, hidden)
        return means

    def _mean(self, ridge: float, hidden: HeldOut) -> float:
        import numpy as np

        config = self.config
        log, left = Log(config.directory, config.items, SAMPLE), History(config.directory, SAMPLE)
        matrix, variances = self._weights(log, ridge)
        scorer, tally = ease.EaseScorer(matrix, log.counts(), variances), Tally(config.items, (METRIC,))

        def users() -> Iterator[User]:
            for row, user in enumerate(hidden.users):
                items = left.items(int(user))
                yield items, np.ones(len(items), np.float32), hidden.items(row)

        evaluate(users(), scorer, block=int(self.session.plan["user_block"]), threads=self.session.threads, tally=tally)
        left.close()
        return tally.means()[METRIC]


def settings(ridge: float) -> Mapping[str, Any]:
    """Hyper-parameters of EASE; powers and saturation have no meaning."""
    return {"form": "ease", "degree_power": 0.0, **USUAL, "saturation": 1.0, "ridge": ridge}


def ridge_text(ridge: float) -> str:
    """A ridge as lines have it."""
    return f"form=ease ridge={ridge:g}"


def tried(ridge: float, mean: float) -> Mapping[str, Any]:
    """A ridge as the record has it."""
    return {**settings(ridge), "factors": 0, METRIC: mean}


@dataclass(frozen=True, slots=True)
class AnyFormTrainer:
    """Trains a ``LinearConfig`` whose form is open: EASE is one of the candidates, if the plan has room for it.

    Attributes
    ----------
    config
        The training.
    session
        Plan (knobs ``user_block`` and ``ease``), threads and progress.
    """

    config: LinearConfig
    session: TrainingSession

    def run(self) -> Fitted:
        """Choose the form and its numbers, and compute what they need; raises as ``LinearTrainer.run``."""
        config, session = self.config, self.session
        linear, of_ease = LinearTrainer(config, session), EaseTrainer(config, session)
        if not session.plan["ease"]:
            if config.hyper == HYPER:
                session.say(f"form=ease is not tried: {_why_not(config.items)}")
            return linear.run()
        linear.arrange()

        def compare(hidden: HeldOut) -> dict[Candidate | float, float]:
            first, second = linear.compare(hidden).items(), of_ease.compare(hidden).items()
            return {choice: mean for pairs in (first, second) for choice, mean in pairs}

        def named(choice: Candidate | float) -> str:
            return str(choice) if isinstance(choice, Candidate) else ridge_text(choice)

        def worth(choice: Candidate | float) -> float:
            return 1.0 if isinstance(choice, Candidate) else WORTH

        chosen, ordered = linear.ranked(compare, named, worth)
        record = [linear.tried(one, mean) if isinstance(one, Candidate) else tried(one, mean) for one, mean in ordered]
        if isinstance(chosen, float):
            return of_ease.fitted(chosen, record)
        return linear.fitted(chosen or linear.usual, record)


def _why_not(items: int) -> str:
    if items > EASE_ITEMS:
        return f"{items:,} items, and a ridge takes items cubed; it is tried up to {EASE_ITEMS:,}"
    return f"{items:,} items squared do not fit ({format_size(4 * items * items)})"
