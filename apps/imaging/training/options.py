"""Options of ``imaging train`` on the command line, checked; no library is loaded."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import UsageError
from common.training import amp, optimizers

HYPER: Mapping[str, Any] = {
    "batch": 2,
    "learning_rate": 2e-3,
    "weight_decay": 1e-4,
    "clip": 5.0,
    "mirror": "x",
    "validation_cases": 8,
    "optimizer": optimizers.DEFAULT,
    "dice": "sample",
}
"""Hyper-parameters that ``--set`` can change, with their defaults."""
DICE = ("sample", "batch")
STEPS = 2000
"""Optimiser steps, if the user says neither steps nor epochs nor a time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainOptions:
    """The options of ``imaging train``.

    Raises
    ------
    UsageError
        Values beyond their range, options that contradict each other, or a precision that this CPU does not have.
    """

    dataset: Path
    output: Path
    network: str | None
    """``None``: that of ``init``."""
    init: Path | None
    """The model whose weights the training starts from."""
    patch: tuple[int, int, int] | None
    """Voxels along the model's axes; ``None``: the median case."""
    fold: tuple[int, int] | None
    """``(K, N)``: hold out part K of N; ``None``: train on every case."""
    steps: int | None
    epochs: int | None
    seconds: float | None
    """The length of the training: at most one of the three is set."""
    batch: int
    """Patches per step."""
    micro_batch: int | None
    """Patches per forward pass; ``None``: the planner's choice, as for ``amp`` and ``cache``."""
    accumulate: int | None
    """Forward passes per step."""
    amp: str | None
    """``off``, ``bf16`` or ``fp16``."""
    cache: str | None
    """``memory`` or ``disk``."""
    learning_rate: float
    weight_decay: float
    clip: float
    """Largest norm of the gradient; 0: any."""
    mirror: str
    """Axes (of ``"xyz"``) along which patches are mirrored."""
    validation_cases: int
    """Held-out cases that are looked at on the way."""
    optimizer: str
    dice: str
    """Dice of each ``"sample"`` or of the whole ``"batch"``."""
    skip_bad: bool
    """Leave unusable cases out instead of stopping at the first."""
    resume: bool
    """Insist on continuing an unfinished training."""
    seed: int
    threads: int
    device: str
    quiet: bool
    command: str
    """The command line without directories, for the model card."""

    def __post_init__(self) -> None:
        if self.amp is not None:
            amp.require(self.amp, self.device)
        for name, default in HYPER.items():
            value = getattr(self, name)
            if not isinstance(default, str) and not 0 <= value < float("inf"):
                raise UsageError(f"--set {name}={value}: must not be negative")
        if self.batch < 1 or set(self.mirror) - set("xyz"):
            raise UsageError("--set: batch must be at least 1, and mirror made of x, y and z")
        optimizers.check(self.optimizer)
        if self.dice not in DICE:
            raise UsageError(f"--set dice={self.dice}: Dice is of each sample or of the batch")
        if max(self.accumulate or 1, self.micro_batch or 1) > self.batch:
            raise UsageError(
                f"--micro-batch and --accumulate cannot be more than the batch of {self.batch} (--set batch=N)"
            )
