"""Checkpoints of ``ials`` and ``bpr``: both factor matrices as they are after a block of rows."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from apps.recsys.models.als.factor_state import FactorState
from common.files import atomic_file

FILE = "factors.state"
"""In the model folder's ``.training``: a JSON line, then the two matrices as NumPy writes them."""
SHARE = 0.01
"""Largest share of the time that saving may take: a checkpoint after every sweep, unless a sweep is shorter than 100
times what a checkpoint takes."""


class FactorCheckpoint:
    """The file that keeps a state. Arrays are written from and read into their own memory, without copies.

    Parameters
    ----------
    path
        The file.
    settings
        All that decides the result (``resume_settings``); a checkpoint with other settings is not continued.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        self.path, self.settings = path, settings
        self._saved, self._cost = time.monotonic(), 0.0

    def due(self) -> bool:
        """True if so much time has passed since the last ``save`` that another one stays within ``SHARE``."""
        return time.monotonic() - self._saved >= self._cost / SHARE

    def save(self, state: FactorState) -> None:
        """Write the state atomically."""
        import numpy as np

        began = time.monotonic()
        with atomic_file(self.path) as part, part.open("wb") as stream:
            stream.write(self.head(state))
            for matrix in (state.users, state.items):
                np.save(stream, matrix, allow_pickle=False)
        self._saved = time.monotonic()
        self._cost = self._saved - began

    def head(self, state: FactorState) -> bytes:
        """The line before the matrices."""
        head = {"settings": self.settings, "sweep": state.sweep, "row": state.row}
        return json.dumps(head).encode() + b"\n"

    def read_settings(self) -> Mapping[str, Any] | None:
        """The settings in the file; ``None`` if it is damaged."""
        with self.path.open("rb") as stream:
            try:
                settings: Mapping[str, Any] = json.loads(stream.readline())["settings"]
                return settings
            except (ValueError, KeyError, TypeError):
                return None

    def load(self) -> FactorState | None:
        """The state in the file; ``None`` if the file is damaged."""
        import numpy as np

        with self.path.open("rb") as stream:
            try:
                head = json.loads(stream.readline())
                users, items = (np.load(stream, allow_pickle=False) for _ in range(2))
                return FactorState(users, items, sweep=int(head["sweep"]), row=int(head["row"]))
            except (ValueError, KeyError, TypeError, EOFError):
                return None
