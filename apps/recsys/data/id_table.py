"""A Parquet file of ids, and for items titles, in the order of a model's rows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apps.recsys.data import arrow_numpy

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class IdTable:
    """Ids, and for items titles, by row.

    An id is found by scanning the Arrow column: a dictionary would be a second copy of all ids.

    Parameters
    ----------
    path
        A file that ``write_table`` wrote.
    """

    def __init__(self, path: Path) -> None:
        table = arrow_numpy.read_parquet(path).combine_chunks()
        self._ids = table["id"].chunk(0)
        self._titles = table["title"] if "title" in table.column_names else None

    def __len__(self) -> int:
        return len(self._ids)

    def row(self, id_: str) -> int | None:
        """Row of an id given as text; ``None`` if it is not in the table."""
        import pyarrow as pa
        import pyarrow.compute as pc

        try:
            value = pc.cast(arrow_numpy.text([id_]), self._ids.type)[0]
        except pa.ArrowInvalid:  # text that is not an integer, in a table of integers
            return None
        row: int = pc.index(self._ids, value).as_py()
        return row if row >= 0 else None

    def rows(self, ids: Sequence[str]) -> NDArray[np.int64]:
        """Rows of ids given as text, shape (n,); -1 for those that are not in the table. One scan finds all of them.

        In a table of integers, text is an id only in the form in which an integer would be written.
        """
        import numpy as np
        import pyarrow as pa
        import pyarrow.compute as pc

        positions = {id_: position for position, id_ in enumerate(dict.fromkeys(ids))}
        values = arrow_numpy.text(positions)
        if pa.types.is_integer(self._ids.type):
            plain = pc.match_substring_regex(values, r"^(0|-?[1-9][0-9]{0,17})$")
            values = pc.cast(pc.if_else(plain, values, arrow_numpy.text([None])[0]), self._ids.type)
        matches = pc.index_in(self._ids, value_set=values)
        rows = np.full(len(positions), -1, np.int64)
        present = np.flatnonzero(arrow_numpy.valid(matches))
        rows[arrow_numpy.values(matches)[present]] = present
        return rows[[positions[id_] for id_ in ids]]

    def id(self, row: int) -> int | str:
        """The id of a row, as it was in the input."""
        id_: int | str = self._ids[int(row)].as_py()
        return id_

    def ids(self, rows: NDArray[np.int32]) -> Any:
        """The ids of some rows as an Arrow array."""
        return self._ids.take(arrow_numpy.numbers(rows))

    def title(self, row: int) -> str:
        """The title of a row; empty if it has none."""
        return "" if self._titles is None else str(self._titles[int(row)].as_py() or "")

    def titles(self, rows: NDArray[np.int32]) -> Any:
        """The titles of some rows as an Arrow array; ``None`` if the table has none."""
        return None if self._titles is None else self._titles.combine_chunks().take(arrow_numpy.numbers(rows))


def write_table(path: Path, ids: Iterable[Any], titles: Any = None) -> None:
    """Write a table of ids and titles, uncompressed, so that the file's size is that of the loaded table.

    Parameters
    ----------
    path
        The file.
    ids
        Arrow arrays, one after the other.
    titles
        One Arrow array of all titles; ``None``: there are no titles.
    """
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    writer, rows = None, 0
    for part in ids:
        columns = {"row": arrow_numpy.numbers(np.arange(rows, rows + len(part), dtype=np.int32)), "id": part}
        if titles is not None:
            columns["title"] = titles.slice(rows, len(part))
        rows += len(part)
        table = pa.table(columns)
        writer = writer or pq.ParquetWriter(path, table.schema, compression="none", use_dictionary=False)
        writer.write_table(table)
    if writer is not None:
        writer.close()
