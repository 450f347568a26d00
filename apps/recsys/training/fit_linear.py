"""Fit a linear model: choose its form and its numbers on hidden items, then compute its spectrum.

What the command line leaves open (``auto``) is chosen by NDCG@20 on items that are hidden from the interactions
meanwhile (``hide_alike``). All candidates rank for the same users.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from apps.recsys.data import splits
from apps.recsys.data.csr_store import History
from apps.recsys.data.splits import HeldOut, Kept
from apps.recsys.evaluation.metrics import Tally
from apps.recsys.models import weights
from apps.recsys.models.linear.coded import code_tensors
from apps.recsys.models.linear.filter import code_weights
from apps.recsys.models.linear.log import TRAINED, Log, forget_trained, write_trained
from apps.recsys.models.linear.options import AUTO, chooses
from apps.recsys.models.linear.readers import NAME as READERS
from apps.recsys.models.linear.readers import Readers, ReaderScores, likeness, uses_readers, write_readers
from apps.recsys.models.linear.spectrum import ITERATIONS, VectorRows, spectrum
from apps.recsys.training.compare_linear import Comparison
from apps.recsys.training.hide_alike import hide_alike
from apps.recsys.training.linear_candidates import Candidate, Search
from common.compression.codes import Codes
from common.memory.process import glibc

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

    import numpy as np
    from numpy.typing import NDArray

    from apps.recsys.training.compare_linear import Powers
    from apps.recsys.training.session import TrainingSession

DEPTH = 20
METRIC = f"ndcg@{DEPTH}"
"""Metric by which candidates are compared."""
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
        As ``options.HYPER``, each of which may be ``AUTO``.
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
    def search(self) -> Search:
        """The settings that the command line leaves open."""
        return Search(self.hyper, self.factors)


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
        if not chooses(self.config.hyper, self.config.factors):
            return self.fitted(self.usual)
        chosen, ordered = self.ranked(self.compare, str)
        return self.fitted(chosen or self.usual, [self.tried(one, mean) for one, mean in ordered])

    @property
    def usual(self) -> Candidate:
        """The candidate where nothing is open, or no items can be hidden."""
        search = self.config.search
        first = search.first[0]
        if first.form == "filter" and self.config.hyper["saturation"] != AUTO and self.config.factors:
            return replace(first, saturation=self.config.hyper["saturation"])
        return first

    def tried(self, candidate: Candidate, mean: float) -> Mapping[str, Any]:
        """A candidate as the record has it."""
        return {**candidate.settings, "factors": self._factors(candidate), METRIC: mean}

    def fitted(self, chosen: Candidate, tried: Sequence[Mapping[str, Any]] = ()) -> Fitted:
        """Compute the spectrum of a candidate, and what answers of it need."""
        config = self.config
        with self.session.phase("fit"):
            log = self._log()
            log.user_power = chosen.user_power
            counts = log.counts()
            tensors: dict[str, Any] = {weights.COUNTS: counts}
            if uses_readers(chosen.form, log.history.size):
                self._use_readers(log, counts, chosen)
            else:
                forget_trained(config.directory, READERS)
            factors = self._factors(chosen)
            if factors:
                vectors, tensors[weights.EIGENVALUES] = self._spectrum(log, counts, factors, chosen.item_power)
                tensors |= self._stored(vectors, tensors[weights.EIGENVALUES], chosen)
        return Fitted(tensors, {**chosen.settings, "factors": factors}, tried)

    def _asks_readers(self, log: Log) -> bool:
        """True if candidates are compared by the readers of single histories."""
        return self.config.hyper["form"] in (AUTO, "filter") and uses_readers("filter", log.history.size)

    def _sampled(self, log: Log) -> bool:
        """True if what is left of the interactions is written anew while items are hidden. For readers alone that is
        not needed: each user is left out of his own answer, and all others are too many to matter."""
        return bool(self.config.factors) or not self._asks_readers(log)

    def _use_readers(self, log: Log, counts: NDArray[np.int32], chosen: Candidate) -> None:
        """Write the users of each item, if they are not there, and say what the bounds of an answer change."""
        import numpy as np

        directory = self.config.directory
        if not (directory / f"{READERS}.users.npy").exists():
            write_readers(directory, log, counts)
        degrees, power = np.maximum(counts, 1).astype(np.float32), np.float32(chosen.degree_power)
        scores = ReaderScores(Readers(directory, log), degrees, power, chosen.item_power)
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

    @property
    def _name(self) -> str:
        """Name of the interactions that are trained on."""
        return "history" if self.config.split == "none" else TRAINED

    def hide(self) -> HeldOut | None:
        """Hide items of a sample of users, and write the rest; ``None`` if no user has enough items."""
        config, directory, name = self.config, self.config.directory, self._name
        with self.session.phase("fit"):
            log = self._log(name)
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
            if self._sampled(log):
                write_trained(directory, left, Kept(left, None, whole_users=False, validation=hidden), SAMPLE)
        return hidden

    def _spectrum(
        self, log: Log, counts: NDArray[np.int32], factors: int, item_power: float
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        with self.session.progress(total=ITERATIONS, unit="step", label="spectrum") as bar:

            def after_iteration() -> None:
                bar.update()
                if self.session.group.sums([float(self.session.stopping)])[0]:
                    raise KeyboardInterrupt

            seed, threads = self.config.seed, self.session.threads
            how: Mapping[str, Any] = {"item_power": item_power, "seed": seed, "threads": threads}
            return spectrum(log, counts, factors, **how, after_iteration=after_iteration, kept=self._kept())

    def _log(self, name: str | None = None) -> Log:
        """The interactions of a name (``Log``)."""
        return Log(self.config.directory, self.config.items, name)

    def _kept(self) -> Callable[[ThreadPoolExecutor, int], VectorRows] | None:
        """What keeps the vectors of a spectrum (``spectrum``)."""
        return None

    def _stored(
        self, vectors: NDArray[np.float32], eigenvalues: NDArray[np.float32], chosen: Candidate
    ) -> dict[str, NDArray[Any]]:
        """The spectrum as it is written: its vectors, or codes of what they add to scores."""
        bits = int(self.config.hyper["bits"])
        if bits == 32:
            return {weights.SPECTRUM: vectors}
        parts = code_weights(eigenvalues, chosen.form, chosen.saturation)
        return code_tensors(Codes.of(vectors, bits, seed=self.config.seed, weights=parts))

    def compare(self, hidden: HeldOut) -> dict[Candidate, float]:
        """The mean metric on the hidden items of each candidate, by rounds (``Search``)."""
        config, means, held = self.config, dict[Candidate, float](), dict[Any, Any]()
        log = self._log(self._name)
        if self._sampled(log):
            log = self._log(SAMPLE)
        counts, readers = log.counts(), None
        if self._asks_readers(log):
            name = SAMPLED_READERS if self._sampled(log) else READERS
            if name == SAMPLED_READERS:
                write_readers(config.directory, log, counts, name)
            readers = Readers(config.directory, log, name)
        with _reused_memory() if readers is not None else nullcontext():
            for candidates in config.search.rounds(means):
                new = [candidate for candidate in candidates if candidate not in means]
                for group in _groups(new):
                    means |= self._means(group, log, counts, readers, hidden, held)
        return {candidate: means[candidate] for candidate in config.search.eligible(means)}

    def _means(
        self,
        group: list[Candidate],
        log: Log,
        counts: NDArray[np.int32],
        readers: Readers | None,
        hidden: HeldOut,
        held: dict[Any, Any],
    ) -> dict[Candidate, float]:
        """The mean metric of candidates of one user power and one spectrum; ``held`` has the last spectrum."""
        import numpy as np

        config, first = self.config, group[0]
        log.user_power, spectral = first.user_power, None
        if first.spectral:
            factors = max(self._factors(candidate) for candidate in group)
            key = first.user_power, first.item_power, factors
            if key not in held:
                held.clear()
                held[key] = self._spectrum(log, counts, factors, first.item_power)
            spectral = held[key]
        degrees = np.maximum(counts, 1).astype(np.float32)[:, None]
        return self._ranked(Comparison(log, degrees, spectral, config.filter_factors, readers), group, hidden)

    def _ranked(self, comparison: Comparison, group: list[Candidate], hidden: HeldOut) -> dict[Candidate, float]:
        from concurrent.futures import ThreadPoolExecutor

        import numpy as np
        from threadpoolctl import threadpool_limits

        config, session = self.config, self.session
        sampled = self._sampled(comparison.log)
        left = History(config.directory, SAMPLE if sampled else self._name)
        tallies = {candidate: Tally(config.items, (METRIC,)) for candidate in group}
        share = 1 if comparison.readers is not None else -(-int(session.plan["user_block"]) // session.threads)
        parts = [range(start, min(start + share, len(hidden))) for start in range(0, len(hidden), share)]
        asked = sorted({candidate.asking for candidate in group})
        bar = session.progress(total=len(asked) * len(hidden), unit="user", label="choose")
        with ThreadPoolExecutor(session.threads) as pool, threadpool_limits(1, "blas"), bar:
            for asking in asked:
                own = [candidate for candidate in group if candidate.asking == asking]
                powers = comparison.powers()

                def rank(rows: range, own: list[Candidate] = own, powers: Powers = powers) -> list[list[Any]]:
                    histories = [left.items(int(hidden.users[row])) for row in rows]
                    if sampled:
                        return list(comparison.rankings(histories, own, DEPTH, powers))
                    (row,), (had,) = rows, histories
                    alone = int(hidden.users[row]), hidden.items(row)
                    kept = had[~np.isin(had, alone[1])]
                    return list(comparison.rankings([kept], own, DEPTH, powers, alone))

                for start in range(0, len(parts), session.threads):
                    some = parts[start : start + session.threads]
                    for rows, rankings in zip(some, pool.map(rank, some), strict=True):
                        for candidate, ranked in zip(own, rankings, strict=True):
                            tallies[candidate].add_all(ranked, [hidden.items(row) for row in rows])
                        bar.update(len(rows))
                    if session.stopping:
                        raise KeyboardInterrupt
        left.close()
        return {candidate: tally.means()[METRIC] for candidate, tally in tallies.items()}


def _groups(candidates: list[Candidate]) -> Iterator[list[Candidate]]:
    """Candidates of one user power, and of one item power where they have a spectrum."""
    groups: dict[tuple[float, float | None], list[Candidate]] = {}
    for candidate in candidates:
        key = candidate.user_power, candidate.item_power if candidate.spectral else None
        groups.setdefault(key, []).append(candidate)
    yield from groups.values()


@contextmanager
def _reused_memory() -> Iterator[None]:
    """Keep freed blocks of a few MiB for the next user, where mapping them anew takes as long as the scores."""
    glibc.unpin_thresholds()
    try:
        yield
    finally:
        glibc.pin_thresholds()
        glibc.trim()
