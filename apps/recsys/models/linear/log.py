"""The interactions of a linear model as an operator, applied from the disk by blocks of users.

With R the binary matrix of users and items and Du the diagonal matrix of the users' numbers of items, ``gram`` computes
``R' Du^-u R y`` without making that matrix: items squared would be 6.7 GB for 40,981 items, where R has 3.2 MB.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apps.recsys.data.csr_store import History, NpyWriter
from apps.recsys.data.splits import Kept

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

TRAINED = "trained"
"""Name of the files with the interactions that were trained on, where a split held some of the history out."""
BLOCK_INTERACTIONS = 1 << 20
"""Most interactions of a block; a single user may have more."""
LEAST_BLOCK_USERS, MOST_BLOCK_USERS = 1 << 14, 1 << 18
"""Users that a block may have at least, however few items there are, and at most."""
MORE_USERS = 1.5
"""Users of a block by those that it has where all histories have the mean length: a part of the file may have shorter
ones, and memory is planned for as many users."""


class Added:
    """Interactions that came after the training: pairs of users and items that the log does not have, each once.

    Parameters
    ----------
    users, items
        The pairs, shape (n,) each; users beyond those of the log are new ones.
    shape
        Numbers of all users and of the items.
    """

    def __init__(self, users: NDArray[np.int32], items: NDArray[np.int32], shape: tuple[int, int]) -> None:
        import numpy as np
        import scipy.sparse

        order = np.lexsort((items, users))
        ends = np.searchsorted(users[order], np.arange(shape[0] + 1)).astype(np.int32)
        ones = np.ones(len(items), np.float32)
        self.rows = scipy.sparse.csr_matrix((ones, items[order], ends), shape=shape, copy=False)
        """A row of ones for each user."""


class _Both:
    """Two sparse matrices of one shape, without an entry in common, as their sum."""

    def __init__(self, first: Any, second: Any) -> None:
        self._first, self._second = first, second

    def __matmul__(self, other: NDArray[Any]) -> NDArray[Any]:
        product: NDArray[Any] = self._first @ other
        product += self._second @ other
        return product

    def __getitem__(self, part: Any) -> Any:
        return (self._first[part] + self._second[part]).tocsr()

    @property
    def T(self) -> _Both:
        """The transposed sum."""
        return _Both(self._first.T, self._second.T)


class Log:
    """The interactions that were trained on.

    Parameters
    ----------
    directory
        A model folder, or the folder of an unfinished one.
    items
        Number of items.
    name
        Name of the files: ``TRAINED``, or ``"history"``; ``None``: ``TRAINED`` if there are such files.
    user_power
        u: a user counts one over his number of items to this power.
    """

    def __init__(self, directory: Path, items: int, name: str | None = None, *, user_power: float = 1.0) -> None:
        import numpy as np

        if name is None:
            name = TRAINED if (directory / f"{TRAINED}.indptr.npy").exists() else "history"
        self.items, self.user_power = items, user_power
        self.added: Added | None = None
        """What came since."""
        self.history = History(directory, name, columns=items)
        """Those of the files, read by rows."""
        self.part = range(self.history.rows)
        """Users whose interactions are read."""
        longest = int(np.diff(self.history.indptr).max(initial=0))
        self._ones = np.ones(max(min(BLOCK_INTERACTIONS, self.history.size), longest), np.float32)

    @property
    def users(self) -> int:
        """Number of users."""
        return self.history.rows

    def blocks(self) -> Iterator[tuple[Any, NDArray[np.float32]]]:
        """Yield blocks of users: their rows of R as a SciPy matrix, shape (n, items), and their numbers of items to the
        power u.

        With ``added``, a block is a sum of matrices, of which there are products, transposes and parts.
        """
        import numpy as np

        if self.added is None:
            yield from ((block, self._powers(degrees)) for _, block, degrees in self._blocks())
            return
        rows, start = self.added.rows, 0
        for start, block, degrees in self._blocks():
            more = rows[start : start + len(degrees)]
            if not more.nnz:
                yield block, self._powers(degrees)
                continue
            # A user without items has a degree of 1, so that nothing is divided by 0.
            had = np.diff(block.indptr)
            yield _Both(block, more), self._powers(had + np.diff(more.indptr))
        if rows.shape[0] > self.users:
            new = rows[self.users :]
            yield new, self._powers(np.diff(new.indptr))

    def _powers(self, lengths: NDArray[Any]) -> NDArray[np.float32]:
        return user_powers(lengths, self.user_power)

    def _blocks(self) -> Iterator[tuple[int, Any, NDArray[np.int32]]]:
        """The same of the files alone, each with its first user."""
        import numpy as np
        import scipy.sparse

        indptr = self.history.indptr
        most = block_users(self.items, self.users, self.history.size)
        start = self.part.start
        while start < self.part.stop:
            stop = int(indptr.searchsorted(indptr[start] + BLOCK_INTERACTIONS, side="right")) - 1
            stop = min(max(stop, start + 1), start + most, self.part.stop)
            offsets = (indptr[start : stop + 1] - indptr[start]).astype(np.int32)
            rows, shape = self.history.items(start, stop), (stop - start, self.items)
            yield (
                start,
                scipy.sparse.csr_matrix((self._ones[: len(rows)], rows, offsets), shape=shape, copy=False),
                np.diff(offsets),
            )
            start = stop

    def counts(self) -> NDArray[np.int32]:
        """Count the users of each item, shape (items,)."""
        import numpy as np

        counts = np.zeros(self.items, np.int32)
        for block, _ in self.blocks():
            counts += np.bincount(block.indices, minlength=self.items).astype(np.int32)
        return counts

    def gram(self, vectors: NDArray[np.float32], out: NDArray[np.float32]) -> NDArray[np.float32]:
        """Compute ``R' Du^-u R y`` for several vectors y.

        Parameters
        ----------
        vectors
            Shape (items, n).
        out
            Takes the result, shape (items, n).

        Returns
        -------
        NDArray
            ``out``.
        """
        out[:] = 0
        for block, degrees in self.blocks():
            shares = block @ vectors
            shares /= degrees[:, None]
            out += block.T @ shares
        return out


def user_powers(lengths: NDArray[Any], power: float) -> NDArray[np.float32]:
    """Numbers of items, at least 1, to a power.

    Examples
    --------
    >>> import numpy as np
    >>> user_powers(np.array([0, 4]), 0.5)
    array([1., 2.], dtype=float32)
    """
    import numpy as np

    numbers: NDArray[np.float32] = np.maximum(lengths, 1).astype(np.float32)
    if power != 1:
        numbers **= np.float32(power)
    return numbers


def block_users(items: int, users: int, interactions: int) -> int:
    """Most users of a block: their vectors take no more than those of the items, or than ``LEAST_BLOCK_USERS``.

    Examples
    --------
    >>> block_users(400_000, 200_000, 4_000_000)
    78644
    """
    usual = int(MORE_USERS * BLOCK_INTERACTIONS * users / max(1, interactions)) + 1
    return min(users, usual, max(LEAST_BLOCK_USERS, items), MOST_BLOCK_USERS)


def write_trained(directory: Path, history: History, kept: Kept, name: str = TRAINED) -> None:
    """Write the interactions that are trained on, as ``Log`` reads them.

    Parameters
    ----------
    directory, name
        Folder and name of the files.
    history
        All interactions.
    kept
        Those that are trained on.
    """
    import numpy as np

    total = 0
    with (
        NpyWriter(directory / f"{name}.indptr.npy", "<i8") as indptr,
        NpyWriter(directory / f"{name}.items.npy", "<i4") as items,
    ):
        indptr.append(np.zeros(1, np.int64))
        for start, stop in history.blocks():
            keep = kept.mask(start, stop)
            items.append(history.items(start, stop)[keep])
            ends = np.concatenate([[0], np.cumsum(keep)])[history.indptr[start + 1 : stop + 1] - history.indptr[start]]
            indptr.append(total + ends)
            total += int(keep.sum())


def forget_trained(directory: Path, name: str) -> None:
    """Remove what ``write_trained`` wrote."""
    for path in directory.glob(f"{name}.*.npy"):
        path.unlink()
