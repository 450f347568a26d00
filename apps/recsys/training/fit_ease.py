"""Fit EASE: choose its ridge on hidden items unless it is given, and write its item-to-item weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from apps.recsys.data.csr_store import History
from apps.recsys.data.splits import HeldOut
from apps.recsys.evaluation.full_ranking import User, evaluate
from apps.recsys.evaluation.metrics import Tally
from apps.recsys.models import weights
from apps.recsys.models.linear import ease
from apps.recsys.models.linear.log import Log
from apps.recsys.models.linear.options import AUTO
from apps.recsys.training.fit_linear import METRIC, SAMPLE, Fitted, LinearConfig, LinearTrainer

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
        config, linear = self.config, LinearTrainer(self.config, self.session)
        linear.arrange()
        wanted, ordered = config.hyper["ridge"], []
        if wanted == AUTO:
            ordered = linear.ranked(self._compare, lambda ridge: f"form=ease ridge={ridge:g}")
        tried = [{**settings(one), "factors": 0, METRIC: mean} for one, mean in ordered]
        ridge = ordered[0][0] if ordered else USUAL_RIDGE if wanted == AUTO else float(wanted)
        with self.session.phase("fit"):
            log = Log(config.directory, config.items)
            matrix, variances = self._weights(log, ridge)
            ease.write(config.directory, matrix)
        tensors = {weights.COUNTS: log.counts(), weights.VARIANCES: variances}
        return Fitted(tensors, {**settings(ridge), "factors": 0}, tried)

    def _weights(self, log: Log, ridge: float) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        with self.session.progress(total=ease.steps(log.items), unit="panel", label=f"ridge {ridge:g}") as bar:

            def after_panel() -> None:
                bar.update()
                if self.session.stopping:
                    raise KeyboardInterrupt

            return ease.item_weights(log, ridge, after_panel)

    def _compare(self, hidden: HeldOut) -> dict[float, float]:
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
    """Hyper-parameters of EASE; degree power and saturation have no meaning."""
    return {"form": "ease", "degree_power": 0.0, "saturation": 1.0, "ridge": ridge}
