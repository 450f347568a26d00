"""Rows stored in float32, int8 or int4, updated by row-wise Adagrad with one number of state per row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch

from common.compression import row_formats as storage
from common.compression.layouts import Part

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Start:
    """Initialisation and step sizes of rows.

    Attributes
    ----------
    deviation
        Standard deviation of the initial numbers.
    ema_decay
        1: row-wise Adagrad, which sums a row's squared gradients. Less than 1: their exponential moving average with
        this decay, so that steps do not shrink over time.
    unit_norm
        Rows are directions: each is rescaled to the expected initial length after every step.
    lr_scale
        Factor on the learning rate.
    """

    deviation: float
    ema_decay: float = 1.0
    unit_norm: bool = False
    lr_scale: float = 1.0


class Sharers(Protocol):
    """Processes among which the rows of a table are shared out."""

    def share(self, samples: int) -> range:
        """Return which of ``samples`` rows are this process's."""
        ...

    def added(self, values: Tensor) -> Tensor:
        """Add a tensor over all processes, in place."""
        ...


class StoredRows(torch.nn.Module):
    """The rows of a ``Part`` with the optimiser's state.

    Parameters
    ----------
    part
        Number, width and format of the rows.
    start
        Initialisation and step sizes.
    sharers
        The processes that have a range of the rows each, with its state; ``None``: this one has all. All must call the
        same methods with the same arguments. The rows are those of one process: it draws all of them at the start.
    """

    codes: Tensor
    scales: Tensor | None
    state: Tensor
    step_count: Tensor
    """Number of steps, a scalar; only for formats that round."""

    def __init__(self, part: Part, start: Start, sharers: Sharers | None = None) -> None:
        super().__init__()
        self.sharers = sharers
        self.own = range(part.rows) if sharers is None else sharers.share(part.rows)
        """Rows that are stored here."""
        self.rows, self.ema_decay, self.lr_scale = part.rows, start.ema_decay, start.lr_scale
        self.length = start.deviation * part.width**0.5 if start.unit_norm else 0.0
        self.form = storage.FORMATS[part.kind]
        codes, scales = storage.empty(len(self.own), part.width, self.form)
        self.register_buffer("codes", codes)
        self.register_buffer("scales", scales)
        self.register_buffer("state", torch.zeros(len(self.own)))
        if scales is not None:
            self.register_buffer("step_count", torch.zeros((), dtype=torch.int64))
        for first in range(0, part.rows, storage.BLOCK_ROWS):
            last = min(first + storage.BLOCK_ROWS, part.rows)
            self._begin(first, torch.randn(last - first, part.width) * start.deviation)

    def _begin(self, first: int, values: Tensor) -> None:
        """Store those of the initial rows from ``first`` on that are this process's."""
        codes, scales = storage.encode(values, None, self.form)
        start, stop = max(first, self.own.start), min(first + len(values), self.own.stop)
        if start < stop:
            places, some = slice(start - self.own.start, stop - self.own.start), slice(start - first, stop - first)
            self.codes[places] = codes[some]
            if self.scales is not None and scales is not None:
                self.scales[places] = scales[some]

    def read(self, ids: Tensor) -> Tensor:
        """Return rows as a new float32 tensor, shape ``ids.shape + (width,)``."""
        if self.sharers is None:
            return self.read_own(ids)
        own = self._is_own(ids)
        found = self.read_own(ids[own] - self.own.start)
        every = found.new_zeros(*ids.shape, found.shape[-1])
        every[own] = found
        return self.sharers.added(every)

    def read_own(self, places: Tensor) -> Tensor:
        """Return some of the rows ``own``, by their places among these."""
        codes = torch.nn.functional.embedding(places, self.codes)
        return storage.decode(codes, None if self.scales is None else self.scales[places], self.form)

    def _is_own(self, ids: Tensor) -> Tensor:
        return (ids >= self.own.start) & (ids < self.own.stop)

    def step(self, ids: Tensor, values: Tensor, gradient: Tensor, rate: float) -> None:
        """Update distinct rows.

        Parameters
        ----------
        values
            The rows as ``read`` returned them, shape (n, width).
        gradient
            Their gradient, shape (n, width); overwritten.
        rate
            Learning rate.
        """
        if self.sharers is not None:
            own = self._is_own(ids)
            ids, values, gradient = ids[own], values[own], gradient[own]
        places = ids - self.own.start if self.own.start else ids
        state = self._accumulated(self.state[places], gradient.square().mean(1))
        self.state[places] = state
        gradient *= (-rate * self.lr_scale / (state.sqrt() + 1e-10))[:, None]
        gradient += values
        if self.length:
            gradient *= self.length / gradient.norm(dim=1, keepdim=True).clamp(min=1e-10)
        if self.scales is None:
            self.codes[places] = gradient
            return
        self.step_count += 1
        thresholds = storage.rounding_thresholds(ids, gradient.shape[1], self.step_count)
        codes, scales = storage.encode(gradient, self.scales[places], self.form, thresholds)
        self.codes[places] = codes
        assert scales is not None
        self.scales[places] = scales

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *more: Any) -> None:
        """Load a state; checkpoints of version 0.1 call the number of steps ``turn``."""
        if f"{prefix}turn" in state_dict:
            state_dict[f"{prefix}step_count"] = state_dict.pop(f"{prefix}turn")
        super()._load_from_state_dict(state_dict, prefix, *more)

    def _accumulated(self, state: Tensor, new: Tensor) -> Tensor:
        """Return the accumulated squared gradients of rows; a moving average begins with the first one."""
        if self.ema_decay == 1:
            return state + new
        return torch.where(state > 0, self.ema_decay * state + (1 - self.ema_decay) * new, new)
