"""A model folder as an input of ``recsys update``: its ids, interactions, titles and held-out items.

Rows keep their numbers: the ids of the model are numbered first, in the order of its rows, so that new users and items
come after them, as they would if the model's own files and the new ones were read together. Only rows of forgotten
users, and of items that nobody else had, are left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apps.recsys.data import arrow_numpy, splits
from apps.recsys.data.attributes.stored import Attribute
from apps.recsys.data.csr_store import History, NpyWriter
from apps.recsys.data.id_index import EMPTY, Vocabulary
from apps.recsys.data.splits import HeldOut
from common.errors import BadInput

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

KEPT = "kept.items.npy"
"""File of the model's items that stay, by their rows: the first items of the new model."""
READ_IDS = 1 << 15
"""Ids read at a time."""


@dataclass(frozen=True, slots=True)
class Base:
    """The model that new interactions are added to."""

    directory: Path
    """The model folder."""
    items: int
    """Number of its items."""
    interactions: int
    """Number of its interactions."""
    attributes: Sequence[Attribute] = ()
    """Attributes of its items."""
    forget: tuple[str, ...] = ()
    """Ids of users whose rows are left out."""

    def number(self, users: Vocabulary, items: Vocabulary) -> NDArray[np.int32]:
        """Give the first numbers to the model's ids.

        Parameters
        ----------
        users, items
            Empty vocabularies.

        Returns
        -------
        NDArray
            Numbers of the forgotten users.

        Raises
        ------
        BadInput
            A user to forget is not in the model.
        """
        import numpy as np

        for what, vocabulary in (("user", users), ("item", items)):
            for ids in self._read(what, "id"):
                vocabulary.encode(ids)
        if not self.forget:
            return np.zeros(0, np.int32)
        possible = [id_ for id_ in self.forget if arrow_numpy.is_text(id_)]
        numbers = users.find(arrow_numpy.text(possible))
        if len(possible) < len(self.forget) or (numbers == EMPTY).any():
            known = {id_ for id_, number in zip(possible, numbers, strict=True) if number != EMPTY}
            unknown = next(id_ for id_ in self.forget if id_ not in known)
            raise BadInput(f"--forget: user {unknown!r} is not in the model", public="unknown user")
        return np.unique(numbers)

    def whole(self, what: str) -> bool:
        """True if the ids of the users or items are integers."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        schema = pq.read_schema(arrow_numpy.native(self.directory / f"{what}s.parquet"))
        return bool(pa.types.is_integer(schema.field("id").type))

    def rows(self, forgotten: NDArray[np.int32]) -> Iterator[tuple[NDArray[np.int32], Any, Any]]:
        """Yield users, items and values of the interactions, block by block, without those of forgotten users."""
        import numpy as np

        history = History(self.directory, columns=self.items)
        for start, stop in history.blocks():
            lengths = np.diff(history.indptr[start : stop + 1])
            users = np.repeat(np.arange(start, stop, dtype=np.int32), lengths)
            items, values = history.items(start, stop), history.values(start, stop)
            if len(forgotten):
                kept = ~np.isin(users, forgotten)
                users, items, values = users[kept], items[kept], values[kept]
            yield users, items, values
        history.close()

    def titles(self) -> list[str | None]:
        """Titles of the items by row; empty if the model has none."""
        return [title for part in self._read("item", "title") for title in part.to_pylist()]

    def write_held_out(self, directory: Path, user_of: NDArray[np.int32], item_of: NDArray[np.int32]) -> int:
        """Write what the model holds out, as ``HeldOut`` reads it.

        Parameters
        ----------
        directory
            Folder for the files.
        user_of, item_of
            New row by old row, increasing; -1: left out.

        Returns
        -------
        int
            Number of users with held-out items.
        """
        heldout = HeldOut(self.directory)

        def chosen() -> Iterator[tuple[int, NDArray[Any]]]:
            for row, user in enumerate(heldout.users):
                if user_of[user] >= 0:
                    yield int(user_of[user]), item_of[heldout.items(row)]

        users = splits.write(directory, "heldout", chosen())
        heldout.close()
        return users

    def write_kept(self, directory: Path, item_rows: NDArray[np.int64]) -> None:
        """Write ``KEPT``; ``item_rows`` is the number of rows of each item, shape (items,) or more."""
        import numpy as np

        with NpyWriter(directory / KEPT, "<i4") as writer:
            writer.append(np.flatnonzero(item_rows[: self.items] > 0))

    def _read(self, what: str, column: str) -> Iterator[Any]:
        import pyarrow.parquet as pq

        with pq.ParquetFile(arrow_numpy.native(self.directory / f"{what}s.parquet"), pre_buffer=False) as file:
            if column in file.schema_arrow.names:
                for batch in file.iter_batches(batch_size=READ_IDS, columns=[column], use_threads=False):
                    yield batch.column(0)
