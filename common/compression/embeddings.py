"""Embedding tables that stay small while they train, behind one interface.

A step touches few rows of a large table. ``load`` decompresses those into a float32 leaf, forward and backward see
only that leaf, and ``descend`` takes its gradient and compresses the rows again. So there is no gradient of the whole
table, and the optimiser keeps one number a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from common.compression import rows as storage

if TYPE_CHECKING:
    from torch import Tensor


class EmbeddingTable(torch.nn.Module):
    """A table whose rows are stored one by one: float32, int8 or int4.

    Parameters
    ----------
    kind
        ``"full"``, ``"int8"`` or ``"int4"``.
    rows, width
        How many vectors, and numbers in each.
    deviation
        Standard deviation of the first numbers.
    memory
        1: row-wise Adagrad, a row's squared gradients are summed up. Less: their moving average, of which this share
        stays at each step, so that steps do not shrink by themselves.
    unit
        Rows are directions: each is stored with the length that its first numbers are expected to have.
    """

    codes: Tensor
    scales: Tensor | None
    state: Tensor

    def __init__(
        self, kind: str, rows: int, width: int, *, deviation: float, memory: float = 1.0, unit: bool = False
    ) -> None:
        super().__init__()
        self.rows, self.width, self.memory = rows, width, memory
        self.length = deviation * width**0.5 if unit else 0.0
        self.form = storage.FORMATS[kind]
        codes, scales = storage.empty(rows, width, self.form)
        self.register_buffer("codes", codes)
        self.register_buffer("scales", scales)
        self.register_buffer("state", torch.zeros(rows))
        self.loaded: Tensor | None = None
        self._ids: Tensor | None = None
        for start in range(0, rows, storage.BLOCK_ROWS):
            stop = min(start + storage.BLOCK_ROWS, rows)
            self._write(slice(start, stop), torch.randn(stop - start, width) * deviation, None)

    def load(self, ids: Tensor) -> None:
        """Decompress the rows ``ids``, each once, shape (n,), int64: what ``forward`` picks from."""
        self._ids = ids
        self.loaded = self.read(ids).requires_grad_()

    def read(self, ids: Tensor) -> Tensor:
        """Rows as float32, shape (n, width), in a new tensor."""
        codes = torch.nn.functional.embedding(ids, self.codes)
        return storage.decode(codes, None if self.scales is None else self.scales[ids], self.form)

    def forward(self, positions: Tensor) -> Tensor:
        """Loaded rows by their place among the loaded; shape ``positions.shape + (width,)``."""
        if self.loaded is None:
            raise RuntimeError("load the rows of a batch first")
        return torch.nn.functional.embedding(positions, self.loaded)

    def descend(self, rate: float) -> None:
        """One step on the loaded rows by the gradient that ``backward`` left, over its row's size; unloads them."""
        loaded, ids = self.loaded, self._ids
        self.loaded = self._ids = None
        if loaded is None or ids is None or loaded.grad is None:
            return
        gradient = loaded.grad
        state = self._remember(self.state[ids], gradient.square().mean(1))
        self.state[ids] = state
        gradient *= (-rate / (state.sqrt() + 1e-10))[:, None]
        gradient += loaded.detach()
        if self.length:
            gradient *= self.length / gradient.norm(dim=1, keepdim=True).clamp(min=1e-10)
        self._write(ids, gradient, None if self.scales is None else self.scales[ids])

    def _remember(self, state: Tensor, new: Tensor) -> Tensor:
        """A row's squared gradients so far; the first one counts in full."""
        if self.memory == 1:
            return state + new
        return torch.where(state > 0, self.memory * state + (1 - self.memory) * new, new)

    def _write(self, ids: Tensor | slice, values: Tensor, scales: Tensor | None) -> None:
        codes, scales = storage.encode(values, scales, self.form)
        self.codes[ids] = codes
        if self.scales is not None and scales is not None:
            self.scales[ids] = scales


class TableOptimizer(torch.optim.Optimizer):
    """Lets the tables step where a training loop expects an optimiser; their state lives in the tables themselves."""

    def __init__(self, tables: Sequence[EmbeddingTable], rate: float) -> None:
        self.tables = tables
        super().__init__([table.codes for table in tables], {"lr": rate})

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
