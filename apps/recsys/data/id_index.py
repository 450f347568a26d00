"""Number ids in the order of their first appearance. Their text is on disk; about 30 bytes of each are in memory.

In memory an id is represented by two hashes. They are multilinear, with a random coefficient for each position of the
text: two different texts have equal hashes with a probability of at most 2^-80, so with a hundred million ids one run
in 10^8 confuses two of them (Lemire and Kaser, "Strongly universal string hashing is fast", 2014).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apps.recsys.data import arrow_numpy
from apps.recsys.data.csr_store import NpyReader, NpyWriter, ranges

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

LONGEST = 1 << 10
"""Most bytes of an id; a longer text is refused."""
FIRST_SLOTS = 1 << 16
"""Slots of an empty hash table."""
FULL = 0.5
"""Share of used slots at which the table is doubled."""
HASHED_BYTES = 1 << 17
"""Bytes of text hashed at a time; each takes 32 bytes of memory meanwhile."""
READ_IDS = 1 << 15
"""Ids read back from disk at a time."""
EMPTY = -1
"""Number of an id that is not there, and content of an unused slot."""


class BadId(ValueError):
    """A text that cannot be an id; the message says why."""


class Vocabulary:
    """Numbers for ids, by open addressing.

    Parameters
    ----------
    directory, name
        The ids' text is written to ``NAME.bytes.npy`` and ``NAME.lengths.npy`` in the directory.
    """

    def __init__(self, directory: Path, name: str) -> None:
        import numpy as np

        self._paths = directory / f"{name}.bytes.npy", directory / f"{name}.lengths.npy"
        self._bytes, self._lengths = NpyWriter(self._paths[0], "<u1"), NpyWriter(self._paths[1], "<u2")
        random = np.random.default_rng(0)
        self._coefficients = random.integers(0, 2**64, (2, LONGEST), np.uint64)
        self._count = 0
        self._first, self._second = np.zeros(FIRST_SLOTS // 2, np.uint64), np.zeros(FIRST_SLOTS // 2, np.uint32)
        """The two hashes of each number's id."""
        self._slots = np.full(FIRST_SLOTS, EMPTY, np.int32)
        """The number whose first hash points to the slot, or to one of the used slots before it."""

    def __len__(self) -> int:
        return self._count

    def encode(self, column: Any) -> NDArray[np.int32]:
        """Numbers of the ids in a column; new ids get the next numbers.

        Parameters
        ----------
        column
            Arrow array of text or integers, without nulls, shape (n,).

        Returns
        -------
        NDArray
            Shape (n,), int32.

        Raises
        ------
        BadId
            An id has more than ``LONGEST`` bytes or a NUL byte, which means that the file is not text.
        """
        import numpy as np
        import pyarrow as pa
        import pyarrow.compute as pc

        encoded = column if pa.types.is_dictionary(column.type) else column.dictionary_encode()
        texts = pc.cast(encoded.dictionary, pa.string())
        hashes = self._hashes(texts)
        numbers = self._find(*hashes)
        new = np.flatnonzero(numbers == EMPTY)
        if len(new):
            numbers[new] = np.arange(self._count, self._count + len(new), dtype=np.int32)
            self._add(
                texts.filter(arrow_numpy.mask(np.isin(np.arange(len(texts)), new))), hashes[0][new], hashes[1][new]
            )
        coded: NDArray[np.int32] = numbers[arrow_numpy.values(encoded.indices)]
        return coded

    def find(self, column: Any) -> NDArray[np.int32]:
        """Numbers of the ids in a column, ``EMPTY`` for ids without one: shape (n,), int32."""
        import pyarrow as pa
        import pyarrow.compute as pc

        return self._find(*self._hashes(pc.cast(column, pa.string())))

    def ids(self, keep: NDArray[np.bool_]) -> Iterator[Any]:
        """Yield Arrow arrays of the kept ids, in the order of their numbers.

        They are of int64 if every kept id is a plain integer, else of text.

        Parameters
        ----------
        keep
            Mask by number, shape (ids,).
        """
        import pyarrow as pa
        import pyarrow.compute as pc

        whole = all(plain_integers(texts) for texts in self._texts(keep))
        for texts in self._texts(keep):
            yield pc.cast(texts, pa.int64()) if whole else texts

    def close(self) -> None:
        """Remove the files."""
        for writer in (self._bytes, self._lengths):
            writer.close()
        for path in self._paths:
            path.unlink(missing_ok=True)

    def _texts(self, keep: NDArray[np.bool_]) -> Iterator[Any]:
        """The texts of the kept ids, ``READ_IDS`` at a time."""
        import numpy as np

        for writer in (self._bytes, self._lengths):
            writer.flush()
        letters, lengths = (NpyReader(path) for path in self._paths)
        at = 0
        for start in range(0, self._count, READ_IDS):
            ends = np.cumsum(lengths[start : start + READ_IDS], dtype=np.int32)
            texts = arrow_numpy.strings(letters[at : at + int(ends[-1])], ends)
            at += int(ends[-1])
            yield texts.filter(arrow_numpy.mask(keep[start : start + READ_IDS]))
        letters.close()
        lengths.close()

    def _hashes(self, texts: Any) -> tuple[NDArray[np.uint64], NDArray[np.uint32]]:
        """Two hashes per text: sums of (byte + 1) times the coefficient of its position, modulo 2^64."""
        import numpy as np

        letters, offsets = arrow_numpy.letters(texts)
        lengths = np.diff(offsets)
        if len(lengths) and lengths.max() > LONGEST:
            row = int(lengths.argmax())
            raise BadId(f"{texts[row].as_py()[:20]!r}... has {lengths[row]:,} bytes, at most {LONGEST:,} are allowed")
        first, second = np.zeros(len(texts), np.uint64), np.zeros(len(texts), np.uint64)
        for start, stop in ranges(offsets, HASHED_BYTES):
            text = letters[offsets[start] - offsets[0] : offsets[stop] - offsets[0]].astype(np.uint64)
            text += 1
            if (text == 1).any():
                raise BadId("with a NUL byte: the file is not text in UTF-8, or is damaged")
            starts = offsets[start:stop] - offsets[start]
            position = np.arange(len(text)) - np.repeat(starts, lengths[start:stop])
            for hashes, coefficients in zip((first, second), self._coefficients, strict=True):
                # reduceat is wrong for empty texts; the zero at the end allows the last text to be empty.
                products = np.append(coefficients[position] * text, np.uint64(0))
                hashes[start:stop] = np.where(lengths[start:stop] > 0, np.add.reduceat(products, starts), 0)
        return first, (second >> np.uint64(32)).astype(np.uint32)

    def _find(self, first: NDArray[np.uint64], second: NDArray[np.uint32]) -> NDArray[np.int32]:
        """Numbers of ids by their hashes, ``EMPTY`` for ids without one."""
        import numpy as np

        numbers = np.full(len(first), EMPTY, np.int32)
        open_, slot = np.arange(len(first)), self._home(first)
        while len(open_):
            stored = self._slots[slot]
            same = (stored != EMPTY) & (self._first[stored] == first[open_]) & (self._second[stored] == second[open_])
            numbers[open_[same]] = stored[same]
            collides = (stored != EMPTY) & ~same
            open_, slot = open_[collides], self._next(slot[collides])
        return numbers

    def _add(self, texts: Any, first: NDArray[np.uint64], second: NDArray[np.uint32]) -> None:
        """Give the next numbers to new ids, which must differ from each other."""
        import numpy as np

        letters, ends = arrow_numpy.letters(texts)
        self._bytes.append(letters)
        self._lengths.append(np.diff(ends))
        start, self._count = self._count, self._count + len(first)
        while self._count > len(self._first):
            self._first = np.concatenate([self._first, np.zeros_like(self._first)])
            self._second = np.concatenate([self._second, np.zeros_like(self._second)])
        self._first[start : self._count], self._second[start : self._count] = first, second
        if self._count > FULL * len(self._slots):
            while self._count > FULL * len(self._slots):
                self._slots = np.full(2 * len(self._slots), EMPTY, np.int32)
            start = 0
        for begin in range(start, self._count, READ_IDS):
            self._place(np.arange(begin, min(begin + READ_IDS, self._count), dtype=np.int32))

    def _place(self, numbers: NDArray[np.int32]) -> None:
        """Put numbers into free slots."""
        slot = self._home(self._first[numbers])
        while len(numbers):
            free = self._slots[slot] == EMPTY
            self._slots[slot[free]] = numbers[free]  # if several have the same slot, the last one gets it
            homeless = self._slots[slot] != numbers
            numbers, slot = numbers[homeless], self._next(slot[homeless])

    def _home(self, first: NDArray[np.uint64]) -> NDArray[np.int64]:
        import numpy as np

        # The upper bits of a multilinear hash are the random ones.
        bits = len(self._slots).bit_length() - 1
        home: NDArray[np.int64] = (first >> np.uint64(64 - bits)).astype(np.int64)
        return home

    def _next(self, slot: NDArray[np.int64]) -> NDArray[np.int64]:
        return (slot + 1) & (len(self._slots) - 1)


def plain_integers(texts: Any) -> bool:
    """True if every text is an integer in its usual form.

    Examples
    --------
    >>> plain_integers(arrow_numpy.text(["7", "-12"])), plain_integers(arrow_numpy.text(["007"]))
    (True, False)
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    try:
        numbers = pc.cast(texts, pa.int64())
    except pa.ArrowInvalid:
        return False
    return not len(texts) or bool(pc.all(pc.equal(pc.cast(numbers, pa.string()), texts)).as_py())
