"""Weights of which each of several ranks has some rows, as ``weights.write`` takes them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Streamed:
    """An array that is never whole in memory; ``blocks`` yields its rows in order, on the rank that writes them.

    On other ranks, of which each has some of the rows, it sends them.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    blocks: Callable[[], Iterator[NDArray[Any]]]

    @property
    def nbytes(self) -> int:
        """Bytes of all rows."""
        return prod(self.shape) * self.dtype.itemsize


def send(tensors: Mapping[str, NDArray[Any] | Streamed]) -> None:
    """Do another rank's part while the first one is in ``write``."""
    for values in tensors.values():
        if isinstance(values, Streamed):
            for _ in values.blocks():
                pass
