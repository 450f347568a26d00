"""Tables whose rows are made of fewer stored ones, trained through what makes them.

A rule says which stored rows a row is made of (``addresses``) and how (``combine``). A step takes the gradient of the
rows through ``combine`` to the stored rows, and those step by themselves: no gradient of a whole table exists either.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

import torch
import torch.nn.functional as F

from common.compression.layouts import CENTROIDS, HASHES, Layout
from common.compression.stored import Start, StoredRows

if TYPE_CHECKING:
    from torch import Tensor

PRIME = (1 << 31) - 1
"""Of the hash functions; ids are smaller."""
FACTORS, SHIFTS = (1_103_515_245, 747_796_405), (12_345, 1_779_033_703)
"""Of the hash functions, one each: any numbers below ``PRIME`` (Carter and Wegman 1979)."""


SHARED_LR_SCALE = 0.02
"""Of a matrix that all rows are multiplied with, which steps in every batch, against the rows' pace. On MovieLens-1M,
NDCG@20 of ``lowrank`` was .242 at 0.1, .252 at 0.02 and .251 at 0.005 (6 epochs of the suite's ``table-ml-1m-*``)."""


class Rule(Protocol):
    """How rows are made of stored rows."""

    def starts(self, start: Start) -> Sequence[Start]:
        """How each part begins and steps, so that the rows begin with the deviation of ``start``."""
        ...

    def addresses(self, ids: Tensor, fixed: Tensor | None) -> list[Tensor]:
        """Stored rows of each part that the rows ``ids`` need; ``fixed``: what is known of these rows."""
        ...

    def combine(self, picked: list[Tensor], fixed: Tensor | None) -> Tensor:
        """The rows, shape (n, width), of the stored rows at the ``addresses``, one more dimension each."""
        ...


class Hash:
    """The sum of rows at several hashes of the id (Svenstrup et al. 2017, without the weights): few ids share both."""

    def __init__(self, layout: Layout) -> None:
        self.buckets = layout.parts[0].rows

    def starts(self, start: Start) -> Sequence[Start]:
        """Of a sum."""
        return [replace(start, deviation=start.deviation / HASHES**0.5)]

    def addresses(self, ids: Tensor, fixed: Tensor | None) -> list[Tensor]:
        """Shape (n, hashes)."""
        hashes = [(ids * factor + shift) % PRIME for factor, shift in zip(FACTORS, SHIFTS, strict=True)]
        return [torch.stack(hashes, 1) % self.buckets]

    def combine(self, picked: list[Tensor], fixed: Tensor | None) -> Tensor:
        """Their sum."""
        return picked[0].sum(1)


class QuotientRemainder:
    """The product, number by number, of a row for the id's remainder and one for its quotient (Shi et al. 2019)."""

    def __init__(self, layout: Layout) -> None:
        self.divisor = layout.parts[0].rows

    def starts(self, start: Start) -> Sequence[Start]:
        """Of a product; quotients are few, and shared by many."""
        first = replace(start, deviation=start.deviation**0.5)
        return [first, replace(first, lr_scale=SHARED_LR_SCALE)]

    def addresses(self, ids: Tensor, fixed: Tensor | None) -> list[Tensor]:
        """Remainders and quotients."""
        return [ids % self.divisor, ids // self.divisor]

    def combine(self, picked: list[Tensor], fixed: Tensor | None) -> Tensor:
        """Their product."""
        return picked[0] * picked[1]


class TensorTrain:
    """Two cores: a row is a matrix, the product of two of a small common rank (TT-Rec, Yin et al. 2021)."""

    def __init__(self, layout: Layout) -> None:
        left, right = layout.parts
        self.count, self.width = right.rows, layout.width
        # first * rank, rank * last and first * last are known: the rank is their quotient's root.
        self.rank = round((left.width * right.width / layout.width) ** 0.5)

    def starts(self, start: Start) -> Sequence[Start]:
        """Of a sum of ``rank`` products."""
        deviation = (start.deviation / self.rank**0.5) ** 0.5
        return [replace(start, deviation=deviation, unit_norm=False)] * 2

    def addresses(self, ids: Tensor, fixed: Tensor | None) -> list[Tensor]:
        """The id's two digits."""
        return [ids // self.count, ids % self.count]

    def combine(self, picked: list[Tensor], fixed: Tensor | None) -> Tensor:
        """The product of the two matrices."""
        left, right = picked
        product = left.view(len(left), -1, self.rank) @ right.view(len(right), self.rank, -1)
        return product.flatten(1)


class LowRank:
    """Rows of few numbers times one matrix."""

    def __init__(self, layout: Layout) -> None:
        self.rank = layout.parts[1].rows

    def starts(self, start: Start) -> Sequence[Start]:
        """Of products with a matrix that keeps lengths as they are."""
        return [start, _matrix(self.rank, start)]

    def addresses(self, ids: Tensor, fixed: Tensor | None) -> list[Tensor]:
        """The rows themselves, and the whole matrix."""
        return [ids, torch.arange(self.rank)]

    def combine(self, picked: list[Tensor], fixed: Tensor | None) -> Tensor:
        """Their product."""
        return picked[0] @ picked[1]


class ProductCodes:
    """Rows put together of trained pieces, which codes pick that were fixed before (RecJPQ, Petrov and Macdonald 2024).

    ``fixed`` holds the codes, shape (rows, codes), uint8.
    """

    def __init__(self, layout: Layout) -> None:
        self.codes = layout.fixed
        self.centroids = layout.parts[0].rows // self.codes

    def starts(self, start: Start) -> Sequence[Start]:
        """Pieces are copied, and have lengths of their own."""
        return [replace(start, unit_norm=False)]

    def addresses(self, ids: Tensor, fixed: Tensor | None) -> list[Tensor]:
        """Shape (n, codes): each code has pieces of its own."""
        assert fixed is not None
        return [fixed.long() + torch.arange(self.codes) * self.centroids]

    def combine(self, picked: list[Tensor], fixed: Tensor | None) -> Tensor:
        """One piece after the other."""
        return picked[0].flatten(1)


class ByFrequency:
    """Often used rows whole, the others as ``LowRank`` (mixed dimensions, Ginart et al. 2019).

    ``fixed`` holds each row's place in the order of use, shape (rows, 1), int32; 0 is used most.
    """

    def __init__(self, layout: Layout) -> None:
        self.whole, self.narrow = layout.parts[0].rows, layout.parts[2].rows

    def starts(self, start: Start) -> Sequence[Start]:
        """As of ``LowRank``."""
        return [start, start, _matrix(self.narrow, start)]

    def _order(self, fixed: Tensor | None) -> tuple[Tensor, Tensor, int]:
        """Places in order, where they came from, and how many are of whole rows."""
        assert fixed is not None
        places, order = fixed[:, 0].long().sort()
        return places, order, int((places < self.whole).sum())

    def addresses(self, ids: Tensor, fixed: Tensor | None) -> list[Tensor]:
        """Whole rows, narrow rows, and the whole matrix."""
        places, _, count = self._order(fixed)
        return [places[:count], places[count:] - self.whole, torch.arange(self.narrow)]

    def combine(self, picked: list[Tensor], fixed: Tensor | None) -> Tensor:
        """Whole rows, and products, put into order again."""
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
"""Kinds of which something is known before they are trained, and its type."""


class ComposedRows(torch.nn.Module):
    """Rows made by a rule, as ``StoredRows`` are stored.

    Parameters
    ----------
    fixed
        What the rule knows of every row beforehand, shape (rows, n); ``None``: something that takes as many bytes.
    """

    fixed: Tensor | None

    def __init__(self, layout: Layout, start: Start, fixed: Tensor | None) -> None:
        super().__init__()
        self.rule = RULES[layout.kind](layout)
        starts = self.rule.starts(start)
        self.parts = [StoredRows(part, own) for part, own in zip(layout.parts, starts, strict=True)]
        for number, part in enumerate(self.parts):
            self.add_module(f"part{number}", part)
        if fixed is None and layout.kind in FIXED:
            fixed = _stand_in(layout)
        self.register_buffer("fixed", fixed)

    def read(self, ids: Tensor) -> Tensor:
        """Rows as float32, shape (n, width), in a new tensor."""
        fixed = self._fixed(ids)
        addresses = self.rule.addresses(ids, fixed)
        picked = [part.read(at) for part, at in zip(self.parts, addresses, strict=True)]
        return self.rule.combine(picked, fixed)

    def step(self, ids: Tensor, values: Tensor, gradient: Tensor, rate: float) -> None:
        """One step of all that distinct rows are made of, by the rows' gradient, shape (n, width)."""
        fixed = self._fixed(ids)
        addresses = self.rule.addresses(ids, fixed)
        stored = [distinct(at, part.rows) for part, at in zip(self.parts, addresses, strict=True)]
        leaves = [part.read(rows).requires_grad_() for part, (rows, _) in zip(self.parts, stored, strict=True)]
        with torch.enable_grad():
            picked = [F.embedding(places, leaf) for leaf, (_, places) in zip(leaves, stored, strict=True)]
            torch.autograd.backward(self.rule.combine(picked, fixed), gradient)
        for part, leaf, (rows, _) in zip(self.parts, leaves, stored, strict=True):
            if leaf.grad is not None:
                part.step(rows, leaf.detach(), leaf.grad, rate)

    def _fixed(self, ids: Tensor) -> Tensor | None:
        return None if self.fixed is None else self.fixed[ids]


def _matrix(rank: int, start: Start) -> Start:
    """Of a matrix that all rows of ``rank`` numbers are multiplied with."""
    return replace(start, deviation=rank**-0.5, unit_norm=False, lr_scale=SHARED_LR_SCALE)


def distinct(addresses: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    """Distinct addresses, increasing, and the place of each among them.

    Fake tensors have no values: they stand for as many distinct ones as there can be.
    """
    from torch._subclasses.fake_tensor import FakeTensor

    if isinstance(addresses, FakeTensor):
        return addresses.flatten().sort().values[:rows], torch.zeros_like(addresses)
    found, places = torch.unique(addresses, return_inverse=True)
    return found, places


def _stand_in(layout: Layout) -> Tensor:
    """Codes or places that no data has decided: even ones."""
    if layout.kind == "pq":
        codes = torch.arange(layout.rows)[:, None] // CENTROIDS ** torch.arange(layout.fixed).clamp(max=7)
        return (codes % (layout.parts[0].rows // layout.fixed)).to(torch.uint8)
    return torch.arange(layout.rows, dtype=torch.int32)[:, None]
