"""The interactions of a linear model as an operator, applied from the disk by blocks of users.

With R the binary matrix of users and items and Du the diagonal matrix of the users' numbers of items, ``gram`` computes
``R' Du^-1 R y`` without making that matrix: items squared would be 6.7 GB for 40,981 items, where R has 3.2 MB.
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
    """

    def __init__(self, directory: Path, items: int, name: str | None = None) -> None:
        import numpy as np

        if name is None:
            name = TRAINED if (directory / f"{TRAINED}.indptr.npy").exists() else "history"
        self.items = items
        self.history = History(directory, name, columns=items)
        """The same, read by rows."""
        longest = int(np.diff(self.history.indptr).max(initial=0))
        self._ones = np.ones(max(min(BLOCK_INTERACTIONS, self.history.size), longest), np.float32)

    @property
    def users(self) -> int:
        """Number of users."""
        return self.history.rows

    def blocks(self) -> Iterator[tuple[Any, NDArray[np.float32]]]:
        """Yield blocks of users: their rows of R as a SciPy matrix, shape (n, items), and their numbers of items."""
        import numpy as np
        import scipy.sparse

        indptr = self.history.indptr
        most = block_users(self.items)
        start = 0
        while start < self.users:
            stop = int(indptr.searchsorted(indptr[start] + BLOCK_INTERACTIONS, side="right")) - 1
            stop = min(max(stop, start + 1), start + most, self.users)
            offsets = (indptr[start : stop + 1] - indptr[start]).astype(np.int32)
            rows, shape = self.history.items(start, stop), (stop - start, self.items)
            yield (
                scipy.sparse.csr_matrix((self._ones[: len(rows)], rows, offsets), shape=shape, copy=False),
                np.maximum(np.diff(offsets), 1).astype(np.float32),
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
        """Compute ``R' Du^-1 R y`` for several vectors y.

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


def block_users(items: int) -> int:
    """Most users of a block: their vectors take no more than those of the items, or than ``LEAST_BLOCK_USERS``."""
    return min(max(LEAST_BLOCK_USERS, items), MOST_BLOCK_USERS)


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
