"""Matrices as codes of 8, 4, 2 or 1 bits a number, with one scale for each row.

A row is rotated by a random orthonormal matrix, which spreads its length evenly over its numbers: whatever the row was,
they are then nearly normally distributed. Each is rounded to one of ``2 ** bits`` evenly spaced levels. The rotation is
not undone: it is the same for all rows, so products of two rows, and of a row with a sum of rows, are those of the
rows before. (Lloyd and Max's uneven levels rank no better: Gowalla, spectrum of 512, R@20 .1886 in 2 bits with either.
Without the rotation 2 bits read .1598. A Walsh-Hadamard rotation, for widths that are powers of two, was not needed:
the matrix is only multiplied with once, when the codes are made.)
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

STEPS = {8: 0.0308, 4: 0.3352, 2: 0.9957, 1: 1.5958}
"""Bits -> distance of the levels with the least squared error of a standard normal number (Max 1960)."""
BLOCK_ROWS = 1 << 11
"""Rows that are encoded or decoded at a time: 4 MB of 512 numbers."""
SCALE_BYTES = 2
"""Bytes of a row's float16 scale."""
_LARGEST = 2.0**15
"""Stored scale of the row with the largest one: float16 then has eleven decades for the others."""


def packed_bytes(width: int, bits: int) -> int:
    """Bytes of the codes of a row, without its scale."""
    return -(-width * bits // 8)


def row_bytes(width: int, bits: int) -> int:
    """Bytes of a row.

    Examples
    --------
    >>> row_bytes(512, 1), row_bytes(256, 1), row_bytes(256, 2)
    (66, 34, 66)
    """
    return packed_bytes(width, bits) + SCALE_BYTES


def rotation(width: int, seed: int) -> NDArray[np.float32]:
    """A random orthonormal matrix, shape (width, width)."""
    import numpy as np

    square, triangle = np.linalg.qr(np.random.default_rng([seed, 3]).standard_normal((width, width)))
    square *= np.sign(np.diag(triangle))
    return square.astype(np.float32)


class CodedMatrix(ABC):
    """A matrix whose rows are codes, decoded some at a time."""

    __slots__ = ()

    @abstractmethod
    def __len__(self) -> int: ...

    if TYPE_CHECKING:  # a field of one of the classes, whose default it would be

        @property
        def width(self) -> int:
            """Numbers of a row."""

    @abstractmethod
    def decode_into(self, rows: slice | NDArray[Any], out: NDArray[np.float32]) -> None:
        """Write some rows into ``out``, which has as many of ``workspace``."""

    def workspace(self, rows: int = BLOCK_ROWS) -> NDArray[np.float32]:
        """Room for as many decoded rows."""
        import numpy as np

        return np.empty((rows, self.width), np.float32)

    def decode(self, rows: slice | NDArray[Any], workspace: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
        """Decode some rows.

        Parameters
        ----------
        rows
            A range of rows, or their numbers.
        workspace
            From ``workspace``; takes the result. ``None``: a new array does.

        Returns
        -------
        NDArray
            Shape (n, width); a view of the workspace.
        """
        count = len(range(*rows.indices(len(self)))) if isinstance(rows, slice) else len(rows)
        out = (self.workspace(count) if workspace is None else workspace)[:count]
        self.decode_into(rows, out)
        return out[:, : self.width]


@dataclass(frozen=True, slots=True)
class Codes(CodedMatrix):
    """Rows as codes.

    Attributes
    ----------
    packed
        Codes, uint8 of shape (rows, ``packed_bytes``), the lowest bits first.
    scales
        A float16 for each row, shape (rows,).
    unit
        What scales are multiples of, float32 of shape (1,).
    width
        Numbers of a row.
    bits
        Bits of a number, one of ``STEPS``.
    """

    packed: NDArray[np.uint8]
    scales: NDArray[np.float16]
    unit: NDArray[np.float32]
    width: int
    bits: int

    @classmethod
    def of(
        cls, rows: NDArray[np.float32], bits: int, *, seed: int, weights: NDArray[np.float32] | None = None
    ) -> Codes:
        """Encode a matrix.

        Parameters
        ----------
        rows
            Shape (rows, width); not changed.
        bits
            Bits of a number, one of ``STEPS``.
        seed
            Seed of the rotation.
        weights
            Factors of the columns, shape (width,); ``None``: none.
        """
        import numpy as np

        count, width = rows.shape
        turned = rotation(width, seed)
        if weights is not None:
            turned *= weights[:, None]
        packed = np.empty((count, packed_bytes(width, bits)), np.uint8)
        scales = np.empty(count, np.float32)
        for start in range(0, count, BLOCK_ROWS):
            span = slice(start, start + BLOCK_ROWS)
            packed[span], scales[span] = _encoded(rows[span] @ turned, bits)
        unit = np.float32(max(float(scales.max(initial=0)) / _LARGEST, float(np.finfo(np.float32).tiny)))
        return cls(packed, (scales / unit).astype(np.float16), np.array([unit]), width, bits)

    def __len__(self) -> int:
        return len(self.packed)

    def workspace(self, rows: int = BLOCK_ROWS) -> NDArray[np.float32]:
        """Room for as many decoded rows."""
        import numpy as np

        return np.empty((rows, self.packed.shape[1] * (8 // self.bits)), np.float32)

    def decode_into(self, rows: slice | NDArray[Any], out: NDArray[np.float32]) -> None:
        """Decode some rows; see ``CodedMatrix``."""
        import numpy as np

        packed = self.packed[rows]
        np.take(_levels(self.bits), packed, axis=0, out=out.reshape(*packed.shape, -1), mode="clip")
        decoded = out[:, : self.width]
        decoded *= (self.scales[rows].astype(np.float32) * self.unit)[:, None]


def _encoded(rows: NDArray[np.float32], bits: int) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Packed codes of rotated rows, and the scales with the least squared error for these codes."""
    import numpy as np

    half, step = 1 << (bits - 1), np.float32(STEPS[bits])
    deviations = np.sqrt(np.einsum("ij,ij->i", rows, rows) / np.float32(rows.shape[1]))
    with np.errstate(divide="ignore"):
        steps = np.where(deviations > 0, 1 / (deviations * step), 0).astype(np.float32)
    levels = np.clip(np.floor(rows * steps[:, None]), -half, half - 1)
    codes = (levels + half).astype(np.uint8)
    levels += np.float32(0.5)
    scales = np.einsum("ij,ij->i", rows, levels) / np.einsum("ij,ij->i", levels, levels)
    return pack(codes, bits), np.maximum(scales, 0)


def pack(codes: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """Pack codes, uint8 of shape (rows, width), into ``packed_bytes`` a row; the last byte is filled with zeros."""
    import numpy as np

    each = 8 // bits
    padded = np.pad(codes, ((0, 0), (0, -codes.shape[1] % each)))
    packed = np.zeros((len(codes), padded.shape[1] // each), np.uint8)
    for place in range(each):
        packed |= padded[:, place::each] << np.uint8(place * bits)
    return packed


def unpack(packed: NDArray[np.uint8], width: int, bits: int) -> NDArray[np.uint8]:
    """The codes that were packed, shape (rows, width)."""
    import numpy as np

    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    codes: NDArray[np.uint8] = (packed[:, :, None] >> shifts) & np.uint8((1 << bits) - 1)
    return codes.reshape(len(packed), packed.shape[1] * len(shifts))[:, :width]


@cache
def _levels(bits: int) -> NDArray[np.float32]:
    """The levels of the codes in each byte, shape (256, 8 / bits), in steps."""
    import numpy as np

    every = unpack(np.arange(256, dtype=np.uint8)[:, None], 8 // bits, bits)
    return every.astype(np.float32) - np.float32((1 << (bits - 1)) - 0.5)
