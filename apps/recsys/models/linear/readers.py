"""Scores of a large filter user by user, by the readers of the user's items, with bounded work.

A pass over all interactions takes 3.3 ns each: 0.2 s for 60 million. Instead the users who share an item with the
history (*readers*, from ``readers.*.npy``: the users of each item) and their histories are read from the disk, and
nothing else. Popular items have many readers, so both numbers are bounded: those readers are kept whose shared items
weigh most for their histories' lengths (``docs/recsys.md`` has what that costs and what else was tried).
Below the bounds the scores are exact.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apps.recsys.data.csr_store import NpyReader, NpyWriter, ranges
from apps.recsys.models.linear.log import user_powers
from apps.recsys.models.top_k import top_k
from common.errors import BadInput

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from apps.recsys.models.linear.log import Log

NAME = "readers"
"""Name of the files with the users of each item."""
BOUNDED_FROM = 2_000_000
"""Interactions from which single users are answered by readers: a pass over fewer takes less than 7 ms."""
READ, KEPT, PRODUCTS = 1 << 15, 2_000, 400_000
"""Most readers that are looked at, most that are kept, and most interactions of these. A reader takes 1.1 us, an
interaction 4 ns; with 60 million interactions of a million users and items, 99 in 100 users have fewer than 115,000
readers."""
POPULAR = 1e-15
"""Orders items that would otherwise have equal scores of 0 by their number of users: 1e-11 for 10,000 of them."""
SAMPLE, DEPTH = 100, 20
"""Users for whom a training measures what the bounds change, and the items of a list that it compares."""
CHUNK = 1 << 24
"""Interactions that are put in the order of their items at a time."""


def uses_readers(form: str, interactions: int) -> bool:
    """True for a linear model that has ``readers.*.npy``, if ``interactions`` were trained on."""
    return form == "filter" and interactions > BOUNDED_FROM


def write_readers(directory: Path, log: Log, counts: NDArray[np.int32], name: str = NAME) -> None:
    """Write the users of each item: ``NAME.indptr.npy`` (int64, items + 1) and ``NAME.users.npy`` (int32).

    Parameters
    ----------
    directory, name
        Folder and name of the files.
    log
        The interactions, which are read once for each ``CHUNK`` of them.
    counts
        Users of each item, shape (items,).
    """
    import numpy as np

    indptr = np.zeros(len(counts) + 1, np.int64)
    np.cumsum(counts, out=indptr[1:])
    with NpyWriter(directory / f"{name}.indptr.npy", "<i8") as starts:
        starts.append(indptr)
    with NpyWriter(directory / f"{name}.users.npy", "<i4") as users:
        for first, last in ranges(indptr, CHUNK):
            users.append(_users(log, indptr[first : last + 1] - indptr[first], first))


def _users(log: Log, starts: NDArray[np.int64], first: int) -> NDArray[np.int32]:
    """The users of consecutive items, from the item ``first``; ``starts`` are their offsets."""
    import numpy as np

    users, free, user = np.empty(starts[-1], np.int32), starts[:-1].copy(), 0
    for block, _ in log.blocks():
        some = block[:, first : first + len(free)] if len(free) < block.shape[1] else block
        by_item = some.tocsc()
        lengths = np.diff(by_item.indptr)
        places = np.repeat(free - by_item.indptr[:-1], lengths)
        places += np.arange(len(places))
        users[places] = by_item.indices
        users[places] += user
        free += lengths
        user += block.shape[0]
    return users


@dataclass(frozen=True, slots=True)
class Shared:
    """The readers of a history, each once."""

    users: NDArray[np.int32]
    """Their rows, increasing."""
    weights: NDArray[np.float32]
    """Sums of the weights of the items that they share with the history."""
    exact: bool
    """True if these are all readers of all items."""
    items: NDArray[np.intp]
    """For each pair of a reader and an item of the history, the place of the item in it."""
    owners: NDArray[np.intp]
    """The place of the reader among ``users``, increasing."""
    scales: NDArray[np.float32]
    """Readers that each one of an item's stands for, by the item's place; not for ``Readers.parts``."""


class Readers:
    """The users of each item, and the histories of these.

    Parameters
    ----------
    directory, name
        Folder and name of the files.
    log
        The interactions.
    """

    def __init__(self, directory: Path, log: Log, name: str = NAME) -> None:
        import numpy as np

        self._path, self._history, self._log = directory / f"{name}.users.npy", log.history, log
        self._indptr: NDArray[np.int64] = NpyReader(directory / f"{name}.indptr.npy")[:]
        self._users, self.items = NpyReader(self._path), log.items
        lengths = np.diff(self._indptr)
        fits = len(lengths) == log.items and (lengths >= 0).all() and self._indptr[0] == 0
        if not fits or not self._indptr[-1] == self._users.length == self._history.size:
            raise self._damaged()

    @staticmethod
    def of(directory: Path, log: Log) -> Readers | None:
        """Open those of a model; ``None`` if it has none."""
        return Readers(directory, log) if (directory / f"{NAME}.users.npy").exists() else None

    def _damaged(self) -> BadInput:
        return BadInput(f"{self._path}: the users of the items are damaged", public="model file corrupt")

    def shared(self, items: NDArray[Any], weights: NDArray[np.float32]) -> Shared:
        """Find the readers of a history, but look at ``READ`` at most: of popular items at even distances.

        Parameters
        ----------
        items, weights
            Rows of items and their weights, shape (n,) each, above 0.
        """
        import numpy as np

        starts, stops = self._indptr[items], self._indptr[items + 1]
        steps = np.maximum(-((starts - stops) // _level(stops - starts, READ)), 1)
        return self._shared(np.arange(len(items)), starts, stops, steps, weights)

    def parts(self, items: NDArray[Any], weights: NDArray[np.float32]) -> Iterator[Shared]:
        """All readers of a history, by parts of ``READ`` at most; a reader may be in several parts."""
        import numpy as np

        starts, stops = self._indptr[items], self._indptr[items + 1]
        cuts = -((starts - stops) // READ)
        places, lasts = np.repeat(np.arange(len(items)), cuts), np.cumsum(cuts)
        firsts = starts[places] + READ * (np.arange(len(places)) - np.repeat(lasts - cuts, cuts))
        ends = np.minimum(firsts + READ, stops[places])
        for first, last in ranges(np.concatenate([[0], np.cumsum(ends - firsts)]), READ):
            some, ones = places[first:last], np.ones(last - first, np.int64)
            yield self._shared(some, firsts[first:last], ends[first:last], ones, weights[some])

    def _shared(
        self,
        places: NDArray[np.intp],
        starts: NDArray[np.int64],
        stops: NDArray[np.int64],
        steps: NDArray[np.int64],
        weights: NDArray[np.float32],
    ) -> Shared:
        """Readers from slices of the file, every ``steps``-th one, of the items at ``places`` of a history."""
        import numpy as np

        length, read, cut = stops - starts, -((starts - stops) // steps), steps > 1
        scales = (length / np.maximum(read, 1)).astype(np.float32)
        parts = zip(starts[cut], stops[cut], steps[cut], strict=True)
        some = [self._users[start:stop][::step].copy() for start, stop, step in parts]
        users = np.concatenate([self._users.gathered(starts[~cut], stops[~cut]), *some])
        if len(users) != read.sum() or (len(users) and not 0 <= users.min() <= users.max() < self._history.rows):
            raise self._damaged()
        # Users with their slices as one number each, of which many are in order: 1.8 ms for 65,536, an argsort 3.0.
        read_order = np.concatenate([np.flatnonzero(~cut), np.flatnonzero(cut)])
        bits = len(read).bit_length()
        keys = users.astype(np.int64) << bits
        keys |= np.repeat(read_order, read[read_order])
        keys.sort(kind="stable")
        users, slices = (keys >> bits).astype(np.int32), keys & ((1 << bits) - 1)
        first = np.ones(len(users), bool)
        np.not_equal(users[1:], users[:-1], out=first[1:])
        sums = np.zeros(0, np.float32)
        if len(users):
            sums = np.add.reduceat((weights * scales)[slices], np.flatnonzero(first))
        exact = bool((steps <= 1).all())
        return Shared(users[first], sums, exact, places[slices], np.cumsum(first) - 1, scales)

    def lengths(self, users: NDArray[Any]) -> NDArray[np.int64]:
        """Numbers of items of some users."""
        lengths: NDArray[np.int64] = self._history.indptr[users + 1] - self._history.indptr[users]
        return lengths

    def powers(self, users: NDArray[Any]) -> NDArray[np.float32]:
        """Numbers of items of some users to the power u of the log."""
        return user_powers(self.lengths(users), self._log.user_power)

    def kept(self, shared: Shared) -> NDArray[np.intp]:
        """Places of the readers that are kept within the bounds, increasing; all if they are within them."""
        import numpy as np

        lengths = self.lengths(shared.users)
        if len(lengths) <= KEPT and lengths.sum() <= PRODUCTS:
            return np.arange(len(lengths))
        # The length of the vector that a reader adds.
        value = shared.weights * np.sqrt(lengths) / self.powers(shared.users)
        best = np.argpartition(-value, KEPT - 1)[:KEPT] if len(value) > KEPT else np.arange(len(value))
        best = best[np.argsort(-value[best])]
        count = max(1, int(np.searchsorted(np.cumsum(lengths[best]), PRODUCTS, side="right")))
        places: NDArray[np.intp] = np.sort(best[:count])
        return places

    def rows(self, users: NDArray[Any]) -> Any:
        """Histories of some users as a SciPy matrix of ones, shape (n, items)."""
        import numpy as np
        import scipy.sparse

        items = self._history.gathered(users)
        offsets = np.zeros(len(users) + 1, np.int32)
        np.cumsum(self.lengths(users), out=offsets[1:])
        ones = np.ones(len(items), np.float32)
        return scipy.sparse.csr_matrix((ones, items, offsets), shape=(len(users), self.items), copy=False)

    def added(self, shared: Shared, kept: NDArray[np.intp]) -> NDArray[np.float32]:
        """Sum the histories of kept readers, each by its weight and over its length to the power u: shape (items,), a
        new array."""
        users = shared.users[kept]
        shares = shared.weights[kept] / self.powers(users)
        sums: NDArray[np.float32] = self.rows(users).T @ shares
        return sums

    def alike(self, item: int) -> NDArray[np.float32]:
        """What the readers of one item add to all items, within the bounds: a column of ``R' Du^-u R``."""
        import numpy as np

        shared = self.shared(np.array([item]), np.ones(1, np.float32))
        return self.added(shared, self.kept(shared))

    def pieces(self, shared: Shared) -> Iterator[NDArray[np.intp]]:
        """Places of all readers, by pieces of at most ``PRODUCTS`` interactions, but of at least one reader."""
        import numpy as np

        ends = np.concatenate([[0], np.cumsum(self.lengths(shared.users))])
        for start, stop in ranges(ends, PRODUCTS):
            yield np.arange(start, stop)


def _level(lengths: NDArray[np.int64], most: int) -> int:
    """The number to which the largest are cut, so that the sum is at most ``most``; at least 1.

    Examples
    --------
    >>> import numpy as np
    >>> _level(np.array([1, 9, 4]), 8)
    3
    """
    import numpy as np

    ordered = np.sort(lengths)
    smaller = np.concatenate([[0], np.cumsum(ordered)[:-1]])
    levels = (most - smaller) // np.arange(len(ordered), 0, -1)
    cut = np.flatnonzero(levels < ordered)
    return max(1, int(levels[cut[0]])) if len(cut) else int(ordered.max(initial=1))


class ReaderScores:
    """Scores ``D^b P D^-b x`` of single histories (``filter``), within the bounds of this module.

    Parameters
    ----------
    readers
        The users of each item.
    degrees
        Their numbers, at least 1, shape (items,).
    power, item_power
        b and a.
    """

    def __init__(
        self, readers: Readers, degrees: NDArray[np.float32], power: np.float32, item_power: float = 0.5
    ) -> None:
        import numpy as np

        self.readers = readers
        self._popular = degrees * np.float32(POPULAR)
        a = np.float32(item_power)
        self._asking, self._answering = degrees ** (-power - a), degrees ** (power - a)

    def scores(self, items: NDArray[Any], out: NDArray[np.float32]) -> NDArray[np.float32]:
        """Score all items for a history: ``out``, shape (items,)."""
        shared = self.readers.shared(items, self._asking[items])
        return self._scaled(self.readers.added(shared, self.readers.kept(shared)), out)

    def compared(self, items: NDArray[Any]) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
        """The same in a new array, and the scores by all readers; ``None`` where those are the same."""
        readers, asking = self.readers, self._asking[items]
        shared = readers.shared(items, asking)
        kept = readers.kept(shared)
        scores = readers.added(shared, kept)
        self._scaled(scores, scores)
        if shared.exact and len(kept) == len(shared.users):
            return scores, None
        exact = scores * 0
        for part in readers.parts(items, asking):
            for piece in readers.pieces(part):
                exact += readers.added(part, piece)
        return scores, self._scaled(exact, exact)

    def _scaled(self, sums: NDArray[np.float32], out: NDArray[np.float32]) -> NDArray[np.float32]:
        import numpy as np

        np.multiply(sums, self._answering, out=out)
        out += self._popular
        return out

    def parts(self, items: NDArray[Any], rows: NDArray[Any]) -> NDArray[np.float64]:
        """Split the scores of the items ``rows``, shape (m,), by the items of a history, shape (n,): shape (m, n)."""
        import numpy as np
        import scipy.sparse

        shared = self.readers.shared(items, self._asking[items])
        kept = self.readers.kept(shared)
        users = shared.users[kept]
        place = np.full(len(shared.users), -1)
        place[kept] = np.arange(len(kept))
        pairs = place[shared.owners] >= 0
        had = shared.items[pairs]
        weights = (self._asking[items] * shared.scales).astype(np.float64)[had]
        shape = (len(users), len(items))
        by_item = scipy.sparse.csr_matrix((weights, (place[shared.owners[pairs]], had)), shape=shape)
        histories = self.readers.rows(users)[:, rows].astype(np.float64)
        histories.data /= np.repeat(self.readers.powers(users), np.diff(histories.indptr))
        parts: NDArray[np.float64] = (histories.T @ by_item).toarray() * self._answering[rows, None]
        return parts


@dataclass(frozen=True, slots=True)
class Likeness:
    """What the bounds change, measured."""

    users: int
    """Users of the sample."""
    exact: int
    """Those of them whose readers are within the bounds."""
    overlap: float
    """Mean share of the first ``DEPTH`` items by all readers that are among those by the kept ones, of all users."""

    def __str__(self) -> str:
        return (
            f"one user at a time: {self.exact} of {self.users} lists are exact, and all have {self.overlap:.1%} of the"
            f" exact {DEPTH} items: at most {KEPT:,} users with the same items are asked"
        )


def likeness(scores: ReaderScores, log: Log, *, seed: int) -> Likeness:
    """Compare the lists of ``SAMPLE`` users with those by all readers."""
    import numpy as np

    users = np.random.default_rng([seed, 3]).permutation(np.flatnonzero(np.diff(log.history.indptr)))[:SAMPLE]
    exact, overlap = 0, 0.0
    for user in users:
        items = log.history.items(int(user))
        bounded, every = scores.compared(items)
        exact += every is None
        if every is None:
            overlap += 1
            continue
        bounded[items] = every[items] = -np.inf
        best = top_k(every, DEPTH)
        overlap += float(np.isin(best, top_k(bounded, DEPTH)).sum()) / max(1, len(best))
    return Likeness(len(users), exact, overlap / max(1, len(users)))
