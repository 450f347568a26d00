"""What tables of some kinds are told about every row before they are trained (``compositions.FIXED``).

- ``frequency``: the row's place in the order of how often it is used.
- ``pq``: codes. Interactions are factorised by a truncated SVD, streamed from disk, and each of its dimensions is cut
  into equally large parts: rows that are used alike share pieces (RecJPQ, Petrov and Macdonald 2024).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from apps.recsys.data.csr_store import History
from apps.recsys.data.splits import Kept
from common.compression.layouts import Layout

if TYPE_CHECKING:
    from torch import Tensor

    from apps.recsys.models.embedding.embedding_config import Recipe

ROUNDS = 6
"""Passes over the data that turn random directions into the SVD's (subspace iteration, Halko et al. 2011)."""


@dataclass(frozen=True, slots=True)
class Known:
    """For the tables of items and of users; ``None``: nothing."""

    items: Tensor | None = None
    users: Tensor | None = None


NOTHING = Known()

_Block = tuple["Tensor", "Tensor"]
"""Items of a range of users, and how many each has; int64."""
Blocks = Callable[[], Iterator[_Block]]


def gather(history: History, kept: Kept, recipe: Recipe, *, seed: int) -> Known:
    """What the tables of a recipe are told, from what is trained on.

    Returns
    -------
    Known
        Shapes (items, n) and (users, n), as the tables' kind takes them.
    """

    def blocks() -> Iterator[_Block]:
        for start, stop in history.blocks():
            keep = torch.from_numpy(kept.mask(start, stop))
            ends = torch.from_numpy(history.indptr[start : stop + 1] - history.indptr[start])
            before = torch.nn.functional.pad(keep.cumsum(0), (1, 0))[ends]
            yield torch.from_numpy(history.items(start, stop)).long()[keep], before.diff()

    if recipe.table == "frequency":
        counts, used = torch.zeros(recipe.items, dtype=torch.int64), []
        for items, lengths in blocks():
            counts += torch.bincount(items, minlength=recipe.items)
            used.append(lengths)
        return Known(_places(counts), _places(torch.cat(used)) if recipe.users else None)
    if recipe.table == "pq":
        wanted = max(table.fixed for table in recipe.layouts)
        items, users = svd(blocks, items=recipe.items, rank=wanted, seed=seed)
        return Known(_codes(items, recipe.item_table), _codes(users, recipe.user_table) if recipe.user_table else None)
    return NOTHING


def _places(counts: Tensor) -> Tensor:
    """Each row's place when the largest counts come first."""
    places = torch.empty(len(counts), 1, dtype=torch.int32)
    places[counts.argsort(descending=True, stable=True), 0] = torch.arange(len(counts), dtype=torch.int32)
    return places


def _codes(factors: Tensor, layout: Layout) -> Tensor:
    """Each dimension cut into as many equally large parts as there are centroids; shape (rows, codes)."""
    centroids = layout.parts[0].rows // layout.fixed
    codes = torch.empty(layout.rows, layout.fixed, dtype=torch.uint8)
    part = (torch.arange(layout.rows) * centroids // layout.rows).to(torch.uint8)
    for number in range(layout.fixed):
        codes[factors[:, number].argsort(stable=True), number] = part
    return codes


def svd(blocks: Blocks, *, items: int, rank: int, seed: int) -> tuple[Tensor, Tensor]:
    """Truncated SVD of the interactions, a one each.

    Parameters
    ----------
    blocks
        Called for each pass over the data.

    Returns
    -------
    items, users
        Right singular vectors, shape (items, rank), of the largest singular values first, and the left ones times
        those values, shape (users, rank).
    """
    random = torch.Generator().manual_seed(seed)
    basis = torch.randn(items, rank, generator=random)
    for _ in range(ROUNDS):
        basis = torch.linalg.qr(_squared(blocks, basis)).Q
    # Within the space that was found, its directions are the eigenvectors of a small matrix.
    turn = torch.linalg.eigh(basis.T @ _squared(blocks, basis)).eigenvectors.flip(1)
    basis = basis @ turn
    return basis, torch.cat([_times(block, basis) for block in blocks()])


def _times(block: _Block, basis: Tensor) -> Tensor:
    """Users' rows of the matrix times ``basis``: sums over their items; shape (users, rank)."""
    items, lengths = block
    return torch.nn.functional.embedding_bag(items, basis, lengths.cumsum(0) - lengths, mode="sum")


def _squared(blocks: Blocks, basis: Tensor) -> Tensor:
    """The transposed matrix times the matrix times ``basis``, shape (items, rank)."""
    total = torch.zeros_like(basis)
    for items, lengths in blocks():
        total.index_add_(0, items, _times((items, lengths), basis).repeat_interleave(lengths, 0))
    return total
