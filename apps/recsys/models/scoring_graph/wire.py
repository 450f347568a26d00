"""ONNX files whose large tensors are written from arrays, some rows at a time, so that no copy of them is in memory.

An ONNX file is one message of Protocol Buffers. All but the large tensors is made by ``onnx``. They are fields of the
graph too, each with its length in front, so they can be appended to it if the graph's length counts them (field numbers
of ``onnx.proto``: ``ModelProto.graph`` 7, ``GraphProto.initializer`` 5, ``TensorProto.raw_data`` 9).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy.typing import NDArray

LARGEST = (1 << 31) - (1 << 20)
"""Bytes of the weights of a file at most: a message has less than 2 GiB. The rest of it takes some kilobytes."""
GRAPH, INITIALIZER, RAW_DATA = 7, 5, 9
_LENGTH_DELIMITED = 2
_TYPES = {"<f4": 1, "<i4": 6}
"""Numbers of the types of tensors (``TensorProto.DataType``)."""


@dataclass(frozen=True, slots=True)
class Weight:
    """A large tensor.

    Attributes
    ----------
    name
        Its name in the graph.
    kind
        NumPy's name of the type, one of those of ``_TYPES``.
    shape
        Its shape.
    blocks
        Yields its numbers in order, as arrays.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    blocks: Callable[[], Iterable[NDArray[Any]]]

    @classmethod
    def of(cls, name: str, array: NDArray[Any]) -> Weight:
        """An array in memory."""
        return cls(name, array.dtype.str, array.shape, lambda: [array])

    @property
    def size(self) -> int:
        """Its bytes."""
        return 4 * math.prod(self.shape)


def write(path: Path, model: Any, weights: Sequence[Weight]) -> None:
    """Write a file.

    Parameters
    ----------
    path
        The file.
    model
        ``onnx.ModelProto`` without the weights; its graph is removed from it.
    weights
        Tensors that the graph names.
    """
    import numpy as np
    from onnx import TensorProto

    graph, heads = model.graph.SerializeToString(), []
    model.ClearField("graph")
    for weight in weights:
        described = TensorProto(name=weight.name, data_type=_TYPES[weight.kind], dims=weight.shape)
        head = described.SerializeToString() + _head(RAW_DATA, weight.size)
        heads.append(_head(INITIALIZER, len(head) + weight.size) + head)
    total = len(graph) + sum(len(head) for head in heads) + sum(weight.size for weight in weights)
    with path.open("wb") as stream:
        stream.write(model.SerializeToString())
        stream.write(_head(GRAPH, total) + graph)
        for head, weight in zip(heads, weights, strict=True):
            stream.write(head)
            end = stream.tell() + weight.size
            for block in weight.blocks():
                stream.write(np.ascontiguousarray(block, weight.kind).data)
            assert stream.tell() == end, weight.name


def _head(field: int, length: int) -> bytes:
    """What stands before a field that has a length."""
    return _number(field << 3 | _LENGTH_DELIMITED) + _number(length)


def _number(value: int) -> bytes:
    """A number in groups of 7 bits, the lowest first.

    Examples
    --------
    >>> _number(300).hex()
    'ac02'
    """
    out = bytearray()
    while value >= 1 << 7:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
