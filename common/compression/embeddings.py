"""Embedding tables that stay compressed while they train.

A step uses few rows of a large table. ``load`` decompresses those into a float32 leaf tensor, forward and backward see
only that leaf, and ``descend`` applies its gradient and compresses the rows again. There is no gradient of the whole
table, and the optimiser has one number per stored row.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from common.compression.composed import RULES, ComposedRows
from common.compression.layouts import Layout
from common.compression.row_formats import BLOCK_ROWS
from common.compression.stored import Sharers, Start, StoredRows

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor


class EmbeddingTable(torch.nn.Module):
    """An embedding table of any kind (``layouts.KINDS``).

    Parameters
    ----------
    layout
        Size and stored parts of the table.
    start
        Initialisation and step sizes of its rows.
    fixed
        Fixed per-row input, shape (rows, n), for the kinds in ``composed.FIXED``.
    sharers
        The processes among which the rows of a table of ``row_formats.FORMATS`` are shared out, as ``StoredRows``.

    Examples
    --------
    >>> import torch
    >>> from common.compression.layouts import layout
    >>> table = EmbeddingTable(layout("int8", rows=100, width=8, row_bytes=0), Start(deviation=0.1))
    >>> table.load(torch.tensor([3, 7]))
    >>> table(torch.tensor([[0, 1, 1]])).sum().backward()  # rows 3, 7, 7
    >>> table.descend(0.01)
    """

    form: StoredRows | ComposedRows

    def __init__(
        self, layout: Layout, start: Start, fixed: Tensor | None = None, sharers: Sharers | None = None
    ) -> None:
        super().__init__()
        self.rows, self.width = layout.rows, layout.width
        composed = layout.kind in RULES
        self.form = ComposedRows(layout, start, fixed) if composed else StoredRows(layout.parts[0], start, sharers)
        self.loaded: Tensor | None = None
        self._ids: Tensor | None = None

    def load(self, ids: Tensor) -> None:
        """Decompress the distinct rows ``ids``, int64 (n,), for ``forward``."""
        self._ids = ids
        self.loaded = self.form.read(ids).requires_grad_()

    def read(self, ids: Tensor) -> Tensor:
        """Return rows as a new float32 tensor, shape (n, width)."""
        return self.form.read(ids)

    def dense(self, *, more: int = 0) -> NDArray[np.float32]:
        """Return all rows, float32 (rows, width + more), decompressed block by block.

        Parameters
        ----------
        more
            Additional columns, which are left uninitialised.
        """
        import numpy as np

        every = np.empty((self.rows, self.width + more), np.float32)
        for start in range(0, self.rows, BLOCK_ROWS):
            ids = torch.arange(start, min(start + BLOCK_ROWS, self.rows))
            every[start : start + BLOCK_ROWS, : self.width] = self.form.read(ids).numpy()
        return every

    def forward(self, positions: Tensor) -> Tensor:
        """Return loaded rows by their positions among them, shape ``positions.shape + (width,)``.

        Raises
        ------
        RuntimeError
            No rows are loaded.
        """
        if self.loaded is None:
            raise RuntimeError("load the rows of a batch first")
        return torch.nn.functional.embedding(positions, self.loaded)

    def descend(self, rate: float) -> None:
        """Update the loaded rows by the gradient that ``backward`` left, and unload them."""
        loaded, ids = self.loaded, self._ids
        self.loaded = self._ids = None
        if loaded is not None and ids is not None and loaded.grad is not None:
            self.form.step(ids, loaded.detach(), loaded.grad, rate)


class TableOptimizer(torch.optim.Optimizer):
    """An optimiser for training loops that updates tables; the optimiser state is in the tables themselves."""

    def __init__(self, tables: Sequence[EmbeddingTable], rate: float) -> None:
        self.tables = tables
        super().__init__([next(table.buffers()) for table in tables], {"lr": rate})

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every table that has loaded rows."""
        with torch.no_grad():
            for table in self.tables:
                table.descend(self.param_groups[0]["lr"])

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop the gradients of the loaded rows, before a failed step is repeated."""
        for table in self.tables:
            if table.loaded is not None:
                table.loaded.grad = None
