"""The course of a training: losses and Dice on the way, for the record, the report and TensorBoard."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

VALIDATIONS = 8
"""Number of validations on held-out cases during a training."""
ENTRIES = 64
"""Number of entries of a training, each with the mean loss since the one before."""


@dataclass(slots=True)
class Journal:
    """Entries by step; part of the checkpoint, so that a resumed training has them all."""

    events: Path | None = None
    """Folder for TensorBoard's event files; ``None``: none are written."""
    entries: list[dict[str, float]] = field(default_factory=list)
    """``step`` with ``loss`` (the mean since the one before) and ``learning_rate``, or with ``dice``."""
    best_dice: float = -1.0
    """Below every Dice until one was read."""
    best_step: int = 0
    worse: int = 0
    """Validations since the best one."""
    _losses: list[float] = field(default_factory=list)
    _next: float = 1 / ENTRIES
    """Progress at which the next entry is made."""
    _writer: Any = None

    def add(self, loss: float, *, step: int, progress: float, rate: float) -> None:
        """Note a step's loss; makes an entry ``ENTRIES`` times in a training.

        Parameters
        ----------
        step
            Number of steps done.
        progress
            Share of the training that is done.
        rate
            The learning rate.
        """
        self._losses.append(loss)
        if progress >= self._next:
            self._enter(step=step, rate=rate)
            self._next = (math.floor(progress * ENTRIES) + 1) / ENTRIES

    def validated(self, dice: float, *, step: int) -> bool:
        """Note the mean Dice of a validation; returns True if it is the best so far.

        It is NaN, and in no entry, where the cases have no class and none was found.
        """
        if not math.isnan(dice):
            self.entries.append({"step": step, "dice": round(dice, 5)})
            self._write(step, {"dice": dice})
        if dice > self.best_dice:
            self.best_dice, self.best_step, self.worse = dice, step, 0
            return True
        self.worse += 1
        return False

    @property
    def shown(self) -> dict[str, str]:
        """The last Dice, for the progress bar."""
        last = next((entry["dice"] for entry in reversed(self.entries) if "dice" in entry), None)
        return {} if last is None else {"dice": f"{last:.3f}"}

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps, as values that JSON can represent."""
        return {
            "entries": self.entries,
            "best": [self.best_dice, self.best_step, self.worse],
            "losses": self._losses,
            "next": self._next,
        }

    def load(self, state: dict[str, Any]) -> None:
        """Continue from what ``state`` returned."""
        self.entries, self._losses, self._next = state["entries"], state["losses"], state["next"]
        self.best_dice, self.best_step, self.worse = state["best"]

    def close(self) -> None:
        """Write what TensorBoard has not got yet."""
        if self._writer is not None:
            self._writer.close()

    def _enter(self, *, step: int, rate: float) -> None:
        entry = {"step": step, "loss": round(math.fsum(self._losses) / len(self._losses), 6), "learning_rate": rate}
        self.entries.append(entry)
        self._losses = []
        self._write(step, {"loss": entry["loss"], "learning_rate": rate})

    def _write(self, step: int, values: dict[str, float]) -> None:
        if self.events is None:
            return
        if self._writer is None:
            from tensorboardX import SummaryWriter

            self._writer = SummaryWriter(str(self.events))
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
