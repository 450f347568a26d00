"""Scores of a linear filter: the interactions themselves, and what a spectrum changes of them.

With x a history, D the items' numbers of users, P (``spectrum``) and its eigenvectors V with eigenvalues l::

    scores = D^b (P + V (h(l) - l) V') D^-b x        filter; without a spectrum the second term is missing
    scores = D^b V h(l) V' D^-b x                    spectral

``h(l) = l c / (l + c)``, with c relative to the largest l, is the response of ridge regression: small eigenvalues pass
as they are, large ones, which are tastes that everybody shares, count less. c is the ``saturation``. b, the
``degree_power``, shifts weight between popular items (large) and rare ones. All are chosen on hidden items
(``training.fit_linear``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from apps.recsys.models.linear import alike
from apps.recsys.models.linear.coded import CodedScorer, CodedSpectrum
from apps.recsys.models.linear.readers import POPULAR, Readers, ReaderScores
from apps.recsys.models.linear.spectral import Spectrum, response, spectral_scorer
from apps.recsys.models.scorers import Scorer
from common.compression.codes import BLOCK_ROWS, Codes
from common.compression.row_codes import RowCodes

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from apps.recsys.models.linear.log import Added, Log

    Sample = tuple[NDArray[Any], NDArray[np.float32]]


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
        import numpy as np

        rows = np.flatnonzero(questions.any(1))  # of one history a few: all would take as long as the second product
        coefficients = np.zeros((len(self._change), questions.shape[1]), np.float32)
        for start in range(0, len(rows), BLOCK_ROWS):
            some = rows[start : start + BLOCK_ROWS]
            coefficients += self._vectors[some].T @ questions[some]
        coefficients *= self._change[:, None]
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
    degree_power, item_power
        b and a; u is the log's.
    saturation
        c; only used with a spectrum of float32 numbers: codes contain it.
    spectrum
        The largest eigenvalues of P, as numbers or as codes; ``None``: the interactions alone.
    readers
        The users of each item, by which histories are scored one by one within bounds; ``None``: all are scored by a
        pass over the interactions.
    """

    def __init__(
        self,
        log: Log,
        counts: NDArray[np.int32],
        *,
        degree_power: float,
        item_power: float = 0.5,
        saturation: float = 1.0,
        spectrum: Spectrum | Codes | RowCodes | None = None,
        readers: Readers | None = None,
    ) -> None:
        import numpy as np

        self.items, self.counts = len(counts), counts
        self._log, self._term = log, _term(spectrum, saturation)
        self._degrees = np.maximum(counts, 1).astype(np.float32)
        self._power, self._item_power = np.float32(degree_power), np.float32(item_power)
        self._squares: NDArray[np.float32] | None = None
        self.by_readers = None
        if readers is not None:
            self.by_readers = ReaderScores(readers, self._degrees, self._power, item_power)

    def workspace(self, users: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Arrays that ``scores`` uses for as many users at most."""
        import numpy as np

        questions = 0 if self.by_readers is not None and self._term is None else self.items * users
        return np.empty(self.items * users, np.float32), np.empty(questions, np.float32)

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
        if self.by_readers is not None:
            return self._one_by_one(self.by_readers, histories, workspace)
        questions, out = self._columns(workspace, len(histories))
        for column, (items, _) in enumerate(histories):
            questions[items, column] = 1
        return self._answer(questions, out).T

    def _one_by_one(
        self,
        by_readers: ReaderScores,
        histories: Sequence[Sample],
        workspace: tuple[NDArray[np.float32], NDArray[np.float32]],
    ) -> NDArray[np.float32]:
        """Scores by readers, shape (n, items)."""
        answers = workspace[0][: self.items * len(histories)].reshape(len(histories), self.items)
        for row, (items, _) in zip(answers, histories, strict=True):
            by_readers.scores(items, row)
        if self._term is not None:
            questions, b = workspace[1][: answers.size].reshape(self.items, len(histories)), self._power
            questions[:] = 0
            for column, (items, _) in enumerate(histories):
                questions[items, column] = self._degrees[items] ** -b
            added = self._term.product(questions)
            added *= self._degrees[:, None] ** b
            answers += added.T
        return answers

    def add(self, added: Added, counts: NDArray[np.int32]) -> None:
        """Score by further interactions too; the spectrum stays as it is.

        A large filter scores by passes over all interactions from then on, since ``readers`` has the old ones alone.

        Parameters
        ----------
        added
            The interactions that came since.
        counts
            Users of each item with them, shape (items,).
        """
        import numpy as np

        self._log.added, self.by_readers = added, None
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
        shared_scores(self._log, questions, out, degrees, b, self._item_power)
        if self._term is not None:
            added = self._term.product(questions)
            added *= degrees**b
            out += added
        return out

    def contributions(
        self, items: NDArray[Any], values: NDArray[np.float32], rows: NDArray[Any]
    ) -> NDArray[np.float64]:
        """Split the scores of the items ``rows``, shape (m,), by the items of a history: shape (m, n).

        Each sum over a row is the item's score as ``scores`` has it.
        """
        import numpy as np

        scaled, b = self._degrees.astype(np.float64), float(self._power)
        if self.by_readers is not None:
            split = self.by_readers.parts(items, rows)
            if self._term is not None:
                split += self._term.between(items, rows).T * scaled[rows, None] ** b * scaled[items] ** -b
            return split
        questions, out = self._columns(self.workspace(len(rows)), len(rows))
        questions[rows, np.arange(len(rows))] = 1
        degrees = self._degrees[:, None]
        questions *= degrees**-self._item_power
        shared = self._log.gram(questions, out)[items].astype(np.float64)
        shared *= scaled[items, None] ** -float(self._item_power)
        if self._term is not None:
            shared += self._term.between(items, rows)
        parts: NDArray[np.float64] = shared.T * scaled[rows, None] ** b * scaled[items] ** -b
        return parts

    def similarities(self, row: int) -> NDArray[np.float32]:
        """Cosines between the columns of R~ of one item and of all: how far two items share their users."""
        if self.by_readers is not None:
            if self._squares is None:
                self._squares = alike.squares(self._log)
            return alike.similarities(alike.shared_by_readers(self.by_readers.readers, row), self._squares, row)
        questions, out = self._columns(self.workspace(1), 1)
        questions[row] = 1
        return alike.similarities(self._log.gram(questions, out)[:, 0], alike.squares(self._log), row)

    def closeness(self, rows: NDArray[Any]) -> NDArray[np.float32]:
        """The same cosines among the items ``rows``, shape (n,), by their readers or one pass: shape (n, n)."""
        return alike.closeness(self._log, self.by_readers.readers if self.by_readers is not None else None, rows)


def _term(spectrum: Spectrum | Codes | RowCodes | None, saturation: float) -> SpectralTerm | None:
    if spectrum is None:
        return None
    return CodedSpectrum(spectrum) if isinstance(spectrum, (Codes, RowCodes)) else _Change(spectrum, saturation)


def shared_scores(
    log: Log,
    questions: NDArray[np.float32],
    out: NDArray[np.float32],
    degrees: NDArray[np.float32],
    power: np.float32,
    item_power: np.float32,
) -> None:
    """Compute ``D^b P D^-b x`` into ``out``, and make x ``D^-b x``; columns of shape (items, n), ``degrees`` of one.

    Items that share no user with the history have a score of 0, but for ``POPULAR`` times their number of users.
    """
    questions *= degrees ** (-power - item_power)
    log.gram(questions, out)
    out *= degrees ** (power - item_power)
    out += POPULAR * degrees
    questions *= degrees**item_power


def item_power(hyper: Mapping[str, Any]) -> float:
    """a of a model; those of earlier versions have one half."""
    return float(hyper.get("item_power", 0.5))


def user_power(hyper: Mapping[str, Any]) -> float:
    """u of a model; those of earlier versions have 1."""
    return float(hyper.get("user_power", 1.0))


def linear_scorer(
    log: Log,
    counts: NDArray[np.int32],
    hyper: Mapping[str, Any],
    spectrum: Spectrum | Codes | RowCodes | None,
    readers: Readers | None = None,
) -> Scorer:
    """Make the scorer of a linear model.

    Parameters
    ----------
    log, counts, readers
        As for ``FilterScorer``.
    hyper
        Hyper-parameters: ``form``, ``degree_power``, ``item_power``, ``saturation``.
    spectrum
        The largest eigenvalues of P, as numbers, which are changed, or as codes; a spectral model must have them.
    """
    power, saturation = float(hyper["degree_power"]), float(hyper["saturation"])
    if hyper["form"] == "spectral" and spectrum is not None:
        if isinstance(spectrum, (Codes, RowCodes)):
            return CodedScorer(spectrum, counts, degree_power=power)
        return spectral_scorer(counts, spectrum, degree_power=power, saturation=saturation)
    numbers = {"degree_power": power, "item_power": item_power(hyper), "saturation": saturation}
    return FilterScorer(log, counts, **numbers, spectrum=spectrum, readers=readers)
