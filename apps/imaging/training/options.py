"""Options of ``imaging train`` on the command line, checked; no library is loaded."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import UsageError
from common.extras import require
from common.memory.process.cuda import HOST
from common.training import amp, optimizers
from common.training.distributed.world import ONE, World

HYPER: Mapping[str, Any] = {
    "batch": 2,
    "learning_rate": 2e-3,
    "weight_decay": 1e-4,
    "clip": 5.0,
    "mirror": "x",
    "validation_cases": 8,
    "optimizer": optimizers.DEFAULT,
    "dice": "sample",
    "balance": 0.0,
    "schedule": "cosine",
    "ema": 0.0,
    "keep": "last",
    "patience": 0,
    "distillation": 1.0,
    "temperature": 2.0,
    "store": "float32",
    "quantise": "off",
    "deep_supervision": "off",
    "augment": "light",
}
"""Hyper-parameters that ``--set`` can change, with their defaults."""
CHOICES = {
    "dice": ("sample", "batch"),
    "schedule": ("cosine", "poly", "constant"),
    "keep": ("last", "best"),
    "store": ("float32", "float16"),
    "quantise": ("off", "int8"),
    "deep_supervision": ("off", "on"),
    "augment": ("none", "light", "full"),
}
"""Values of hyper-parameters that are words."""
Levels = list[int | list[int]]
"""A number for each level of a network, or three where the axes differ."""
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
    synthesize: Path | None
    """The class table of label maps whose images are synthesised; ``None``: the data set has images."""
    network: str | None
    """``None``: that of ``init``."""
    layers: Mapping[str, Levels]
    """Arguments of the network that differ from its defaults, as lists also where it takes a number."""
    init: Path | None
    """The model whose weights the training starts from."""
    patch: tuple[int, int, int] | None
    """Voxels along the model's axes; ``None``: the median case."""
    spacing: tuple[float, float, float] | None
    """Millimetres along the model's axes; ``None``: the cases' median, or that of ``init``."""
    recipe: Path | None = None
    """The file with network, patches, spacing and normalisation (``imaging fingerprint``)."""
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
    """``memory``, ``disk`` or ``compressed``."""
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
    balance: float
    """Power of a class's share of its patch by which the cross-entropy of its voxels is divided."""
    schedule: str
    """``"cosine"``, ``"poly"`` or ``"constant"``."""
    ema: float
    """Decay of the weights' moving average; 0: none."""
    keep: str
    """``"last"`` or ``"best"`` weights."""
    patience: int
    """Validations without a better Dice after which the training ends; 0: never."""
    distill: Path | None
    """The model whose predictions are soft labels."""
    distillation: float
    """Weight of their term."""
    temperature: float
    store: str
    """Type of the numbers of the prepared images: ``"float32"`` or ``"float16"``."""
    quantise: str
    """``"int8"``: convolutions see weights and inputs rounded to 8 bits; or ``"off"``."""
    deep_supervision: str
    """``"on"``: coarser levels of the decoder predict the classes too, in training; or ``"off"``."""
    augment: str
    """How patches are augmented: ``"none"``, ``"light"`` or ``"full"``."""
    tensorboard: bool
    """Write event files for TensorBoard."""
    skip_bad: bool
    """Leave unusable cases out instead of stopping at the first."""
    resume: bool
    """Insist on continuing an unfinished training."""
    trial: Path | None
    """The file of the search (``--tune``) of which this is the next trial."""
    seed: int
    threads: int
    device: str
    world: World = ONE
    """The ranks that train together, and which of them this is."""
    quiet: bool
    command: str
    """The command line without directories, for the model card."""

    def __post_init__(self) -> None:
        if self.amp is not None:
            amp.require(self.amp, self.device)
        self._check_ranges()
        if self.batch < 1 or set(self.mirror) - set("xyz"):
            raise UsageError("--set: batch must be at least 1, and mirror made of x, y and z")
        optimizers.check(self.optimizer)
        if self.cache == "compressed":
            require("compressed", "blosc", purpose="--cache compressed")
        if self.tensorboard:
            require("tensorboard", "tensorboardX", purpose="--tensorboard")
        for name, words in CHOICES.items():
            if (value := getattr(self, name)) not in words:
                raise UsageError(f"--set {name}={value}: must be {' or '.join(words)}")
        if self.init is not None and (self.layers or self.spacing):
            raise UsageError("--layers and --spacing: those of the model that --init names are used; leave them out")
        if self.recipe is not None and (
            self.network or self.layers or self.spacing or self.patch or self.init or self.synthesize
        ):
            raise UsageError(
                "--recipe: the file has network, layers, spacing and patch; edit it, and leave out --network, --layers,"
                " --spacing, --patch, --init and --synthesize"
            )
        if (self.patience or self.keep == "best") and (self.fold is None or not self.validation_cases):
            raise UsageError("--set patience and keep=best need validations: a fold, and validation_cases above 0")
        self.world.check_batch(self.batch)
        if self.world.size > 1 and self.device != HOST:
            raise UsageError("--device: several ranks train on CPUs only")
        if max(self.accumulate or 1, self.micro_batch or 1) > self.batch:
            raise UsageError(
                f"--micro-batch and --accumulate cannot be more than the batch of {self.batch} (--set batch=N)"
            )

    def _check_ranges(self) -> None:
        for name, default in HYPER.items():
            value = getattr(self, name)
            if not isinstance(default, str) and not 0 <= value < float("inf"):
                raise UsageError(f"--set {name}={value}: must not be negative")
        if self.synthesize is not None and self.augment != HYPER["augment"]:
            raise UsageError("--set augment: images that --synthesize makes are varied as they are made; leave it out")
        if self.distill is not None and self.deep_supervision == "on":
            raise UsageError("--set deep_supervision=on: not with --distill, whose model has one level; leave one out")
        if self.balance > 1:
            raise UsageError(f"--set balance={self.balance}: from 0 (all voxels count alike) to 1 (all classes do)")
        if not self.temperature:
            raise UsageError("--set temperature=0: logits are divided by it; 1 to 4 are usual")
        if self.ema >= 1:
            raise UsageError(f"--set ema={self.ema}: a decay is below 1 (0.99 or 0.999 are usual; 0: no average)")
