"""Tables whose rows are composed of fewer stored rows: hashing, quotient-remainder, tensor train, low rank, codes.

A rule names the stored rows that a row is composed of (``addresses``) and composes it (``combine``). A step propagates
the rows' gradient through ``combine`` to the stored rows, which are then updated. A gradient of a whole table never
exists.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

import torch
import torch.nn.functional as F

from common.compression.layouts import CENTROIDS, HASHES, Layout
from common.compression.stored import Start, StoredRows
from common.gradients import backpropagate

if TYPE_CHECKING:
    from torch import Tensor

PRIME = (1 << 31) - 1
"""Modulus of the hash functions; ids are smaller."""
FACTORS, SHIFTS = (1_103_515_245, 747_796_405), (12_345, 1_779_033_703)
"""One factor and one shift per hash function: any numbers below ``PRIME`` (Carter and Wegman 1979)."""


SHARED_LR_SCALE = 0.02
"""Learning rate, relative to the rows', of a matrix that all rows share and every batch updates. On MovieLens-1M,
NDCG@20 of ``lowrank`` was .242 at 0.1, .252 at 0.02 and .251 at 0.005 (6 epochs of the cases ``table-ml-1m-*``)."""


class Rule(Protocol):
    """Composes rows of stored rows; ``fixed`` are the rows' fixed inputs, for kinds that have them (``FIXED``)."""

    def starts(self, start: Start) -> Sequence[Start]:
        """Return the initialisation of each part; composed rows then begin with the deviation of ``start``."""
        ...

    def addresses(self, ids: Tensor, fixed: Tensor | None) -> list[Tensor]:
        """Return the stored rows of each part that the rows ``ids``, shape (n,), are composed of."""
        ...

    def combine(self, picked: list[Tensor], fixed: Tensor | None) -> Tensor:
        """Compose rows, shape (n, width), of the stored rows at the ``addresses``, which have one more dimension."""
        ...


class Hash:
    """The sum of the rows at two hashes of the id (Svenstrup et al. 2017, without the weights); few ids share both."""

    def __init__(self, layout: Layout) -> None:
        self.buckets = layout.parts[0].rows

    def starts(self, start: Start) -> Sequence[Start]:
        """Return the initialisation of the summands."""
        return [replace(start, deviation=start.deviation / HASHES**0.5)]

    def addresses(self, ids: Tensor, fixed: Tensor | None) -> list[Tensor]:
        """Return the hashes, shape (n, ``HASHES``)."""
        hashes = [(ids * factor + shift) % PRIME for factor, shift in zip(FACTORS, SHIFTS, strict=True)]
        return [torch.stack(hashes, 1) % self.buckets]

    def combine(self, picked: list[Tensor], fixed: Tensor | None) -> Tensor:
        """Return the sum."""
        return picked[0].sum(1)


class QuotientRemainder:
    """The elementwise product of a row for the id's remainder and one for its quotient (Shi et al. 2019)."""

    def __init__(self, layout: Layout) -> None:
        self.divisor = layout.parts[0].rows

    def starts(self, start: Start) -> Sequence[Start]:
        """Return the initialisation of the factors; the few quotient rows are shared by many ids."""
        first = replace(start, deviation=start.deviation**0.5)
        return [first, replace(first, lr_scale=SHARED_LR_SCALE)]

    def addresses(self, ids: Tensor, fixed: Tensor | None) -> list[Tensor]:
        """Return remainders and quotients, (n,) each."""
        return [ids % self.divisor, ids // self.divisor]

    def combine(self, picked: list[Tensor], fixed: Tensor | None) -> Tensor:
        """Return the elementwise product."""
        return picked[0] * picked[1]


class TensorTrain:
    """Two cores: a row is a matrix, the product of two matrices with a small common rank (TT-Rec, Yin et al. 2021)."""

    def __init__(self, layout: Layout) -> None:
        left, right = layout.parts
        self.count, self.width = right.rows, layout.width
        # From first * rank, rank * last and first * last follows the rank.
        self.rank = round((left.width * right.width / layout.width) ** 0.5)

    def starts(self, start: Start) -> Sequence[Start]:
        """Return the initialisation of both cores; a number of a row is a sum of ``rank`` products."""
        deviation = (start.deviation / self.rank**0.5) ** 0.5
        return [replace(start, deviation=deviation, unit_norm=False)] * 2

    def addresses(self, ids: Tensor, fixed: Tensor | None) -> list[Tensor]:
        """Return the id's two digits, (n,) each."""
        return [ids // self.count, ids % self.count]

    def combine(self, picked: list[Tensor], fixed: Tensor | None) -> Tensor:
        """Return the product of the two matrices, flattened."""
        left, right = picked
        product = left.view(len(left), -1, self.rank) @ right.view(len(right), self.rank, -1)
        return product.flatten(1)


class LowRank:
    """Rows of few numbers times one shared matrix."""

    def __init__(self, layout: Layout) -> None:
        self.rank = layout.parts[1].rows

    def starts(self, start: Start) -> Sequence[Start]:
        """Return the initialisation of rows and matrix; the matrix preserves lengths."""
        return [start, _matrix(self.rank, start)]

    def addresses(self, ids: Tensor, fixed: Tensor | None) -> list[Tensor]:
        """Return the ids and all rows of the matrix."""
        return [ids, torch.arange(self.rank)]

    def combine(self, picked: list[Tensor], fixed: Tensor | None) -> Tensor:
        """Return the matrix product."""
        return picked[0] @ picked[1]


class ProductCodes:
    """Rows concatenated from trained centroids, chosen by codes fixed before (RecJPQ, Petrov and Macdonald 2024).

    ``fixed`` holds the codes, shape (rows, codes), uint8.
    """

    def __init__(self, layout: Layout) -> None:
        self.codes = layout.fixed
        self.centroids = layout.parts[0].rows // self.codes

    def starts(self, start: Start) -> Sequence[Start]:
        """Return the initialisation of the centroids, which are not normalised."""
        return [replace(start, unit_norm=False)]

    def addresses(self, ids: Tensor, fixed: Tensor | None) -> list[Tensor]:
        """Return the centroids' rows, shape (n, codes); each code has its own centroids."""
        assert fixed is not None
        return [fixed.long() + torch.arange(self.codes) * self.centroids]

    def combine(self, picked: list[Tensor], fixed: Tensor | None) -> Tensor:
        """Concatenate the centroids."""
        return picked[0].flatten(1)


class ByFrequency:
    """Frequent rows in full width, the others as ``LowRank`` (mixed dimensions, Ginart et al. 2019).

    ``fixed`` holds each row's rank by frequency, shape (rows, 1), int32; the most frequent row has rank 0.
    """

    def __init__(self, layout: Layout) -> None:
        self.whole, self.narrow = layout.parts[0].rows, layout.parts[2].rows

    def starts(self, start: Start) -> Sequence[Start]:
        """Return the initialisation of full rows, narrow rows and matrix, the latter as in ``LowRank``."""
        return [start, start, _matrix(self.narrow, start)]

    def _order(self, fixed: Tensor | None) -> tuple[Tensor, Tensor, int]:
        """Return the sorted ranks, their original positions, and the number of full rows among them."""
        assert fixed is not None
        ranks, order = fixed[:, 0].long().sort()
        return ranks, order, int((ranks < self.whole).sum())

    def addresses(self, ids: Tensor, fixed: Tensor | None) -> list[Tensor]:
        """Return the full rows, the narrow rows, and all rows of the matrix."""
        ranks, _, count = self._order(fixed)
        return [ranks[:count], ranks[count:] - self.whole, torch.arange(self.narrow)]

    def combine(self, picked: list[Tensor], fixed: Tensor | None) -> Tensor:
        """Return full rows and products in the order of the ids."""
        _, order, _ = self._order(fixed)
        return torch.cat([picked[0], picked[1] @ picked[2]])[order.argsort()]


RULES: dict[str, Callable[[Layout], Rule]] = {
    "hash": Hash,
    "qr": QuotientRemainder,
    "tt": TensorTrain,
    "lowrank": LowRank,
    "pq": ProductCodes,
    "frequency": ByFrequency,
}
FIXED = {"pq": torch.uint8, "frequency": torch.int32}
"""Dtype of the fixed per-row input, by table kind."""


class ComposedRows(torch.nn.Module):
    """Rows composed by a rule, with the interface of ``StoredRows``.

    Parameters
    ----------
    fixed
        Fixed per-row input of the rule, shape (rows, n). ``None``: a placeholder of the same size.
    """

    fixed: Tensor | None

    def __init__(self, layout: Layout, start: Start, fixed: Tensor | None) -> None:
        super().__init__()
        self.rule = RULES[layout.kind](layout)
        starts = self.rule.starts(start)
        self.parts = [StoredRows(part, part_start) for part, part_start in zip(layout.parts, starts, strict=True)]
        for number, part in enumerate(self.parts):
            self.add_module(f"part{number}", part)
        if fixed is None and layout.kind in FIXED:
            fixed = _placeholder(layout)
        self.register_buffer("fixed", fixed)

    def read(self, ids: Tensor) -> Tensor:
        """Return rows as a new float32 tensor, shape (n, width)."""
        fixed = self._fixed(ids)
        addresses = self.rule.addresses(ids, fixed)
        picked = [part.read(at) for part, at in zip(self.parts, addresses, strict=True)]
        return self.rule.combine(picked, fixed)

    def step(self, ids: Tensor, values: Tensor, gradient: Tensor, rate: float) -> None:
        """Update the stored rows that distinct rows are composed of, by the rows' gradient, shape (n, width)."""
        fixed = self._fixed(ids)
        addresses = self.rule.addresses(ids, fixed)
        stored = [distinct(at, part.rows) for part, at in zip(self.parts, addresses, strict=True)]
        leaves = [part.read(rows).requires_grad_() for part, (rows, _) in zip(self.parts, stored, strict=True)]
        with torch.enable_grad():
            picked = [F.embedding(positions, leaf) for leaf, (_, positions) in zip(leaves, stored, strict=True)]
            backpropagate([self.rule.combine(picked, fixed)], [gradient])
        for part, leaf, (rows, _) in zip(self.parts, leaves, stored, strict=True):
            if leaf.grad is not None:
                part.step(rows, leaf.detach(), leaf.grad, rate)

    def _fixed(self, ids: Tensor) -> Tensor | None:
        return None if self.fixed is None else self.fixed[ids]


def _matrix(rank: int, start: Start) -> Start:
    """Return the initialisation of a matrix that all rows of ``rank`` numbers are multiplied with."""
    return replace(start, deviation=rank**-0.5, unit_norm=False, lr_scale=SHARED_LR_SCALE)


def distinct(addresses: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    """Return the sorted distinct addresses, and the position of each address among them.

    Fake tensors have no values; for them the largest possible number of distinct addresses is returned.

    Parameters
    ----------
    rows
        Number of stored rows, an upper bound of the distinct addresses.
    """
    from torch._subclasses.fake_tensor import FakeTensor

    if isinstance(addresses, FakeTensor):
        return addresses.flatten().sort().values[:rows], torch.zeros_like(addresses)
    unique, positions = torch.unique(addresses, return_inverse=True)
    return unique, positions


def _placeholder(layout: Layout) -> Tensor:
    """Return evenly spread codes or ranks, for tables without data."""
    if layout.kind == "pq":
        codes = torch.arange(layout.rows)[:, None] // CENTROIDS ** torch.arange(layout.fixed).clamp(max=7)
        return (codes % (layout.parts[0].rows // layout.fixed)).to(torch.uint8)
    return torch.arange(layout.rows, dtype=torch.int32)[:, None]
