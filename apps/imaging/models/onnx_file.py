"""A cheap check that a file can be an ONNX network, before anything is measured or loaded.

The outermost level of the file is walked, a few bytes a field. So a file that is cut off, empty or something else is
told from a network without loading a library. The graph itself is left to the engine.
"""

from pathlib import Path
from typing import BinaryIO

from common.errors import BadInput

_GRAPH, _OPSETS = 7, 8
_VARINT, _EIGHT_BYTES, _LENGTH, _FOUR_BYTES = 0, 1, 2, 5
"""Wire types of Protocol Buffers."""
_MOST_FIELDS = 100_000


def check_network(path: Path) -> None:
    """Refuse a file that is no ONNX network.

    Raises
    ------
    BadInput
        If its outermost level is not that of an ONNX model, or ends early.
    """
    with path.open("rb") as stream:
        problem = _problem(stream, path.stat().st_size)
    if problem:
        raise BadInput(f"{path}: not an ONNX network ({problem}); the model is damaged", public="network damaged")


def _problem(stream: BinaryIO, size: int) -> str:
    """The first fault; empty for a network."""
    seen: set[int] = set()
    for _ in range(_MOST_FIELDS):
        if stream.tell() == size:
            return "" if {_GRAPH, _OPSETS} <= seen else "it has no graph"
        tag = _varint(stream)
        kind, number = (tag & 7, tag >> 3) if tag is not None else (None, 0)
        if kind == _VARINT:
            skipped = 0 if _varint(stream) is not None else None
        elif kind == _LENGTH:
            skipped = _varint(stream)
        else:
            skipped = {_EIGHT_BYTES: 8, _FOUR_BYTES: 4}.get(kind) if kind is not None else None
        if skipped is None or not 0 < number < 1 << 29:
            return "its fields make no sense"
        if stream.tell() + skipped > size:
            return "it ends early"
        stream.seek(skipped, 1)
        seen.add(number)
    return "its fields make no sense"


def _varint(stream: BinaryIO) -> int | None:
    """The next variable-length integer; ``None`` if there is none."""
    value = 0
    for shift in range(0, 64, 7):
        byte = stream.read(1)
        if not byte:
            return None
        value |= (byte[0] & 0x7F) << shift
        if byte[0] < 0x80:
            return value
    return None
