"""Embedding tables that stay small while they train, behind one interface.

A step touches few rows of a large table. ``load`` decompresses those into a float32 leaf, forward and backward see
only that leaf, and ``descend`` takes its gradient and changes what the rows are stored as or made of. So there is no
gradient of the whole table, and the optimiser keeps one number for each stored row.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from common.compression.composed import RULES, ComposedRows
from common.compression.layouts import Layout
from common.compression.row_formats import BLOCK_ROWS
from common.compression.stored import Start, StoredRows

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor


class EmbeddingTable(torch.nn.Module):
    """A table of any kind (``layouts.KINDS``).

    Parameters
    ----------
    layout
        Its size, and what it is made of.
    start
        How its rows begin and step.
    fixed
        For the kinds in ``compositions.FIXED``: what is known beforehand of every row.
    """

    form: StoredRows | ComposedRows

    def __init__(self, layout: Layout, start: Start, fixed: Tensor | None = None) -> None:
        super().__init__()
        self.rows, self.width = layout.rows, layout.width
        composed = layout.kind in RULES
        self.form = ComposedRows(layout, start, fixed) if composed else StoredRows(layout.parts[0], start)
        self.loaded: Tensor | None = None
        self._ids: Tensor | None = None

    def load(self, ids: Tensor) -> None:
        """Decompress the rows ``ids``, each once, shape (n,), int64: what ``forward`` picks from."""
        self._ids = ids
        self.loaded = self.form.read(ids).requires_grad_()

    def read(self, ids: Tensor) -> Tensor:
        """Rows as float32, shape (n, width), in a new tensor."""
        return self.form.read(ids)

    def dense(self, *, more: int = 0) -> NDArray[np.float32]:
        """All rows, shape (rows, width), decompressed block by block; ``more`` columns after them are not set."""
        import numpy as np

        every = np.empty((self.rows, self.width + more), np.float32)
        for start in range(0, self.rows, BLOCK_ROWS):
            ids = torch.arange(start, min(start + BLOCK_ROWS, self.rows))
            every[start : start + BLOCK_ROWS, : self.width] = self.form.read(ids).numpy()
        return every

    def forward(self, positions: Tensor) -> Tensor:
        """Loaded rows by their place among the loaded; shape ``positions.shape + (width,)``."""
        if self.loaded is None:
            raise RuntimeError("load the rows of a batch first")
        return torch.nn.functional.embedding(positions, self.loaded)

    def descend(self, rate: float) -> None:
        """One step by the gradient that ``backward`` left of the loaded rows; unloads them."""
        loaded, ids = self.loaded, self._ids
        self.loaded = self._ids = None
        if loaded is not None and ids is not None and loaded.grad is not None:
            self.form.step(ids, loaded.detach(), loaded.grad, rate)


class TableOptimizer(torch.optim.Optimizer):
    """Lets the tables step where a training loop expects an optimiser; their state lives in the tables themselves."""

    def __init__(self, tables: Sequence[EmbeddingTable], rate: float) -> None:
        self.tables = tables
        super().__init__([next(table.buffers()) for table in tables], {"lr": rate})

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Step every table that has loaded rows."""
        with torch.no_grad():
            for table in self.tables:
                table.descend(self.param_groups[0]["lr"])

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients of the loaded rows: before a failed step is tried again."""
        for table in self.tables:
            if table.loaded is not None:
                table.loaded.grad = None
