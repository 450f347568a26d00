"""Fit a linear model: choose its form and its two numbers on hidden items, then compute its spectrum.

What the command line leaves open (``auto``) is chosen by NDCG@20 on items that are hidden from the interactions
meanwhile (``hide_alike``). All candidates rank for the same users.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from apps.recsys.data import splits
from apps.recsys.data.csr_store import History
from apps.recsys.data.splits import HeldOut, Kept
from apps.recsys.evaluation.metrics import Tally
from apps.recsys.models import weights
from apps.recsys.models.linear.filter import code_weights
from apps.recsys.models.linear.log import TRAINED, Log, forget_trained, write_trained
from apps.recsys.models.linear.options import AUTO
from apps.recsys.models.linear.readers import NAME as READERS
from apps.recsys.models.linear.readers import Readers, ReaderScores, likeness, uses_readers, write_readers
from apps.recsys.models.linear.spectrum import ITERATIONS, spectrum
from apps.recsys.training.compare_linear import Candidate, Comparison
from apps.recsys.training.hide_alike import hide_alike
from common.compression.codes import Codes
from common.memory.process import glibc

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from apps.recsys.training.session import TrainingSession

DEPTH = 20
METRIC = f"ndcg@{DEPTH}"
"""Metric by which candidates are compared."""
POWERS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)
"""Candidates for the degree power."""
SATURATIONS: Mapping[str, tuple[float, ...]] = {
    "filter": (8.0, 4.0, 2.0, 1.0, 0.5),
    "spectral": (1.0, 0.3, 0.1, 0.05, 0.03, 0.02, 0.01),
}
"""Candidates for the saturation by form. A filter changes little of the spectrum; a spectral model of dense data cuts
off most of its first eigenvalues (``docs/recsys.md``)."""
SAMPLE, SAMPLED_READERS = "sampled", "sampled_readers"
"""Names of the files with the interactions that are left while items are hidden, and with the users of each item."""


Choice = TypeVar("Choice")


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearConfig:
    """One training of a linear model.

    Attributes
    ----------
    factors
        Eigenvalues that are computed where the form uses them.
    filter_factors
        Most of them that a filter uses.
    hyper
        ``form``, ``degree_power`` and ``saturation``, each of which may be ``AUTO``.
    items
        Number of items.
    directory
        Folder of the history; gets ``trained.*.npy`` if a split holds something out.
    split
        Way in which evaluation items are held out of training (``splits.KINDS``).
    seed
        Seed of the sample and of the spectrum.
    """

    factors: int
    filter_factors: int
    hyper: Mapping[str, Any]
    items: int
    directory: Path
    split: str
    seed: int

    @property
    def candidates(self) -> list[Candidate]:
        """The settings that the command line leaves open."""
        hyper = self.hyper
        forms = ("filter", "spectral") if hyper["form"] == AUTO else (hyper["form"],)
        powers = POWERS if hyper["degree_power"] == AUTO else (hyper["degree_power"],)
        made = []
        for power in powers:
            for form in forms:
                saturations = SATURATIONS[form] if hyper["saturation"] == AUTO else (hyper["saturation"],)
                if form == "filter" and (not self.factors or hyper["saturation"] == AUTO):
                    made.append(Candidate(form, power, math.inf))
                if self.factors:
                    made += [Candidate(form, power, saturation) for saturation in saturations]
        return made


class Fitted(NamedTuple):
    """A fitted linear model."""

    tensors: Mapping[str, Any]
    """Its weights by name (``apps.recsys.models.weights``)."""
    settings: Mapping[str, Any]
    """Its hyper-parameters, and its number of ``factors``: 0 without a spectrum."""
    tried: Sequence[Mapping[str, Any]] = ()
    """The candidates with their metric, the best first."""


@dataclass(frozen=True, slots=True)
class LinearTrainer:
    """Trains a ``LinearConfig``.

    Attributes
    ----------
    config
        The training.
    session
        Plan (knob ``user_block``), threads and progress.
    """

    config: LinearConfig
    session: TrainingSession

    def run(self) -> Fitted:
        """Choose what is open and compute the spectrum.

        Raises
        ------
        KeyboardInterrupt
            The session is stopping.
        """
        self.arrange()
        candidates = self.config.candidates
        if len(candidates) == 1:
            return self.fitted(candidates[0])
        chosen, ordered = self.ranked(lambda hidden: self.compare(candidates, hidden), str)
        return self.fitted(chosen or candidates[0], [self.tried(one, mean) for one, mean in ordered])

    def tried(self, candidate: Candidate, mean: float) -> Mapping[str, Any]:
        """A candidate as the record has it."""
        return {**candidate.settings, "factors": self._factors(candidate), METRIC: mean}

    def fitted(self, chosen: Candidate, tried: Sequence[Mapping[str, Any]] = ()) -> Fitted:
        """Compute the spectrum of a candidate, and what answers of it need."""
        config = self.config
        with self.session.phase("fit"):
            log = Log(config.directory, config.items)
            counts = log.counts()
            tensors: dict[str, Any] = {weights.COUNTS: counts}
            if uses_readers(chosen.form, log.history.size):
                self._use_readers(log, counts, chosen)
            else:
                forget_trained(config.directory, READERS)
            factors = self._factors(chosen)
            if factors:
                vectors, tensors[weights.EIGENVALUES] = self._spectrum(log, counts, factors)
                tensors |= self._stored(vectors, tensors[weights.EIGENVALUES], chosen)
        return Fitted(tensors, {**chosen.settings, "factors": factors}, tried)

    def _asks_readers(self, log: Log) -> bool:
        """True if candidates are compared by the readers of single histories."""
        return self.config.hyper["form"] in (AUTO, "filter") and uses_readers("filter", log.history.size)

    def _use_readers(self, log: Log, counts: NDArray[np.int32], chosen: Candidate) -> None:
        """Write the users of each item, if they are not there, and say what the bounds of an answer change."""
        import numpy as np

        directory = self.config.directory
        if not (directory / f"{READERS}.users.npy").exists():
            write_readers(directory, log, counts)
        degrees, power = np.maximum(counts, 1).astype(np.float32), np.float32(chosen.degree_power)
        scores = ReaderScores(Readers(directory, log), degrees, power)
        with _reused_memory():
            self.session.say(str(likeness(scores, log, seed=self.config.seed)))

    def ranked(
        self,
        compare: Callable[[HeldOut], Mapping[Choice, float]],
        named: Callable[[Choice], str],
        worth: Callable[[Choice], float] = lambda choice: 1.0,
    ) -> tuple[Choice | None, list[tuple[Choice, float]]]:
        """Compare candidates on hidden items, and say which is the best.

        Parameters
        ----------
        compare
            Returns the mean metric of each candidate on these hidden items.
        named
            Settings of a candidate, as the line has them.
        worth
            How many times better than others a candidate must be.

        Returns
        -------
        tuple
            The best candidate, and all with their metric, the best first; ``None`` where no items can be hidden.
        """
        hidden = self.hide()
        if hidden is None:
            return None, []
        with self.session.phase("fit"):
            means = compare(hidden)
        splits.forget_validation(self.config.directory)
        for name in (SAMPLE, SAMPLED_READERS):
            forget_trained(self.config.directory, name)
        best = max(means, key=lambda choice: means[choice] / worth(choice))
        self.session.say(f"chosen on hidden items of {len(hidden):,} users: {named(best)} ({METRIC} {means[best]:.4f})")
        return best, sorted(means.items(), key=lambda pair: -pair[1])

    def _factors(self, candidate: Candidate) -> int:
        """Eigenvalues that a candidate uses."""
        if not math.isfinite(candidate.saturation):
            return 0
        factors, of_filter = self.config.factors, self.config.filter_factors
        return min(factors, of_filter) if candidate.form == "filter" else factors

    def arrange(self) -> None:
        """Write the interactions that are trained on, where the split holds some out."""
        config = self.config
        with self.session.phase("arrange"):
            history = History(config.directory)
            kept = Kept.of(history, config.directory, config.split)
            if config.split != "none":
                write_trained(config.directory, history, kept)
            history.close()

    def hide(self) -> HeldOut | None:
        """Hide items of a sample of users, and write the rest; ``None`` if no user has enough items."""
        config, directory = self.config, self.config.directory
        name = "history" if config.split == "none" else TRAINED
        with self.session.phase("fit"):
            log = Log(directory, config.items, name)
            counts, readers = log.counts(), None
            if self._asks_readers(log):
                write_readers(directory, log, counts)
                readers = Readers(directory, log)
            block = int(self.session.plan["user_block"])
            with _reused_memory() if readers is not None else nullcontext():
                found = hide_alike(directory, log, name, counts, block=block, seed=config.seed, readers=readers)
            if not found:
                return None
            hidden, left = HeldOut(directory, "validation"), History(directory, name)
            write_trained(directory, left, Kept(left, None, whole_users=False, validation=hidden), SAMPLE)
        return hidden

    def _spectrum(
        self, log: Log, counts: NDArray[np.int32], factors: int
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        with self.session.progress(total=ITERATIONS, unit="pass", label="spectrum") as bar:

            def after_iteration() -> None:
                bar.update()
                if self.session.stopping:
                    raise KeyboardInterrupt

            return spectrum(log, counts, factors, seed=self.config.seed, after_iteration=after_iteration)

    def _stored(
        self, vectors: NDArray[np.float32], eigenvalues: NDArray[np.float32], chosen: Candidate
    ) -> dict[str, NDArray[Any]]:
        """The spectrum as it is written: its vectors, or codes of what they add to scores."""
        bits = int(self.config.hyper["bits"])
        if bits == 32:
            return {weights.SPECTRUM: vectors}
        parts = code_weights(eigenvalues, chosen.form, chosen.saturation)
        return weights.code_tensors(Codes.of(vectors, bits, seed=self.config.seed, weights=parts))

    def compare(self, candidates: list[Candidate], hidden: HeldOut) -> dict[Candidate, float]:
        """The mean metric on the hidden items of each candidate, then of the neighbours of the best one."""
        import numpy as np

        config = self.config
        log = Log(config.directory, config.items, SAMPLE)
        counts = log.counts()
        readers = None
        if self._asks_readers(log):
            write_readers(config.directory, log, counts, SAMPLED_READERS)
            readers = Readers(config.directory, log, SAMPLED_READERS)
        spectral = self._spectrum(log, counts, config.factors) if config.factors else None
        degrees = np.maximum(counts, 1).astype(np.float32)[:, None]
        comparison = Comparison(log, degrees, spectral, config.filter_factors, readers)
        with _reused_memory() if readers is not None else nullcontext():
            return self._compared(comparison, candidates, hidden)

    def _compared(self, comparison: Comparison, candidates: list[Candidate], hidden: HeldOut) -> dict[Candidate, float]:
        config, means = self.config, self._means(comparison, candidates, hidden)
        open_powers, open_saturations = (config.hyper[name] == AUTO for name in ("degree_power", "saturation"))
        finer = max(means, key=means.__getitem__).neighbours(powers=open_powers, saturations=open_saturations)
        return means | self._means(comparison, finer, hidden)

    def _means(self, comparison: Comparison, candidates: list[Candidate], hidden: HeldOut) -> dict[Candidate, float]:
        """The mean metric of each candidate."""
        from concurrent.futures import ThreadPoolExecutor

        from threadpoolctl import threadpool_limits

        config, session = self.config, self.session
        left = History(config.directory, SAMPLE)
        tallies = {candidate: Tally(config.items, (METRIC,)) for candidate in candidates}
        share = 1 if comparison.readers is not None else -(-int(session.plan["user_block"]) // session.threads)
        groups = [range(start, min(start + share, len(hidden))) for start in range(0, len(hidden), share)]
        powers = sorted({candidate.degree_power for candidate in candidates})
        bar = session.progress(total=len(powers) * len(hidden), unit="user", label="choose")
        with ThreadPoolExecutor(session.threads) as pool, threadpool_limits(1, "blas"), bar:
            for power in powers:
                own = [candidate for candidate in candidates if candidate.degree_power == power]

                asked = (power, own, DEPTH, comparison.by_readers(power))

                def rank(rows: range, asked: Any = asked) -> list[list[Any]]:
                    histories = [left.items(int(hidden.users[row])) for row in rows]
                    return list(comparison.rankings(histories, *asked))

                for first in range(0, len(groups), session.threads):
                    some = groups[first : first + session.threads]
                    for rows, rankings in zip(some, pool.map(rank, some), strict=True):
                        for candidate, ranked in zip(own, rankings, strict=True):
                            tallies[candidate].add_all(ranked, [hidden.items(row) for row in rows])
                        bar.update(len(rows))
                    if session.stopping:
                        raise KeyboardInterrupt
        return {candidate: tally.means()[METRIC] for candidate, tally in tallies.items()}


@contextmanager
def _reused_memory() -> Iterator[None]:
    """Keep freed blocks of a few MiB for the next user, where mapping them anew takes as long as the scores."""
    glibc.unpin_thresholds()
    try:
        yield
    finally:
        glibc.pin_thresholds()
        glibc.trim()
