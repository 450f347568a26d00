"""What a table costs while it trains, without loading torch: pure arithmetic for the planner."""

from __future__ import annotations

from dataclasses import dataclass

from common.compression.rows import FORMATS

STATE_BYTES = 4
"""A row's float32 sum of squared gradients."""
KINDS = tuple(FORMATS)


@dataclass(frozen=True, slots=True)
class TableBytes:
    """What a whole table holds."""

    weights: int
    gradients: int
    optimizer: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.gradients + self.optimizer


def table_bytes(kind: str, *, rows: int, width: int) -> TableBytes:
    """Bytes of a table of a kind (``KINDS``) that trains; the rows that a batch loads come on top."""
    return TableBytes(rows * FORMATS[kind].bytes_per_row(width), 0, rows * STATE_BYTES)


def loaded_bytes(rows: int, width: int) -> int:
    """The rows that a batch has loaded and their gradients, in float32."""
    return 2 * 4 * rows * width
