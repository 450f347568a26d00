"""Embedding tables whose rows are shared out over ranks: their checkpoints, and their weights in the model folder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from apps.recsys.models.streamed import Streamed
from common.compression.stored import StoredRows
from common.training import checkpoint
from common.training.distributed import row_files
from common.training.distributed.group import Group
from common.training.distributed.row_files import SharedRows

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

PARTS = ("codes", "scales", "state")
"""Tensors of ``StoredRows`` that have its rows."""


def save(path: Path, network: torch.nn.Module, state: Mapping[str, Any], group: Group) -> None:
    """Write a checkpoint that ``common.training.checkpoint`` would have written in one process; all ranks call it.

    Parameters
    ----------
    path
        The file.
    network
        An ``EmbeddingNetwork`` with shared tables.
    state
        Progress and settings of the training.
    group
        The ranks.

    Raises
    ------
    LostRank
        A rank has ended.
    """
    tensors = _tensors(network, group)
    tensors[checkpoint.RANDOM] = torch.get_rng_state()
    row_files.save(path, tensors, state, group)


def load(path: Path, network: torch.nn.Module, group: Group) -> None:
    """Load a checkpoint of any number of ranks; all ranks call it. The parameters are those of ``save``.

    Raises
    ------
    BadInput
        The checkpoint is damaged, or of another network.
    LostRank
        A rank has ended.
    """
    row_files.load(path, _tensors(network, group), group)


def _tensors(network: torch.nn.Module, group: Group) -> dict[str, Tensor | SharedRows]:
    found: dict[str, Tensor | SharedRows] = dict(network.state_dict())
    for name, module in network.named_modules():
        if isinstance(module, StoredRows):
            for part in PARTS:
                if (key := f"{name}.{part}") in found:
                    found[key] = SharedRows.of(getattr(module, part), module.rows, group)
    return {checkpoint.NETWORK + name: value for name, value in found.items()}


def streamed(name: str, rows: StoredRows) -> dict[str, Streamed]:
    """The tensors of a shared table in ``weights.safetensors``, which the leader writes range by range.

    Parameters
    ----------
    name
        Name of the table there.
    rows
        The table.
    """
    group = rows.sharers
    assert isinstance(group, Group)
    parts = {name: rows.codes} | ({} if rows.scales is None else {f"{name}.scales": rows.scales})
    return {key: streamed_rows(SharedRows.of(part, rows.rows, group)) for key, part in parts.items()}


def streamed_rows(rows: SharedRows) -> Streamed:
    """A shared matrix as an array that is never whole in memory."""
    kind = np.dtype(str(rows.dtype).removeprefix("torch."))

    def blocks() -> Iterator[NDArray[Any]]:
        return (block.numpy() for block in rows.blocks())

    return Streamed(rows.shape, kind, blocks)
