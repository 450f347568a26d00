"""DataFrames and lists of ids as the Arrow files that ``recsys`` reads and writes. pandas is imported here only."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import astuple
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apps.recsys.data.columns import Columns, choose, choose_titles
from apps.recsys.planning.questions.answer_file import IDS
from common.errors import BadInput, UsageError

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

log = logging.getLogger("peakline.api")

ROWS = 1 << 15
"""Rows of a batch in a file: the command reads a batch at a time."""
QUESTION_IDS = 1 << 12
"""Ids in a batch of questions, at least one question."""
TYPES = "id_types.json"
"""In a model folder that was made from a frame: whether its ids were integers or text."""
INTEGER, TEXT = "integer", "text"


def write_interactions(frame: Any, wanted: Columns, path: Path) -> tuple[Columns, dict[str, str]]:
    """Write the columns of a frame that a training reads.

    Parameters
    ----------
    path
        The file; as CSV if so named, else Arrow.

    Returns
    -------
    Columns
        The columns by their roles.
    dict
        Type of the ids of users and items: integers or text.

    Raises
    ------
    BadInput
        If it is no frame, has no such column, or its ids are neither integers nor text.
    """
    columns = choose(_names(frame, "frame"), wanted, "frame")
    user, item = str(columns.user), str(columns.item)
    kinds = {"user": _kind(frame[user], user), "item": _kind(frame[item], item)}
    types = {user: _id_type(frame[user], kinds["user"]), item: _id_type(frame[item], kinds["item"])}
    types |= {name: _number_type(frame[name]) for name in (columns.value, columns.time) if name is not None}
    if path.suffix == ".csv":
        frame[[*types]].to_csv(path, index=False)
    else:
        _write(frame, types, path)
    return columns, kinds


def write_titles(frame: Any, path: Path) -> None:
    """Write a table of items: the column with their ids, the one with their titles, and attributes; raises as above."""
    import pyarrow as pa

    item, title = choose_titles(_names(frame, "titles"), "titles")
    types = {item: _id_type(frame[item], _kind(frame[item], item)), title: pa.string()}
    for name in frame.columns:
        if name not in types and (kind := _attribute_type(frame[name])) is not None:
            types[name] = kind
    _write(frame, types, path)


def _attribute_type(series: pd.Series[Any]) -> pa.DataType | None:
    """Arrow type of a column; ``None`` where its values have no common type."""
    import pyarrow as pa

    try:
        kind = pa.Array.from_pandas(series).type
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError):
        log.info("titles: column %r is left out: its values have no common type", series.name)
        return None
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _names(frame: Any, what: str) -> list[str]:
    import pandas as pd

    if not isinstance(frame, pd.DataFrame):
        raise BadInput(f"{what}: a {type(frame).__name__} is not a pandas DataFrame", public="not a frame")
    names = [str(name) for name in frame.columns]
    if not names:
        raise BadInput(f"{what}: it has no columns", public="no columns")
    if len(set(names)) < len(names):
        raise BadInput(f"{what}: two columns have the same name: {', '.join(names)}", public="repeated column")
    if unnamed := [name for name in frame.columns if not isinstance(name, str)]:
        raise BadInput(f"{what}: names of columns must be text, {unnamed[0]!r} is not", public="column without a name")
    return names


def _kind(series: pd.Series[Any], name: str) -> str:
    """Type of ids, integer or text; integers may be stored as floats, where some are missing."""
    import pandas as pd
    from pandas.api import types

    dtype = series.dtype
    if isinstance(dtype, pd.CategoricalDtype):
        return _kind(pd.Series(dtype.categories), name)
    if types.is_integer_dtype(dtype):
        return INTEGER
    if types.is_float_dtype(dtype) and not bool((series.dropna() % 1 != 0).any()):
        return INTEGER
    inferred = types.infer_dtype(series, skipna=True)
    if inferred in ("string", "integer", "empty"):
        return INTEGER if inferred == "integer" else TEXT
    type_name = inferred if dtype.kind == "O" else dtype
    raise BadInput(f"frame: column {name!r}: {type_name} cannot be an id; integers or text can", public="unusable id")


def _id_type(series: pd.Series[Any], kind: str) -> pa.DataType:
    import pyarrow as pa

    unsigned = getattr(series.dtype, "kind", "") == "u"
    return pa.string() if kind == TEXT else pa.uint64() if unsigned else pa.int64()


def _number_type(series: pd.Series[Any]) -> pa.DataType:
    """Arrow type of a value or a time; text is left to the command, which says what is wrong with it."""
    import pyarrow as pa
    from pandas.api import types

    if types.is_datetime64_any_dtype(series.dtype):
        return pa.timestamp("us")
    return pa.float64() if types.is_numeric_dtype(series.dtype) else pa.string()


def _write(frame: pd.DataFrame, kinds: dict[str, pa.DataType], path: Path) -> None:
    """Write some columns, a batch of rows at a time: no second copy of the frame is made."""
    import pyarrow as pa

    schema = pa.schema(kinds.items())
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        for start in range(0, max(1, len(frame)), ROWS):
            part = frame.iloc[start : start + ROWS]
            writer.write_batch(
                pa.record_batch([_column(part[name], name, kind) for name, kind in kinds.items()], schema=schema)
            )


def _column(series: pd.Series[Any], name: str, kind: pa.DataType) -> pa.Array:
    import pyarrow as pa
    import pyarrow.compute as pc

    try:
        column = pa.Array.from_pandas(series)
        if isinstance(column, pa.ChunkedArray):
            column = column.combine_chunks()
        if pa.types.is_dictionary(column.type):
            column = column.dictionary_decode()
        return pc.cast(column, kind, safe=not pa.types.is_timestamp(kind))
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError) as error:
        raise BadInput(f"frame: column {name!r}: {str(error).splitlines()[0]}", public="unreadable input") from None


def write_questions(questions: Iterable[Sequence[Any]], path: Path) -> int:
    """Write questions, each a list of ids; returns the size of the largest batch."""
    import pyarrow as pa

    largest = 0
    schema = pa.schema([(IDS, pa.list_(pa.string()))])
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        for some in _batches(questions):
            batch = pa.record_batch([pa.array(some, pa.list_(pa.string()))], schema=schema)
            largest = max(largest, batch.nbytes)
            writer.write_batch(batch)
    return largest


def _batches(questions: Iterable[Sequence[Any]]) -> Iterator[list[list[str]]]:
    batch: list[list[str]] = []
    count = 0
    for question in questions:
        batch.append([id_text(id_) for id_ in question])
        count += len(question)
        if count >= QUESTION_IDS:
            yield batch
            batch, count = [], 0
    if batch:
        yield batch


def id_text(id_: Any) -> str:
    """An id as the command line would have it.

    Raises
    ------
    UsageError
        If it is neither an integer nor text.
    """
    from numbers import Integral

    if isinstance(id_, str):
        return id_
    if isinstance(id_, Integral) and not isinstance(id_, bool):
        return str(int(id_))
    raise UsageError(f"{id_!r} is not an id: ids are integers or text")


def several(ids: Any) -> list[Any] | None:
    """The elements of a list, an array or a series; ``None`` for anything else, which is one id."""
    if isinstance(ids, (str, bytes)) or not hasattr(ids, "__iter__") or isinstance(ids, dict):
        return None
    return list(ids)


def read_answers(path: Path, kinds: dict[str, str]) -> pd.DataFrame:
    """The answers as a frame with columns ``question``, ``rank``, ``item``, ``score`` and perhaps ``title``."""
    import pyarrow as pa

    with pa.memory_map(str(path)) as source:
        frame: pd.DataFrame = pa.ipc.open_file(source).read_all().to_pandas()
    frame["item"] = as_given(frame["item"], kinds.get("item"))
    return frame


def as_given(ids: pd.Series[Any], kind: str | None) -> pd.Series[Any]:
    """Ids of the type that they had in the frame that a model was made from, where that is known."""
    from pandas.api import types

    integers = types.is_integer_dtype(ids.dtype)
    if kind == TEXT and integers:
        return ids.astype(str)
    if kind == INTEGER and not integers:
        return ids.map(int).astype("uint64")
    return ids


def read_ids(model: Path, what: str) -> pd.DataFrame:
    """A model's users or items, in its own order."""
    import pyarrow.parquet as pq

    frame: pd.DataFrame = pq.read_table(model / f"{what}s.parquet").to_pandas().drop(columns="row")
    frame = frame.rename(columns={"id": what})
    frame[what] = as_given(frame[what], read_types(model).get(what))
    return frame


def write_types(model: Path, kinds: dict[str, str]) -> None:
    """Remember in a model folder what its ids were in the frame."""
    (model / TYPES).write_text(json.dumps(kinds) + "\n", encoding="utf-8")


def read_types(model: Path) -> dict[str, str]:
    """Read the file of ``write_types``; empty for a model that was made from files."""
    path = model / TYPES
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}


def column_options(columns: Columns) -> list[str]:
    """The options of ``recsys train`` that name these columns."""
    names = zip(("user", "item", "value", "time"), astuple(columns), strict=True)
    return [f"--{option}-col={name}" for option, name in names if name is not None]
