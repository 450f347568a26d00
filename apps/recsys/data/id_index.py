"""Ids, numbered in the order of their first appearance: their text on disk, about 30 bytes each in memory.

An id is known in memory by two hashes only. They are multilinear, with random coefficients for each place of the text:
two different texts have the same pair of hashes with a probability of at most 2^-80, so that with a hundred million ids
one run in 10^8 confuses two of them (Lemire and Kaser, "Strongly universal string hashing is fast", 2014).
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
"""Bytes of an id; a longer one is no id."""
FIRST_SLOTS = 1 << 16
FULL = 0.5
"""Share of the slots in use at which their number is doubled."""
HASHED_BYTES = 1 << 17
"""Text hashed at a time: it takes 32 bytes for each of its own."""
READ_IDS = 1 << 15
"""Ids read back from disk at a time."""
EMPTY = -1


class BadId(ValueError):
    """An id that cannot be one, in words."""


class Vocabulary:
    """Numbers for ids.

    Parameters
    ----------
    directory, name
        The ids' text goes to ``NAME.bytes.npy`` and ``NAME.lengths.npy`` there.
    """

    def __init__(self, directory: Path, name: str) -> None:
        import numpy as np

        self._paths = directory / f"{name}.bytes.npy", directory / f"{name}.lengths.npy"
        self._bytes, self._lengths = NpyWriter(self._paths[0], "<u1"), NpyWriter(self._paths[1], "<u2")
        random = np.random.default_rng(0)
        self._coefficients = random.integers(0, 2**64, (2, LONGEST), np.uint64)
        self._count = 0
        self._first, self._second = np.zeros(FIRST_SLOTS // 2, np.uint64), np.zeros(FIRST_SLOTS // 2, np.uint32)
        """The two hashes of each number."""
        self._slots = np.full(FIRST_SLOTS, EMPTY, np.int32)
        """Open addressing: the number whose first hash points here, or at one of the slots in use before."""

    def __len__(self) -> int:
        return self._count

    def encode(self, column: Any) -> NDArray[np.int32]:
        """Numbers of a column's ids; new ids get the next ones.

        Raises
        ------
        BadId
            More than ``LONGEST`` bytes, or with a NUL, which means that the file is not text.
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
        """Numbers of a column's ids, ``EMPTY`` for those that are not known."""
        import pyarrow as pa
        import pyarrow.compute as pc

        return self._find(*self._hashes(pc.cast(column, pa.string())))

    def ids(self, keep: NDArray[np.bool_]) -> Iterator[Any]:
        """Arrow arrays of the kept ids in order: of int64 where every id is a plain integer, else of text."""
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
        """The text of the kept ids, some at a time."""
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
        """Of each text: the sums of its bytes plus one, times the coefficients of their places, modulo 2^64."""
        import numpy as np

        letters, bounds = arrow_numpy.letters(texts)
        lengths = np.diff(bounds)
        if len(lengths) and lengths.max() > LONGEST:
            row = int(lengths.argmax())
            raise BadId(f"{texts[row].as_py()[:20]!r}... has {lengths[row]:,} bytes, at most {LONGEST:,} are read")
        first, second = np.zeros(len(texts), np.uint64), np.zeros(len(texts), np.uint64)
        for start, stop in ranges(bounds, HASHED_BYTES):
            text = letters[bounds[start] - bounds[0] : bounds[stop] - bounds[0]].astype(np.uint64)
            text += 1
            if (text == 1).any():
                raise BadId("with a NUL byte: the file is not text in UTF-8, or is damaged")
            starts = bounds[start:stop] - bounds[start]
            place = np.arange(len(text)) - np.repeat(starts, lengths[start:stop])
            for part, coefficients in zip((first, second), self._coefficients, strict=True):
                # The sum over an empty text is not what reduceat gives; a zero more lets the last one be empty.
                products = np.append(coefficients[place] * text, np.uint64(0))
                part[start:stop] = np.where(lengths[start:stop] > 0, np.add.reduceat(products, starts), 0)
        return first, (second >> np.uint64(32)).astype(np.uint32)

    def _find(self, first: NDArray[np.uint64], second: NDArray[np.uint32]) -> NDArray[np.int32]:
        """Numbers of hashes, ``EMPTY`` where there is none."""
        import numpy as np

        numbers = np.full(len(first), EMPTY, np.int32)
        open_, slot = np.arange(len(first)), self._home(first)
        while len(open_):
            there = self._slots[slot]
            same = (there != EMPTY) & (self._first[there] == first[open_]) & (self._second[there] == second[open_])
            numbers[open_[same]] = there[same]
            on = (there != EMPTY) & ~same
            open_, slot = open_[on], self._next(slot[on])
        return numbers

    def _add(self, texts: Any, first: NDArray[np.uint64], second: NDArray[np.uint32]) -> None:
        """Give the next numbers to ids that are new and different."""
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
        """Put numbers into the slots."""
        slot = self._home(self._first[numbers])
        while len(numbers):
            free = self._slots[slot] == EMPTY
            self._slots[slot[free]] = numbers[free]  # of several for one slot the last stays
            on = self._slots[slot] != numbers
            numbers, slot = numbers[on], self._next(slot[on])

    def _home(self, first: NDArray[np.uint64]) -> NDArray[np.int64]:
        import numpy as np

        # The upper bits of a multilinear hash are its good ones.
        bits = len(self._slots).bit_length() - 1
        home: NDArray[np.int64] = (first >> np.uint64(64 - bits)).astype(np.int64)
        return home

    def _next(self, slot: NDArray[np.int64]) -> NDArray[np.int64]:
        return (slot + 1) & (len(self._slots) - 1)


def plain_integers(texts: Any) -> bool:
    """Whether every text is an integer as it would be written: no ``007``, no ``+1``."""
    import pyarrow as pa
    import pyarrow.compute as pc

    try:
        numbers = pc.cast(texts, pa.int64())
    except pa.ArrowInvalid:
        return False
    return not len(texts) or bool(pc.all(pc.equal(pc.cast(numbers, pa.string()), texts)).as_py())
