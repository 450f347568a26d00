"""An interrupted factorisation goes on where it stopped: both factor matrices as they stood after an iteration."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.files import atomic_file

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

FILE = "ials.state"
"""In the model folder's ``.training``: a JSON line, then the two matrices as NumPy writes them."""


def key(matrix: Any, settings: Mapping[str, Any]) -> str:
    """What a state belongs to: the interactions as they are trained on, and all settings."""
    running = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for part in (matrix.indptr, matrix.indices, matrix.data):
        running.update(memoryview(part).cast("B"))
    return running.hexdigest()


def save(path: Path, key: str, done: int, *matrices: NDArray[np.float32]) -> None:
    """Write atomically and without a copy."""
    import numpy as np

    with atomic_file(path) as part, part.open("wb") as stream:
        stream.write(json.dumps({"key": key, "done": done}).encode() + b"\n")
        for matrix in matrices:
            np.save(stream, matrix, allow_pickle=False)


def load(path: Path, key: str) -> tuple[int, list[NDArray[np.float32]]] | None:
    """Iterations done and the two matrices, if there is a state and it is of the same training."""
    import numpy as np

    try:
        with path.open("rb") as stream:
            state = json.loads(stream.readline())
            if state["key"] != key:
                return None
            return int(state["done"]), [np.load(stream, allow_pickle=False) for _ in range(2)]
    except (OSError, ValueError, KeyError, TypeError, EOFError):
        return None  # none, or not one of ours: start anew
