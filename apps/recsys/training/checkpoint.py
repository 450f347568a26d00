"""An interrupted factorisation goes on where it stopped: both factor matrices as they stood after a block of rows."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apps.recsys.models.als.factor_state import FactorState
from common.errors import BadInput, UsageError
from common.files import atomic_file

if TYPE_CHECKING:
    from common.cli.session import Session

FILE = "factors.state"
"""In the model folder's ``.training``: a JSON line, then the two matrices as NumPy writes them."""
SHARE = 0.01
"""Saving may take this share of the time: after every sweep, unless a sweep is shorter than 100 savings."""


class Checkpoint:
    """The file that keeps a state. It takes no memory: arrays are written from, and read into, where they are.

    Parameters
    ----------
    path
        The file.
    settings
        All that decides the result, the data's digest among it; a state with other ones is not taken up.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        # Through JSON, so that what was read compares equal to what is asked for.
        self.path, self.settings = path, json.loads(json.dumps(settings))
        self._saved, self._cost = time.monotonic(), 0.0

    def due(self) -> bool:
        """Whether so much time has passed since the last ``save`` that another is within ``SHARE``."""
        return time.monotonic() - self._saved >= self._cost / SHARE

    def save(self, state: FactorState) -> None:
        """Write atomically."""
        import numpy as np

        began = time.monotonic()
        head = {"settings": self.settings, "sweep": state.sweep, "row": state.row}
        with atomic_file(self.path) as part, part.open("wb") as stream:
            stream.write(json.dumps(head).encode() + b"\n")
            for matrix in (state.users, state.items):
                np.save(stream, matrix, allow_pickle=False)
        self._saved = time.monotonic()
        self._cost = self._saved - began

    def differing(self) -> list[str]:
        """Names of the settings in which the state at ``path`` is of another training; empty if of this one.

        Raises
        ------
        FileNotFoundError
            If there is none.
        """
        with self.path.open("rb") as stream:
            try:
                return differing(self.settings, json.loads(stream.readline())["settings"])
            except (ValueError, KeyError, TypeError, AttributeError):
                return ["file"]

    def load(self) -> FactorState | None:
        """The state at ``path``; ``None`` if it is damaged."""
        import numpy as np

        with self.path.open("rb") as stream:
            try:
                head = json.loads(stream.readline())
                matrices = [np.load(stream, allow_pickle=False) for _ in range(2)]
                return FactorState(*matrices, sweep=int(head["sweep"]), row=int(head["row"]))
            except (ValueError, KeyError, TypeError, EOFError):
                return None


def differing(wanted: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """Names of the settings in which a checkpoint is of another training."""
    return [name for name, value in wanted.items() if found.get(name) != value]


def refused(names: Sequence[str], session: Session, *, resume: bool) -> bool:
    """Whether a checkpoint that differs in so much is left alone, which is said. ``--resume`` takes no other.

    Raises
    ------
    UsageError
        With ``resume``.
    """
    if not names:
        return False
    what = f"another training ({', '.join(names)})"
    if resume:
        raise UsageError(f"--resume: the checkpoint is of {what}")
    session.say(f"the checkpoint found is of {what}; starting anew")
    return True


def nothing_to_resume(output: Path) -> BadInput:
    """For ``--resume`` where there is no checkpoint."""
    return BadInput(f"{output}: nothing to resume", public="nothing to resume")
