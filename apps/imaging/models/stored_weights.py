"""What ``weights.safetensors`` says of its tensors, read from its header alone and without a library."""

import json
from math import prod
from pathlib import Path
from typing import Any

from common.engines.base import WEIGHTS
from common.errors import BadInput

_MOST = 100 << 20
"""Largest header that safetensors itself reads."""


def header(directory: Path) -> dict[str, dict[str, Any]]:
    """Type, shape and place of each tensor of a model folder.

    Raises
    ------
    BadInput
        If the file is no such file.
    """
    path = directory / WEIGHTS
    try:
        with path.open("rb") as stream:
            size = int.from_bytes(stream.read(8), "little")
            entries: dict[str, Any] = json.loads(stream.read(size)) if size <= _MOST else {}
        entries.pop("__metadata__", None)
        sizes = [prod(entry["shape"]) for entry in entries.values()]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadInput(f"{path}: not a file of weights ({error})", public="weights unreadable") from None
    if not sizes:
        raise BadInput(f"{path}: not a file of weights", public="weights unreadable")
    return entries


def stored_parameters(directory: Path) -> int:
    """Number of parameters and buffers in a model folder."""
    return sum(prod(entry["shape"]) for entry in header(directory).values())
