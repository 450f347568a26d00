"""Fixed inputs of a table's rows, for the kinds that have any (``common.compression.composed.FIXED``).

- ``frequency``: the row's rank by how often it is used.
- ``pq``: codes. Interactions are factorised by a truncated SVD, streamed from disk, and each of its dimensions is cut
  into equally large groups of rows: rows that are used alike share pieces (RecJPQ, Petrov and Macdonald 2024).

Both kinds are here for comparison: at equal bytes they rank worse than ``hash`` and ``int8`` (``docs/recsys.md``).
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

    from apps.recsys.models.embedding.embedding_config import EmbeddingConfig

ROUNDS = 6
"""Passes over the data that turn random directions into the SVD's (subspace iteration, Halko et al. 2011)."""


@dataclass(frozen=True, slots=True)
class FixedInputs:
    """Fixed inputs of the rows of the items' and of the users' table, shape (rows, n); ``None``: there are none."""

    items: Tensor | None = None
    users: Tensor | None = None


NO_FIXED_INPUTS = FixedInputs()

_Block = tuple["Tensor", "Tensor"]
"""Items of a range of users, and the number of items of each; int64."""
Blocks = Callable[[], Iterator[_Block]]
"""Starts a pass over the data."""


def fixed_inputs(history: History, kept: Kept, config: EmbeddingConfig, *, seed: int) -> FixedInputs:
    """Compute the fixed inputs of a network's tables from the training data.

    Parameters
    ----------
    history
        All interactions.
    kept
        The interactions that are trained on.
    config
        The network.
    seed
        Seed of the SVD's initial directions.
    """

    def blocks() -> Iterator[_Block]:
        for start, stop in history.blocks():
            keep = torch.from_numpy(kept.mask(start, stop))
            ends = torch.from_numpy(history.indptr[start : stop + 1] - history.indptr[start])
            before = torch.nn.functional.pad(keep.cumsum(0), (1, 0))[ends]
            yield torch.from_numpy(history.items(start, stop)).long()[keep], before.diff()

    if config.table == "frequency":
        item_counts, user_counts = torch.zeros(config.items, dtype=torch.int64), []
        for items, lengths in blocks():
            item_counts += torch.bincount(items, minlength=config.items)
            user_counts.append(lengths)
        return FixedInputs(_ranks(item_counts), _ranks(torch.cat(user_counts)) if config.users else None)
    if config.table == "pq":
        rank = max(table.fixed for table in config.layouts)
        items, users = svd(blocks, items=config.items, rank=rank, seed=seed)
        user_codes = _codes(users, config.user_table) if config.user_table else None
        return FixedInputs(_codes(items, config.item_table), user_codes)
    return NO_FIXED_INPUTS


def _ranks(counts: Tensor) -> Tensor:
    """Rank of each row, 0 for the largest count: shape (rows, 1), int32."""
    ranks = torch.empty(len(counts), 1, dtype=torch.int32)
    ranks[counts.argsort(descending=True, stable=True), 0] = torch.arange(len(counts), dtype=torch.int32)
    return ranks


def _codes(factors: Tensor, layout: Layout) -> Tensor:
    """Cut each dimension into as many equally large groups as there are centroids: shape (rows, codes), uint8."""
    centroids = layout.parts[0].rows // layout.fixed
    codes = torch.empty(layout.rows, layout.fixed, dtype=torch.uint8)
    group = (torch.arange(layout.rows) * centroids // layout.rows).to(torch.uint8)
    for number in range(layout.fixed):
        codes[factors[:, number].argsort(stable=True), number] = group
    return codes


def svd(blocks: Blocks, *, items: int, rank: int, seed: int) -> tuple[Tensor, Tensor]:
    """Truncated SVD of the binary interactions.

    Parameters
    ----------
    blocks
        Called for each pass over the data.
    items
        Number of items.
    rank
        Number of singular vectors.
    seed
        Seed of the initial directions.

    Returns
    -------
    items, users
        Right singular vectors, shape (items, rank), with the largest singular value first, and left ones times their
        singular values, shape (users, rank).
    """
    random = torch.Generator().manual_seed(seed)
    basis = torch.randn(items, rank, generator=random)
    for _ in range(ROUNDS):
        basis = torch.linalg.qr(_squared(blocks, basis)).Q
    # Within this subspace the singular vectors are the eigenvectors of a small matrix.
    rotation = torch.linalg.eigh(basis.T @ _squared(blocks, basis)).eigenvectors.flip(1)
    basis = basis @ rotation
    return basis, torch.cat([_times(block, basis) for block in blocks()])


def _times(block: _Block, basis: Tensor) -> Tensor:
    """Rows of the matrix times ``basis``, which are sums over the users' items: shape (users, rank)."""
    items, lengths = block
    return torch.nn.functional.embedding_bag(items, basis, lengths.cumsum(0) - lengths, mode="sum")


def _squared(blocks: Blocks, basis: Tensor) -> Tensor:
    """The transposed matrix times the matrix times ``basis``, shape (items, rank)."""
    total = torch.zeros_like(basis)
    for items, lengths in blocks():
        total.index_add_(0, items, _times((items, lengths), basis).repeat_interleave(lengths, 0))
    return total
