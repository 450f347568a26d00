"""Items of ``ials`` as codes: the nearest ones, then users and items solved in turn, the items over their levels.

A run that was interrupted goes on at the block of items at which it ended, of the first round, or at the round, after
users are solved again.
"""

from __future__ import annotations

import json
import time
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apps.recsys.models.als import als_matrices, ials_exact
from apps.recsys.training.compressing import vectors
from apps.recsys.training.compressing.code_forms import Entries, Levels, Unfinished
from apps.recsys.training.compressing.vectors import Budget
from apps.recsys.training.session import TrainingSession
from common.compression import row_grid
from common.compression.book_codes import BookCodes
from common.compression.books import Books
from common.compression.codes import BLOCK_ROWS
from common.compression.row_codes import RowCodes
from common.files import atomic_file

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

STATE = Path(".training", "codes.state")
"""In the folder of the new model while it is unfinished: NumPy's arrays of levels, scales, settings and progress."""
SAVED_EVERY = 30.0
"""Seconds from one checkpoint to the next; one takes 0.1 s for 140,000 items of 128 numbers."""


class Checkpoint:
    """The levels and scales of an unfinished encoding.

    Parameters
    ----------
    path
        The file.
    settings
        All that decides the result, as values of JSON; a file with other settings is not continued.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        self._path, self._settings = path, json.dumps(settings, sort_keys=True)
        self._saved = time.monotonic()

    def due(self) -> bool:
        """True if ``SAVED_EVERY`` has passed."""
        return time.monotonic() - self._saved >= SAVED_EVERY

    def save(self, found: NDArray[np.uint8], scales: NDArray[np.float32], number: int, row: int) -> None:
        """Write the state: rounds that are done, and items of the next one."""
        import numpy as np

        self._path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(self._path) as part, part.open("wb") as stream:
            settings = np.frombuffer(self._settings.encode(), np.uint8)
            np.savez(stream, found=found, scales=scales, settings=settings, progress=np.array([number, row]))
        self._saved = time.monotonic()

    def load(self, found: NDArray[np.uint8], scales: NDArray[np.float32]) -> tuple[int, int]:
        """Read the state into its arrays; (0, 0) if there is none, or it is damaged or of other settings."""
        import numpy as np

        if not self._path.is_file():
            return 0, 0
        try:
            with np.load(self._path, allow_pickle=False) as arrays:
                if arrays["settings"].tobytes().decode() != self._settings:
                    return 0, 0
                levels, lengths = arrays["found"], arrays["scales"]
                number, row = (int(each) for each in arrays["progress"])
                if levels.shape != found.shape or levels.dtype != np.uint8 or lengths.shape != scales.shape:
                    return 0, 0
                found[:], scales[:] = levels, lengths
        except (OSError, ValueError, KeyError, EOFError, UnicodeDecodeError, zipfile.BadZipFile):
            return 0, 0
        return number, row

    def remove(self) -> None:
        """Remove the file, and its folder if that is empty."""
        self._path.unlink(missing_ok=True)
        if self._path.parent.is_dir() and not any(self._path.parent.iterdir()):
            self._path.parent.rmdir()


@dataclass(frozen=True, slots=True, kw_only=True)
class LeastSquares:
    """An encoding of the items of ``ials``.

    Attributes
    ----------
    sides
        The confidences.
    hyper
        Hyper-parameters of the model.
    budget
        What an item may take.
    rounds
        Times that users and items are solved again.
    checkpoint
        Keeps the state.
    session
        Threads, progress, and whether to stop.
    """

    sides: als_matrices.Sides
    hyper: Mapping[str, Any]
    budget: Budget
    rounds: int
    checkpoint: Checkpoint
    session: TrainingSession

    def run(self, items: NDArray[np.float32]) -> RowCodes | BookCodes:
        """Encode.

        Parameters
        ----------
        items
            Vectors of the items, shape (items, factors); overwritten.

        Raises
        ------
        KeyboardInterrupt
            The session is stopping; the state was saved.
        """
        users = self._users(items)
        values, axes = vectors.rotation(users.T @ users)
        vectors.rotate(items, axes)
        nearest = self._entries if self.budget.layers else self._levels
        state, items, users = nearest(items, users, values, axes)
        first, row = self.checkpoint.load(state.found, state.scales)
        if first or row:
            self.session.say(f"continuing after round {first} of {self.rounds}, {row:,} of {len(items):,} items")
        with self.session.progress(total=self.rounds, unit="round", label="encode") as bar:
            bar.update(first)
            for number in range(first, self.rounds):
                # The first time users of the vectors themselves: those of rounded ones are further from what is sought.
                if number:
                    del users
                    for start in range(0, len(items), BLOCK_ROWS):
                        span = slice(start, start + BLOCK_ROWS)
                        items[span] = state.decoded(span)
                    users = self._users(items)
                for start, stop, block in self.sides.items.blocks(row):
                    state.descend(slice(start, stop), block, users, self.hyper, threads=self.session.threads)
                    done, stopping = stop == len(items), self.session.stopping
                    # In the midst of a later round the codes are gone that its users were solved for.
                    if (done or not number) and (stopping or self.checkpoint.due()):
                        self.checkpoint.save(state.found, state.scales, number + done, 0 if done else stop)
                    if stopping:
                        raise KeyboardInterrupt
                row = 0
                bar.update()
        return state.made()

    def _levels(
        self,
        items: NDArray[np.float32],
        users: NDArray[np.float32],
        values: NDArray[np.float64],
        axes: NDArray[np.float32],
    ) -> tuple[Unfinished, NDArray[np.float32], NDArray[np.float32]]:
        """The nearest levels of rotated items; the items and the users with the columns that are left."""
        import numpy as np

        bits = self.budget.shared(row_grid.column_deviations(items).astype(np.float64) ** 2 * values)
        mixed = vectors.mixing(bits, values)
        vectors.rotate(items, mixed)
        grid, kinds = vectors.graded(items, values, self.budget)
        columns = np.flatnonzero(grid.bits.any(0))
        importance, whole = values[columns].astype(np.float32), len(columns) == items.shape[1]
        if whole:
            vectors.rotate(users, axes @ mixed)
        else:
            del users
            items, grid = items.take(columns, axis=1), grid.taken(columns)
            users = self._users(items)
        return Levels.nearest(items, grid, importance, kinds), items, users

    def _entries(
        self,
        items: NDArray[np.float32],
        users: NDArray[np.float32],
        values: NDArray[np.float64],
        axes: NDArray[np.float32],
    ) -> tuple[Unfinished, NDArray[np.float32], NDArray[np.float32]]:
        """The nearest entries of rotated items; the items and the users with the columns that are left."""
        import numpy as np

        layout = self.budget.grouped(row_grid.column_deviations(items).astype(np.float64) ** 2 * values, len(items))
        importance, items = values[layout.columns], items.take(layout.columns, axis=1)
        del users
        users = self._users(items)
        books, found, scales = Books.of(items, importance, layout).settled(items, importance)
        return Entries(found, scales, books), items, users

    def _users(self, items: NDArray[np.float32]) -> NDArray[np.float32]:
        """Vectors of all users, shape (users, factors)."""
        import numpy as np

        given = {"regularization": float(self.hyper["regularization"])}
        given["exponent"] = float(self.hyper.get("frequency_scaling", 0.0))
        users = np.zeros((self.sides.users.rows, items.shape[1]), np.float32)
        for start, stop, block in self.sides.users.blocks():
            ials_exact.solve(block, users[start:stop], items, threads=self.session.threads, **given)
            if self.session.stopping:
                raise KeyboardInterrupt
        return users
