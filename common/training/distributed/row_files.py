"""Tensors whose rows are shared out over ranks, and files that hold all of their rows.

A file is an ordinary safetensors file, the same whatever the number of ranks. The leader alone writes and reads it, one
range of rows after the other, so that no rank holds a whole tensor, and the others need not see its disk.

(The files of ``torch.distributed.checkpoint`` are described by serialised Python objects, which may run code when they
are read, and its ranks need one disk.)
"""

import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.errors import BadInput
from common.files import atomic_file
from common.memory.process.budget import MIB
from common.training.distributed.group import Group, watched

if TYPE_CHECKING:
    import torch
    from torch import Tensor

BLOCK_BYTES = 4 * MIB
"""Largest part of a tensor that is sent, written or read at a time."""
_NAMES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
}
"""Types of safetensors, and PyTorch's names of them."""
_LONGEST_HEADER = 100 << 20
"""The format's own limit."""


@dataclass(frozen=True, slots=True)
class SharedRows:
    """A tensor of which each rank has a range of the rows.

    Attributes
    ----------
    own
        This rank's rows, in their order.
    ranges
        The rows of each rank; together they are all rows, in order.
    group
        The ranks.
    """

    own: "Tensor"
    ranges: tuple[range, ...]
    group: Group

    @classmethod
    def of(cls, own: "Tensor", rows: int, group: Group) -> "SharedRows":
        """Make one whose ranges are the ranks' shares of ``rows``."""
        return cls(own, tuple(group.world.shares(rows)), group)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the whole tensor."""
        return (self.ranges[-1].stop, *self.own.shape[1:])

    @property
    def dtype(self) -> "torch.dtype":
        """Type of its numbers."""
        return self.own.dtype

    def blocks(self) -> Iterator["Tensor"]:
        """Yield all rows in order, on the leader; the other ranks send theirs and get none."""
        import torch
        import torch.distributed as dist

        for rank, start, stop in self._spans():
            if rank == self.group.world.rank:
                first = self.ranges[rank].start
                block = self.own[start - first : stop - first].detach().contiguous()
                if self.group.leads:
                    yield block
                else:
                    with watched():
                        dist.send(_bytes(block), 0)
            elif self.group.leads:
                block = torch.empty(stop - start, *self.own.shape[1:], dtype=self.dtype)
                with watched():
                    dist.recv(_bytes(block), rank)
                yield block

    def fill(self, blocks: "Callable[[int, int], Tensor]") -> None:
        """Replace the rows of all ranks by those that ``blocks``, called by the leader, returns from row to row."""
        import torch
        import torch.distributed as dist

        for rank, start, stop in self._spans():
            if not self.group.leads and rank != self.group.world.rank:
                continue
            if self.group.leads:
                block = blocks(start, stop)
                if rank != 0:
                    with watched():
                        dist.send(_bytes(block), rank)
                    continue
            else:
                block = torch.empty(stop - start, *self.own.shape[1:], dtype=self.dtype)
                with watched():
                    dist.recv(_bytes(block), 0)
            first = self.ranges[rank].start
            with torch.no_grad():
                self.own[start - first : stop - first] = block

    def _spans(self) -> Iterator[tuple[int, int, int]]:
        """Yield rank, first row and the row after the last of each block."""
        width = self.own.dtype.itemsize
        for size in self.own.shape[1:]:
            width *= size
        step = max(1, BLOCK_BYTES // max(1, width))
        for rank, rows in enumerate(self.ranges):
            for start in range(rows.start, rows.stop, step):
                yield rank, start, min(start + step, rows.stop)


def _bytes(tensor: "Tensor") -> "Tensor":
    """View a contiguous tensor as bytes: gloo does not know every type."""
    import torch

    return tensor.reshape(-1).view(torch.uint8)


def save(path: Path, tensors: "Mapping[str, Tensor | SharedRows]", state: Mapping[str, Any], group: Group) -> None:
    """Write a file of tensors; all ranks call it, the leader writes.

    Parameters
    ----------
    path
        The file; it appears when it is whole.
    tensors
        By name, the same names on all ranks. Tensors that are not shared out are the leader's.
    state
        What else belongs to the file, serialisable as JSON.

    Raises
    ------
    LostRank
        A rank has ended; the file is as it was before.
    """
    if not group.leads:
        for value in tensors.values():
            if isinstance(value, SharedRows):
                for _ in value.blocks():
                    pass
        return
    header: dict[str, Any] = {"__metadata__": {"state": json.dumps(state)}}
    kinds, end = {f"torch.{name}": kind for kind, name in _NAMES.items()}, 0
    for name, value in tensors.items():
        start, end = end, end + _size(value.shape, value.dtype)
        header[name] = {"dtype": kinds[str(value.dtype)], "shape": list(value.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with atomic_file(path) as temporary, temporary.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for value in tensors.values():
            for block in value.blocks() if isinstance(value, SharedRows) else [value.detach().contiguous()]:
                if block.numel():
                    _bytes(block).numpy().tofile(stream)


def load(path: Path, tensors: "Mapping[str, Tensor | SharedRows]", group: Group) -> None:
    """Replace tensors by those in a file that ``save`` or another writer of the format wrote; all ranks call it.

    Parameters
    ----------
    path
        The file, which the leader reads.
    tensors
        By name, the same names on all ranks.

    Raises
    ------
    BadInput
        The file has other tensors, or not all of their bytes; on all ranks.
    LostRank
        A rank has ended.
    """
    import torch

    places: dict[str, int] = {}
    problem = ""
    if group.leads:
        try:
            places = _places(path, tensors)
        except BadInput as error:
            problem = str(error)
    if problem := group.of_leader(problem):
        raise BadInput(problem)
    descriptor = os.open(path, os.O_RDONLY) if group.leads else -1
    try:
        for name, value in tensors.items():
            reader = _Reader(descriptor, places.get(name, 0), value)
            if isinstance(value, SharedRows):
                value.fill(reader.rows)
            elif value.numel():
                read = reader.rows(0, 1).view(value.shape) if group.leads else value
                with torch.no_grad():
                    value.copy_(group.tensors_of_leader({"": read})[""])
    finally:
        if group.leads:
            os.close(descriptor)


def shapes(path: Path) -> dict[str, list[int]]:
    """Return the shapes of the tensors in a file by name.

    Raises
    ------
    BadInput
        The file is damaged.
    """
    return {name: shape for name, (_, shape, _, _) in _header(path)[0].items()}


class _Reader:
    """Reads rows of a tensor in an open file; one that is not shared out is one row."""

    def __init__(self, descriptor: int, place: int, like: "Tensor | SharedRows") -> None:
        self._descriptor, self._place, self._dtype = descriptor, place, like.dtype
        self._shape = like.shape[1:] if isinstance(like, SharedRows) else like.shape

    def rows(self, start: int, stop: int) -> "Tensor":
        import torch

        width = _size(self._shape, self._dtype)
        data = bytearray(os.pread(self._descriptor, width * (stop - start), self._place + width * start))
        return torch.frombuffer(data, dtype=self._dtype).view(stop - start, *self._shape)


def _size(shape: Any, dtype: "torch.dtype") -> int:
    size = dtype.itemsize
    for one in shape:
        size *= one
    return size


def _header(path: Path) -> tuple[dict[str, tuple[str, list[int], int, int]], int]:
    """Type, shape, first byte and the byte after the last of each tensor, and the offset of the first tensor."""
    damaged = BadInput(f"{path}: not a checkpoint, or damaged; remove it to start again")
    with path.open("rb") as stream:
        size = int.from_bytes(stream.read(8), "little")
        if size > min(_LONGEST_HEADER, path.stat().st_size - 8):
            raise damaged
        try:
            header = json.loads(stream.read(size))
            found: dict[str, tuple[str, list[int], int, int]] = {
                name: (
                    _NAMES[one["dtype"]],
                    [int(length) for length in one["shape"]],
                    int(one["data_offsets"][0]),
                    int(one["data_offsets"][1]),
                )
                for name, one in header.items()
                if name != "__metadata__"
            }
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            raise damaged from None
    return found, 8 + size


def _places(path: Path, tensors: "Mapping[str, Tensor | SharedRows]") -> dict[str, int]:
    """Offset in the file of each tensor."""
    (found, first), room = _header(path), path.stat().st_size
    places = {}
    for name, value in tensors.items():
        kind, shape, start, stop = found.get(name, ("nothing", [], 0, 0))
        if (f"torch.{kind}", shape) != (str(value.dtype), list(value.shape)):
            told = f"{name} is {kind} of shape {shape} and not {list(value.shape)}"
            raise BadInput(f"{path}: a checkpoint of another network ({told}); remove it to start again")
        if stop - start != _size(value.shape, value.dtype) or start < 0 or first + stop > room:
            raise BadInput(f"{path}: not a checkpoint, or damaged; remove it to start again")
        places[name] = first + start
    return places
