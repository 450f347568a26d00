"""Scores of a linear filter: the interactions themselves, and what a spectrum changes of them.

With x a history, D the items' numbers of users, P = R~' R~ (``spectrum``) and its eigenvectors V with eigenvalues l::

    scores = D^b (P + V (h(l) - l) V') D^-b x        filter; without a spectrum the second term is missing
    scores = D^b V h(l) V' D^-b x                    spectral

``h(l) = l c / (l + c)`` is the response of ridge regression with c as its ridge: small eigenvalues pass as they are,
large ones, which are tastes that everybody shares, count less. b, the ``degree_power``, shifts weight between popular
items (large) and rare ones; c is the ``saturation``. Both are chosen on hidden items (``training.fit_linear``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from apps.recsys.models.linear.coded import CodedScorer, CodedSpectrum
from apps.recsys.models.scorers import FactorScorer, Scorer
from common.compression.codes import Codes

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from apps.recsys.models.linear.log import Added, Log

    Sample = tuple[NDArray[Any], NDArray[np.float32]]


POPULAR = 1e-15
"""Orders items that would otherwise have equal scores of 0 by their number of users: 1e-11 for 10,000 of them."""


def response(eigenvalues: NDArray[np.float32], saturation: float) -> NDArray[np.float32]:
    """``l c / (l + c)``: how much of each eigenvector passes.

    Examples
    --------
    >>> response(np.array([1, 0.5], np.float32), 1.0)
    array([0.5       , 0.33333334], dtype=float32)
    """
    passed: NDArray[Any] = eigenvalues * saturation / (eigenvalues + saturation)
    return passed.astype(eigenvalues.dtype)


@dataclass(frozen=True, slots=True)
class Spectrum:
    """Eigenvectors of P, shape (items, factors), and their eigenvalues, shape (factors,)."""

    vectors: NDArray[np.float32]
    eigenvalues: NDArray[np.float32]


class SpectralTerm(Protocol):
    """A symmetric matrix of items by items that a filter adds to P, as an operator."""

    def product(self, questions: NDArray[np.float32]) -> NDArray[np.float32]:
        """Multiply columns, shape (items, n), with the matrix; a new array."""
        ...

    def between(self, items: NDArray[Any], rows: NDArray[Any]) -> NDArray[np.float64]:
        """Some rows and columns of the matrix, shape (items, rows)."""
        ...


class _Change:
    """``V (h(l) - l) V'`` by the eigenvectors themselves."""

    def __init__(self, spectrum: Spectrum, saturation: float) -> None:
        self._vectors = spectrum.vectors
        self._change = response(spectrum.eigenvalues, saturation) - spectrum.eigenvalues

    def product(self, questions: NDArray[np.float32]) -> NDArray[np.float32]:
        coefficients = self._change[:, None] * (self._vectors.T @ questions)
        added: NDArray[np.float32] = self._vectors @ coefficients
        return added

    def between(self, items: NDArray[Any], rows: NDArray[Any]) -> NDArray[np.float64]:
        import numpy as np

        changed = (self._vectors[items] * self._change).astype(np.float64)
        term: NDArray[np.float64] = changed @ self._vectors[rows].T.astype(np.float64)
        return term


def code_weights(eigenvalues: NDArray[np.float32], form: str, saturation: float) -> NDArray[np.float32]:
    """Weights of the eigenvectors before they are encoded: the roots of what passes, or of what a filter takes away."""
    import numpy as np

    passed = response(eigenvalues, saturation)
    weights: NDArray[np.float32] = np.sqrt(passed if form == "spectral" else np.maximum(eigenvalues - passed, 0))
    return weights


class FilterScorer:
    """Scores all items for histories.

    Parameters
    ----------
    log
        The interactions.
    counts
        Users of each item, shape (items,).
    degree_power
        b.
    saturation
        c; only used with a spectrum of float32 numbers: codes contain it.
    spectrum
        The largest eigenvalues of P, as numbers or as codes; ``None``: the interactions alone.
    """

    def __init__(
        self,
        log: Log,
        counts: NDArray[np.int32],
        *,
        degree_power: float,
        saturation: float = 1.0,
        spectrum: Spectrum | Codes | None = None,
    ) -> None:
        import numpy as np

        self.items, self.counts = len(counts), counts
        self._log, self._term = log, _term(spectrum, saturation)
        self._degrees = np.maximum(counts, 1).astype(np.float32)
        self._power = np.float32(degree_power)

    def workspace(self, users: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Arrays that ``scores`` uses for as many users at most."""
        import numpy as np

        return np.empty(self.items * users, np.float32), np.empty(self.items * users, np.float32)

    def scores(
        self, histories: Sequence[Sample], workspace: tuple[NDArray[np.float32], NDArray[np.float32]]
    ) -> NDArray[np.float32]:
        """Score all items.

        Parameters
        ----------
        histories
            Items and values of each of n users; the values are not used.
        workspace
            From ``workspace``.

        Returns
        -------
        NDArray
            Shape (n, items); a view of the workspace.
        """
        questions, out = self._columns(workspace, len(histories))
        for column, (items, _) in enumerate(histories):
            questions[items, column] = 1
        return self._answer(questions, out).T

    def add(self, added: Added, counts: NDArray[np.int32]) -> None:
        """Score by further interactions too; the spectrum stays as it is.

        Parameters
        ----------
        added
            The interactions that came since.
        counts
            Users of each item with them, shape (items,).
        """
        import numpy as np

        self._log.added = added
        self._degrees = np.maximum(counts, 1).astype(np.float32)

    def _columns(
        self, workspace: tuple[NDArray[np.float32], NDArray[np.float32]], count: int
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Questions of zeros and room for answers, shape (items, count) each and contiguous."""
        questions, out = (array[: self.items * count].reshape(self.items, count) for array in workspace)
        questions[:] = 0
        return questions, out

    def _answer(self, questions: NDArray[np.float32], out: NDArray[np.float32]) -> NDArray[np.float32]:
        """Scores for columns x, shape (items, n), which are overwritten."""
        degrees, b = self._degrees[:, None], self._power
        shared_scores(self._log, questions, out, degrees, b)
        if self._term is not None:
            added = self._term.product(questions)
            added *= degrees**b
            out += added
        return out

    def contributions(
        self, items: NDArray[Any], values: NDArray[np.float32], rows: NDArray[Any]
    ) -> NDArray[np.float64]:
        """Split the scores of the items ``rows``, shape (m,), by the items of a history: shape (m, n)."""
        import numpy as np

        scaled = self._degrees.astype(np.float64)
        questions, out = self._columns(self.workspace(len(rows)), len(rows))
        questions[rows, np.arange(len(rows))] = 1
        degrees = self._degrees[:, None]
        questions *= degrees**-0.5
        shared = self._log.gram(questions, out)[items].astype(np.float64) * scaled[items, None] ** -0.5
        if self._term is not None:
            shared += self._term.between(items, rows)
        b = float(self._power)
        parts: NDArray[np.float64] = shared.T * scaled[rows, None] ** b * scaled[items] ** -b
        return parts

    def similarities(self, row: int) -> NDArray[np.float32]:
        """Cosines between the columns of R~ of one item and of all: how far two items share their users."""
        import numpy as np

        questions, out = self._columns(self.workspace(1), 1)
        questions[row] = 1
        shared = self._log.gram(questions, out)[:, 0]
        own = np.zeros(self.items, np.float32)
        for block, degrees in self._log.blocks():
            own += block.T @ (1 / degrees)
        shared /= np.sqrt(np.maximum(own * own[row], np.float32(1e-12)))
        return shared

    def closeness(self, rows: NDArray[Any]) -> NDArray[np.float32]:
        """The same cosines among the items ``rows``, shape (n,), by one pass over the interactions: shape (n, n)."""
        import numpy as np

        shared = np.zeros((len(rows), len(rows)), np.float32)
        for block, degrees in self._log.blocks():
            some = block[:, rows]
            some.data = np.repeat(degrees**-0.5, np.diff(some.indptr))
            shared += (some.T @ some).toarray()
        own = np.sqrt(np.maximum(shared.diagonal(), np.float32(1e-12)))
        shared /= own
        shared /= own[:, None]
        return shared


def _term(spectrum: Spectrum | Codes | None, saturation: float) -> SpectralTerm | None:
    if spectrum is None:
        return None
    return CodedSpectrum(spectrum) if isinstance(spectrum, Codes) else _Change(spectrum, saturation)


def shared_scores(
    log: Log, questions: NDArray[np.float32], out: NDArray[np.float32], degrees: NDArray[np.float32], power: np.float32
) -> None:
    """Compute ``D^b P D^-b x`` into ``out``, and make x ``D^-b x``; columns of shape (items, n), ``degrees`` of one.

    Items that share no user with the history have a score of 0, but for ``POPULAR`` times their number of users.
    """
    questions *= degrees ** (-power - 0.5)
    log.gram(questions, out)
    out *= degrees ** (power - 0.5)
    out += POPULAR * degrees
    questions *= degrees**0.5


def linear_scorer(
    log: Log, counts: NDArray[np.int32], hyper: Mapping[str, Any], spectrum: Spectrum | Codes | None
) -> Scorer:
    """Make the scorer of a linear model.

    Parameters
    ----------
    log, counts
        As for ``FilterScorer``.
    hyper
        Hyper-parameters: ``form``, ``degree_power``, ``saturation``.
    spectrum
        The largest eigenvalues of P, as numbers, which are changed, or as codes; a spectral model must have them.
    """
    power, saturation = float(hyper["degree_power"]), float(hyper["saturation"])
    if hyper["form"] == "spectral" and spectrum is not None:
        if isinstance(spectrum, Codes):
            return CodedScorer(spectrum, counts, degree_power=power)
        return spectral_scorer(counts, spectrum, degree_power=power, saturation=saturation)
    return FilterScorer(log, counts, degree_power=power, saturation=saturation, spectrum=spectrum)


def spectral_scorer(
    counts: NDArray[np.int32], spectrum: Spectrum, *, degree_power: float, saturation: float
) -> FactorScorer:
    """Make a scorer by item vectors ``D^b V h(l)^1/2``, changed in place from V.

    A user's vector is the sum of the items' vectors, each divided by the item's number of users to the power 2 b.
    """
    import numpy as np

    degrees, b = np.maximum(counts, 1).astype(np.float32), np.float32(degree_power)
    factors = spectrum.vectors
    factors *= np.sqrt(response(spectrum.eigenvalues, saturation))
    factors *= degrees[:, None] ** b
    shares = degrees ** (-2 * b)

    def fold_in(items: NDArray[Any], values: NDArray[np.float32]) -> NDArray[np.float32]:
        vector: NDArray[np.float32] = shares[items] @ factors[items]
        return vector

    def contributions(items: NDArray[Any], values: NDArray[np.float32]) -> NDArray[np.float64]:
        parts: NDArray[np.float64] = shares[items, None].astype(np.float64) * factors[items]
        return parts

    return FactorScorer(factors, fold_in, contributions)
