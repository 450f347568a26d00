"""Fit a linear model: choose its form and its two numbers on hidden items, then compute its spectrum.

What the command line leaves open (``auto``) is chosen by NDCG@20 on items that are hidden from the interactions
meanwhile (``hide_alike``). All candidates rank for the same users.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from apps.recsys.data import splits
from apps.recsys.data.csr_store import History
from apps.recsys.data.splits import HeldOut, Kept
from apps.recsys.evaluation.metrics import Tally
from apps.recsys.models import weights
from apps.recsys.models.linear.filter import code_weights, response, shared_scores
from apps.recsys.models.linear.log import TRAINED, Log, forget_trained, write_trained
from apps.recsys.models.linear.options import AUTO
from apps.recsys.models.linear.readers import Readers, ReaderScores, likeness, uses_readers, write_readers
from apps.recsys.models.linear.spectrum import ITERATIONS, spectrum
from apps.recsys.models.top_k import top_k
from apps.recsys.training.hide_alike import hide_alike
from common.compression.codes import Codes

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
FINER_POWER, FINER_SATURATION = 0.05, 2**0.5
"""Steps from the best candidate to those that are compared after it."""
MANY = 10
"""Scores left per wanted one above which each column is searched by itself: sorting more would take much memory."""
SAMPLE = "sampled"
"""Name of the files with the interactions that are left while items are hidden."""


Choice = TypeVar("Choice")


@dataclass(frozen=True, slots=True)
class Candidate:
    """A form of the model with its two numbers."""

    form: str
    degree_power: float
    saturation: float
    """Infinite for a filter without a spectrum."""

    @property
    def settings(self) -> dict[str, Any]:
        """Its hyper-parameters; without a spectrum the saturation has no meaning, and is 1, as the ridge of EASE."""
        saturation = self.saturation if math.isfinite(self.saturation) else 1.0
        return {"form": self.form, "degree_power": self.degree_power, "saturation": saturation, "ridge": 1.0}

    def __str__(self) -> str:
        return f"form={self.form} degree_power={self.degree_power:g} saturation={self.saturation:g}"

    def neighbours(self, *, powers: bool, saturations: bool) -> list[Candidate]:
        """Candidates between this one and those of the grid, along the numbers that are open; without this one."""
        near = [round(self.degree_power + step, 3) for step in (-FINER_POWER, 0.0, FINER_POWER)]
        steps = (1 / FINER_SATURATION, 1.0, FINER_SATURATION) if math.isfinite(self.saturation) else (1.0,)
        made = [
            Candidate(self.form, power, round(self.saturation * step, 4))
            for power in (near if powers else near[1:2])
            for step in (steps if saturations else (1.0,))
            if 0 <= power <= 1
        ]
        return [candidate for candidate in made if candidate != self]


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
        config, candidates = self.config, self.config.candidates
        self.arrange()
        ordered: list[tuple[Candidate, float]] = []
        if len(candidates) > 1:
            ordered = self.ranked(lambda hidden: self._compare(candidates, hidden), str)
        tried = [{**one.settings, "factors": self._factors(one), METRIC: mean} for one, mean in ordered]
        chosen = ordered[0][0] if ordered else candidates[0]
        with self.session.phase("fit"):
            log = Log(config.directory, config.items)
            counts = log.counts()
            tensors: dict[str, Any] = {weights.COUNTS: counts}
            if uses_readers(chosen.form, log.history.size):
                self._write_readers(log, counts, chosen)
            factors = self._factors(chosen)
            if factors:
                vectors, tensors[weights.EIGENVALUES] = self._spectrum(log, counts, factors)
                tensors |= self._stored(vectors, tensors[weights.EIGENVALUES], chosen)
        return Fitted(tensors, {**chosen.settings, "factors": factors}, tried)

    def _write_readers(self, log: Log, counts: NDArray[np.int32], chosen: Candidate) -> None:
        """Write the users of each item, and say what the bounds of a single user's answer change."""
        import numpy as np

        directory = self.config.directory
        write_readers(directory, log, counts)
        degrees, power = np.maximum(counts, 1).astype(np.float32), np.float32(chosen.degree_power)
        scores = ReaderScores(Readers(directory, log), degrees, power)
        self.session.say(str(likeness(scores, log, seed=self.config.seed)))

    def ranked(
        self, compare: Callable[[HeldOut], Mapping[Choice, float]], named: Callable[[Choice], str]
    ) -> list[tuple[Choice, float]]:
        """Compare candidates on hidden items, and say which is the best.

        Parameters
        ----------
        compare
            Returns the mean metric of each candidate on these hidden items.
        named
            Settings of a candidate, as the line has them.

        Returns
        -------
        list
            Candidates with their metric, the best first; empty where no items can be hidden.
        """
        hidden = self.hide()
        if hidden is None:
            return []
        with self.session.phase("fit"):
            means = compare(hidden)
        splits.forget_validation(self.config.directory)
        forget_trained(self.config.directory, SAMPLE)
        ordered = sorted(means.items(), key=lambda pair: -pair[1])
        best, mean = ordered[0]
        self.session.say(f"chosen on hidden items of {len(hidden):,} users: {named(best)} ({METRIC} {mean:.4f})")
        return ordered

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
            block = int(self.session.plan["user_block"])
            if not hide_alike(directory, log, name, log.counts(), block=block, seed=config.seed):
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

    def _compare(self, candidates: list[Candidate], hidden: HeldOut) -> dict[Candidate, float]:
        """The mean metric on the hidden items of each candidate, then of the neighbours of the best one."""
        import numpy as np

        config = self.config
        log = Log(config.directory, config.items, SAMPLE)
        counts = log.counts()
        spectral = self._spectrum(log, counts, config.factors) if config.factors else None
        degrees = np.maximum(counts, 1).astype(np.float32)[:, None]
        comparison = _Comparison(log, degrees, spectral, config.filter_factors)
        means = self._means(comparison, candidates, hidden)
        open_powers, open_saturations = (config.hyper[name] == AUTO for name in ("degree_power", "saturation"))
        finer = max(means, key=means.__getitem__).neighbours(powers=open_powers, saturations=open_saturations)
        return means | self._means(comparison, finer, hidden)

    def _means(self, comparison: _Comparison, candidates: list[Candidate], hidden: HeldOut) -> dict[Candidate, float]:
        """The mean metric of each candidate."""
        from concurrent.futures import ThreadPoolExecutor

        from threadpoolctl import threadpool_limits

        config, session = self.config, self.session
        left = History(config.directory, SAMPLE)
        tallies = {candidate: Tally(config.items, (METRIC,)) for candidate in candidates}
        share = -(-int(session.plan["user_block"]) // session.threads)
        groups = [range(start, min(start + share, len(hidden))) for start in range(0, len(hidden), share)]
        powers = sorted({candidate.degree_power for candidate in candidates})
        bar = session.progress(total=len(powers) * len(hidden), unit="user", label="choose")
        with ThreadPoolExecutor(session.threads) as pool, threadpool_limits(1, "blas"), bar:
            for power in powers:
                own = [candidate for candidate in candidates if candidate.degree_power == power]

                def rank(rows: range, power: float = power, own: list[Candidate] = own) -> list[list[Any]]:
                    histories = [left.items(int(hidden.users[row])) for row in rows]
                    return list(comparison.rankings(histories, power, own, DEPTH))

                for first in range(0, len(groups), session.threads):
                    some = groups[first : first + session.threads]
                    for rows, rankings in zip(some, pool.map(rank, some), strict=True):
                        for candidate, ranked in zip(own, rankings, strict=True):
                            for row, ranking in zip(rows, ranked, strict=True):
                                tallies[candidate].add(ranking, hidden.items(row))
                        bar.update(len(rows))
                    if session.stopping:
                        raise KeyboardInterrupt
        return {candidate: tally.means()[METRIC] for candidate, tally in tallies.items()}


@dataclass(frozen=True, slots=True)
class _Comparison:
    """Ranks by several candidates that share the products with the interactions and the eigenvectors."""

    log: Log
    degrees: NDArray[np.float32]
    """Users of each item, shape (items, 1)."""
    spectrum: tuple[NDArray[np.float32], NDArray[np.float32]] | None
    filter_factors: int
    """Most eigenvalues of a filter; a spectral model uses all."""

    def rankings(
        self, histories: list[NDArray[Any]], power: float, candidates: list[Candidate], depth: int
    ) -> Iterator[list[NDArray[np.intp]]]:
        """Yield the rankings of all histories by each candidate; all have the degree power ``power``."""
        import numpy as np

        shape, b = (len(self.degrees), len(histories)), np.float32(power)
        questions, shared = np.zeros(shape, np.float32), np.empty(shape, np.float32)
        own = np.concatenate(histories), np.repeat(np.arange(len(histories)), [len(items) for items in histories])
        questions[own] = 1
        if any(candidate.form == "filter" for candidate in candidates):
            shared_scores(self.log, questions, shared, self.degrees, b)
            shared[own] = -np.inf
        else:
            questions *= self.degrees**-b
        coefficients = self.spectrum[0].T @ questions if self.spectrum is not None else None
        added, best = questions, None
        for candidate in candidates:
            scores = shared
            if coefficients is not None and self.spectrum is not None and math.isfinite(candidate.saturation):
                used = slice(self.filter_factors if candidate.form == "filter" else None)
                vectors, eigenvalues = self.spectrum[0][:, used], self.spectrum[1][used]
                passed = response(eigenvalues, candidate.saturation)
                if candidate.form == "filter":
                    passed -= eigenvalues
                scores = np.matmul(vectors, passed[:, None] * coefficients[used], out=added)
                scores *= self.degrees**b
                if candidate.form == "filter":
                    scores += shared
                else:
                    scores[own] = -np.inf
            best = best_columns(scores, depth, best)
            yield list(best)


def best_columns(
    scores: NDArray[np.float32], depth: int, likely: Sequence[NDArray[np.intp]] | None = None
) -> list[NDArray[np.intp]]:
    """Rows of the largest scores of each column, as ``top_k`` orders them.

    Parameters
    ----------
    scores
        Shape (items, n).
    depth
        Number of rows.
    likely
        Rows that are likely among them, for each column, from similar scores. The ``depth``-th largest score is at
        least the smallest one of theirs, so all smaller ones are left out at once.

    Examples
    --------
    >>> best_columns(np.array([[1.0, 0.0], [3.0, 2.0], [2.0, 5.0]], np.float32), 2)
    [array([1, 2]), array([2, 1])]
    """
    import numpy as np

    columns, mask = np.arange(scores.shape[1]), None
    if likely is not None and all(len(rows) == depth for rows in likely):
        least = scores[np.stack(list(likely)), columns[:, None]].min(1)
        mask = scores >= np.maximum(least, np.finfo(np.float32).min)
    if mask is None or int(np.count_nonzero(mask)) > MANY * depth * len(columns):
        return [top_k(scores[:, column].copy(), depth) for column in columns]
    rows, owners = np.nonzero(mask)
    order = np.lexsort((rows, -scores[rows, owners], owners))
    rows, owners = rows[order], owners[order]
    firsts = np.searchsorted(owners, [*columns, len(columns)])
    return [rows[start : min(start + depth, stop)] for start, stop in pairwise(firsts)]
