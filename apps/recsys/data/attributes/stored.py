"""Attributes of a model's items in its folder: each a table of distinct values, and codes that point into it.

The files of attribute N are ``attribute.N.codes.npy``, a code for each item (0: none; else a value's number from 1) or,
where an item has several values, for each of them, with ``attribute.N.indptr.npy``; ``attribute.N.values.npy``, the
distinct numbers, or ``attribute.N.letters.npy`` and ``attribute.N.ends.npy``, the distinct texts in UTF-8. A code takes
one byte up to 254 distinct values, two up to 65,534. ``model.json`` says what each attribute is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypedDict

from apps.recsys.data import arrow_numpy
from apps.recsys.data.csr_store import NpyReader, NpyWriter
from common.errors import BadInput
from common.terminal import escaped

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_Count = Annotated[int, ("minimum", 0), ("maximum", 1 << 40)]
MOST = 200
"""Most attributes of a model."""
MOST_BYTES = 1 << 31
"""An attribute has fewer values of items, and its distinct texts fewer bytes."""
COMPARED = 8
"""Most distinct values that an item's code is compared with one by one."""
BLOCK = 1 << 14
"""Items that an expression is evaluated for at a time; twice as many where none may have several values."""


class Attribute(TypedDict):
    """An attribute of a model's items, as ``model.json`` describes it."""

    name: str
    """Name of its column."""
    kind: Literal["number", "text", "truth"]
    several: bool
    """True if an item may have several values."""
    values: _Count
    """Distinct values."""
    entries: _Count
    """Codes: one for each item, or for each value of each item."""
    longest: _Count
    """Values of the item with most of them."""
    letters: _Count
    """Bytes of the distinct texts; 0 for numbers."""


def block_items(attributes: Iterable[Mapping[str, Any]]) -> int:
    """Items that an expression of some attributes is evaluated for at a time."""
    return BLOCK if any(one["several"] for one in attributes) else 2 * BLOCK


def code_type(values: int) -> str:
    """NumPy's type of codes for so many distinct values.

    Examples
    --------
    >>> code_type(254), code_type(255), code_type(65_535)
    ('|u1', '<u2', '<i4')
    """
    return "|u1" if values < 255 else "<u2" if values < 65_535 else "<i4"


def arrays(number: int, attribute: Mapping[str, Any], items: int) -> dict[str, tuple[str, int]]:
    """The files of an attribute: name -> type and length of the array in it.

    Parameters
    ----------
    number
        Place of the attribute in ``model.json``, from 0.
    attribute
        What ``model.json`` says about it.
    items
        Number of items.
    """
    values, codes = attribute["values"], attribute["entries"] if attribute["several"] else items
    files = {"codes": (code_type(values), codes)}
    if attribute["several"]:
        files["indptr"] = ("<i4", items + 1)
    if attribute["kind"] == "text":
        files |= {"letters": ("|u1", attribute["letters"]), "ends": ("<i4", values)}
    else:
        files["values"] = ("<f8", values)
    return {f"attribute.{number}.{part}.npy": array for part, array in files.items()}


def write(
    directory: Path,
    number: int,
    codes: NDArray[np.int32],
    indptr: NDArray[np.int64] | None,
    values: Iterable[Any],
    *,
    as_text: bool,
) -> tuple[int, int]:
    """Write the files of an attribute.

    Parameters
    ----------
    directory
        The folder.
    number
        Place of the attribute.
    codes
        0 for none, else the number of a distinct value from 1; shape (items,), or with ``indptr`` (entries,).
    indptr
        Offsets of each item's codes, shape (items + 1,); ``None``: one code an item.
    values
        Arrow arrays of the distinct values, one after the other: text, or float64.
    as_text
        True for text.

    Returns
    -------
    values, letters
        Number of distinct values, and bytes of their text.
    """
    import numpy as np

    def path(part: str) -> Path:
        return directory / f"attribute.{number}.{part}.npy"

    count = end = 0
    if as_text:
        with NpyWriter(path("letters"), "|u1") as letters, NpyWriter(path("ends"), "<i4") as ends:
            for texts in values:
                text, offsets = arrow_numpy.letters(texts)
                letters.append(text)
                ends.append(end + np.diff(offsets).cumsum())
                count, end = count + len(texts), end + len(text)
    else:
        with NpyWriter(path("values"), "<f8") as numbers:
            for some in values:
                numbers.append(arrow_numpy.values(some))
                count += len(some)
    with NpyWriter(path("codes"), code_type(count)) as writer:
        writer.append(codes)
    if indptr is not None:
        with NpyWriter(path("indptr"), "<i4") as offsets_writer:
            offsets_writer.append(indptr)
    return count, end


class Column:
    """An attribute in a model folder, of which blocks of items are read.

    Parameters
    ----------
    directory
        The model folder, whose files have the lengths that ``arrays`` says.
    number
        Place of the attribute in ``model.json``.
    attribute
        What ``model.json`` says about it.
    """

    def __init__(self, directory: Path, number: int, attribute: Attribute) -> None:
        self._path, self._several = directory / f"attribute.{number}", attribute["several"]
        self.attribute = attribute
        self._codes = self._reader("codes")
        self._indptr = self._reader("indptr") if self._several else None

    def _reader(self, part: str) -> NpyReader:
        return NpyReader(Path(f"{self._path}.{part}.npy"))

    def _check(self, right: object) -> None:
        if not right:
            raise BadInput(f"{self._path}.*: the attribute is damaged", public="model file corrupt")

    def numbers(self) -> NDArray[np.float64]:
        """The distinct values of a number or a truth value, shape (values,)."""
        return self._reader("values")[:]

    def texts(self) -> Any:
        """The distinct texts, an Arrow array.

        Raises
        ------
        BadInput
            Their ends are not increasing, or they are not UTF-8.
        """
        import pyarrow as pa

        letters, ends = self._reader("letters")[:], self._reader("ends")[:]
        self._check(len(ends) and ends[0] >= 0 and ends[-1] == len(letters) and (ends[1:] >= ends[:-1]).all())
        texts = arrow_numpy.strings(letters, ends)
        try:
            texts.validate(full=True)
        except pa.ArrowInvalid:
            self._check(False)
        return texts

    def values(self) -> Any:
        """The distinct values as text, an Arrow array; raises as ``texts``."""
        import pyarrow as pa
        import pyarrow.compute as pc

        kind = self.attribute["kind"]
        if kind == "text":
            return self.texts()
        numbers = arrow_numpy.numbers(self.numbers())
        return pc.cast(pc.cast(numbers, pa.bool_()) if kind == "truth" else numbers, pa.string())

    def entries(self) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Items and the numbers of their distinct values, from 0: shape (n,) each.

        Raises
        ------
        BadInput
            A code or an offset is out of range.
        """
        import numpy as np

        codes = self._codes[:].astype(np.int32)
        self._check(not len(codes) or (codes.min() >= 0 and codes.max() <= self.attribute["values"]))
        if self._indptr is None:
            owners = np.flatnonzero(codes).astype(np.int32)
            return owners, codes[owners] - 1
        lengths = np.diff(self._indptr[:])
        self._check((lengths >= 0).all() and lengths.sum() == len(codes) and not (codes == 0).any())
        return np.repeat(np.arange(len(lengths), dtype=np.int32), lengths), codes - 1

    def matches(self, start: int, stop: int, hits: NDArray[np.bool_], *, negated: bool) -> NDArray[np.bool_]:
        """Mask of the items ``start`` to ``stop`` of which any value hits; or none, of items with a value.

        Parameters
        ----------
        hits
            Mask of the codes, shape (values + 1,); that of code 0 is False.
        negated
            True for the items that have a value, none of which hits.

        Raises
        ------
        BadInput
            A code or an offset is out of range.
        """
        import numpy as np

        if self._indptr is None:
            codes = self._codes[start:stop]
            self._check(not len(codes) or (codes.max() < len(hits) and (codes.dtype.kind == "u" or codes.min() >= 0)))
            matched = _hit(codes, hits)
            return (codes > 0) & ~matched if negated else matched
        offsets = self._indptr[start : stop + 1]
        lengths = np.diff(offsets)
        self._check(offsets[0] >= 0 and offsets[-1] <= self._codes.length and (lengths >= 0).all())
        self._check(not len(lengths) or lengths.max() <= self.attribute["longest"])
        codes = self._codes[int(offsets[0]) : int(offsets[-1])]
        self._check(not len(codes) or (codes.min() >= 1 and codes.max() < len(hits)))
        matched = np.zeros(stop - start, bool)
        matched[np.repeat(np.arange(stop - start, dtype=np.int32), lengths)[hits[codes]]] = True
        return (lengths > 0) & ~matched if negated else matched


def _hit(codes: NDArray[Any], hits: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """``hits[codes]``: by comparison where few codes hit, which is thirty times as fast."""
    import numpy as np

    wanted = np.flatnonzero(hits)
    if len(wanted) > COMPARED:
        taken: NDArray[np.bool_] = hits.take(codes)
        return taken
    matched = np.zeros(len(codes), bool)
    for code in wanted.astype(codes.dtype):  # of the same type: otherwise the codes are converted
        matched |= codes == code
    return matched


def listed(attributes: Sequence[Mapping[str, Any]]) -> str:
    """Name attributes with what they are, for a line.

    Examples
    --------
    >>> listed([{"name": "year", "kind": "number", "several": False, "values": 81}])
    'year (number)'
    """
    shown = (f"{one['name']} ({one['kind']}{', several an item' if one['several'] else ''})" for one in attributes)
    return escaped(", ".join(shown))
