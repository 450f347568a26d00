"""Train an ``embedding`` model: epochs, each followed by a validation on hidden items, and checkpoints."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from apps.recsys.data import splits
from apps.recsys.data.csr_store import History
from apps.recsys.data.splits import HeldOut, Kept
from apps.recsys.models import weights
from apps.recsys.models.embedding import user_encoders
from apps.recsys.models.embedding.embedding_config import EmbeddingConfig
from apps.recsys.models.embedding.model import EmbeddingNetwork, make_step
from apps.recsys.models.embedding.table_codes import fixed_inputs
from apps.recsys.models.scorers import FactorScorer
from apps.recsys.planning.embedding_terms import SHARED, TABLE_ROWS
from apps.recsys.training import validation
from apps.recsys.training.batches import Batches
from apps.recsys.training.fit_factors import IterationCallback, no_callback
from apps.recsys.training.over_ranks import shared_tables, shared_validation
from common.compression.stored import StoredRows
from common.errors import BadInput
from common.memory.process import glibc
from common.training import checkpoint
from common.training.distributed.group import LostRank
from common.training.resume import resume

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from apps.recsys.training.session import TrainingSession

BEST = "best.safetensors"
"""Checkpoint of the epoch with the best validation."""
CHECKPOINT_SECONDS = 30.0
"""Longest time between checkpoints within an epoch."""
CHECKPOINT_SHARE = 0.1
"""Largest share of the time that checkpoints within an epoch may take: those of shared tables go through one rank."""
METRIC = "ndcg@20"
"""The metric that decides which epoch is the best."""


@dataclass(frozen=True, slots=True)
class TrainingConfig:
    """One training of an embedding.

    Attributes
    ----------
    network
        Sizes and hyper-parameters of the network.
    epochs
        Passes over the data at most.
    patience
        Epochs without a better validation after which training ends. Without ``validates`` it has no effect.
    validates
        True if some items are hidden from training, to validate on after each epoch.
    directory
        Folder of the history.
    checkpoints
        Folder of the checkpoints, in the model folder.
    split
        Way in which evaluation items are held out of training (``splits.KINDS``).
    seed
        Seed of the random numbers.
    settings
        All that decides the result (``resume_settings``): only a checkpoint with the same is continued.
    resume
        True if there must be a checkpoint to continue from.
    """

    network: EmbeddingConfig
    epochs: int
    patience: int
    validates: bool
    directory: Path
    checkpoints: Path
    split: str
    seed: int
    settings: Mapping[str, Any]
    resume: bool = False


@dataclass(slots=True)
class Progress:
    """Progress of a training, which a checkpoint keeps besides the tensors."""

    epoch: int = 0
    batches: int = 0
    """Batches done in the current epoch."""
    best: float = -math.inf
    best_epoch: int = 0
    seconds: float = 0.0


def learning_rate(network: EmbeddingConfig, progress: float) -> float:
    """Learning rate after a share of the training, from 0 to 1: half a cosine from the first rate down to zero."""
    return network.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))


class Trainer:
    """Trains the network of a ``TrainingConfig``.

    Parameters
    ----------
    config
        The training.
    session
        Plan (knobs ``micro_batch``, ``amp``, ``user_block``), threads and progress.
    callback
        Called after each epoch that is validated.

    Raises
    ------
    BadInput
        No user has two items to train on.
    """

    def __init__(
        self, config: TrainingConfig, session: TrainingSession, callback: IterationCallback = no_callback
    ) -> None:
        torch.set_num_threads(session.threads)
        torch.manual_seed(config.seed)
        self.config, self.session, self.callback = config, session, callback
        self.history = History(config.directory)
        kept = Kept.of(self.history, config.directory, config.split)
        self.hidden = self._hide(kept) if config.validates else None
        self.kept = Kept.of(self.history, config.directory, config.split, validation=self.hidden)
        self.batches = Batches(self.history, self.kept, config.network, seed=config.seed)
        if not self.batches.windows:
            raise BadInput("no user has two items to learn from", public="nothing to learn from")
        plan = session.plan
        with session.phase("arrange"):
            fixed = fixed_inputs(self.history, self.kept, config.network, seed=config.seed)
        self.group = session.group
        self.shared = plan.get(TABLE_ROWS) == SHARED
        self.network, self.optimizer, self.step = make_step(
            config.network,
            micro_batch=plan["micro_batch"],
            amp=plan["amp"],
            fixed=fixed,
            group=self.group,
            shared=self.shared,
        )
        self.step.training.on_shrink = lambda size: session.say(
            f"an allocation failed: continuing with micro-batches of {size}"
        )
        self.at = Progress()
        self._began = self._saved = time.monotonic()
        self._interval = CHECKPOINT_SECONDS

    def _hide(self, kept: Kept) -> HeldOut | None:
        users = splits.hide_for_validation(self.config.directory, kept, self.history, self.config.seed)
        return HeldOut(self.config.directory, "validation") if users else None

    def run(self) -> EmbeddingNetwork:
        """Train to the end; returns the network of the best epoch.

        Raises
        ------
        ArithmeticError
            The loss is not finite.
        UsageError, BadInput
            ``resume`` is set, and there is no checkpoint of this training.
        KeyboardInterrupt
            The session is stopping; a checkpoint has been written.
        LostRank
            Another rank has ended; a checkpoint has been written, unless the rank had rows that no other has.
        """
        try:
            return self._run()
        except LostRank as error:
            after = f"stopped in epoch {self.at.epoch + 1}, after {self.at.batches} batches"
            if self.shared:
                raise LostRank(f"{error}: {after}; the same command continues from the last checkpoint") from None
            self._save(left_alone=True)
            raise LostRank(f"{error}: {after}; the same command continues from there") from None

    def _run(self) -> EmbeddingNetwork:
        self._continue()
        config, at = self.config, self.at
        with self.session.progress(total=config.epochs, unit="epoch", label="fit") as bar:
            bar.update(at.epoch)
            while at.epoch < config.epochs and at.epoch - at.best_epoch < config.patience:
                with self.session.phase("fit"):
                    glibc.unpin_thresholds()  # mapping blocks at each use doubles a step's time by page faults
                    loss = self._epoch(bar)
                    glibc.pin_thresholds()
                at.epoch, at.batches = at.epoch + 1, 0
                if self.hidden is None:
                    at.best_epoch = at.epoch
                else:
                    glibc.trim()
                    with self.session.phase("validate"):
                        self._validate(loss)
                self._save()
        if self.hidden is not None and at.best_epoch < at.epoch:
            if self.shared:
                shared_tables.load(config.checkpoints / BEST, self.network, self.group)
            elif self.group.leads:
                checkpoint.restore(config.checkpoints / BEST, network=self.network, optimizer=self.optimizer)
        return self.network

    def _epoch(self, bar: Any) -> float:
        """The rest of an epoch; returns the mean loss over its batches."""
        at, config = self.at, self.config
        total, batches = 0.0, 0
        for batch in self.batches.epoch(at.epoch, after=at.batches):
            share = min(1.0, at.batches * config.network.batch / self.batches.windows)
            rate = learning_rate(config.network, (at.epoch + share) / config.epochs)
            self.optimizer.param_groups[0]["lr"] = rate
            total, batches = total + self.step(batch).item(), batches + 1
            if not math.isfinite(total):
                raise ArithmeticError(f"the loss is not finite in epoch {at.epoch + 1}; try a smaller learning_rate")
            at.batches += 1
            late = self.group.leads and time.monotonic() - self._saved > self._interval
            stopping, due = self.group.sums([self.session.stopping, late])
            if stopping or due:
                self._save()
            if stopping:
                raise KeyboardInterrupt
        bar.update()
        return total / batches if batches else math.nan

    def _validate(self, loss: float) -> None:
        """Rank for the users whose items were hidden; keep the network if no epoch was better."""
        at = self.at
        scores = self.group.of_leader(dict(validate(self)) if self.group.leads or self.shared else None)
        reached = scores[METRIC]
        if reached > at.best:
            at.best, at.best_epoch = reached, at.epoch
            self._write(self.config.checkpoints / BEST)
        self.session.say(
            f"epoch {at.epoch}: loss {loss:.4f}, {METRIC} {reached:.4f} on hidden items"
            + ("" if at.best_epoch == at.epoch else f" (best {at.best:.4f} in epoch {at.best_epoch})")
        )
        self.callback(at.epoch, lambda: scores)

    def _write(self, path: Path, *, left_alone: bool = False) -> None:
        """Write a checkpoint: all ranks have the same. The first writes it, which may be the one that has ended."""
        state = {"progress": asdict(self.at), "settings": self.config.settings}
        if self.shared:
            shared_tables.save(path, self.network, state, self.group)
            return
        if not (self.group.leads or (left_alone and self.group.world.beside_leader)):
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        checkpoint.save(path, network=self.network, optimizer=self.optimizer, state=state)

    def _save(self, *, left_alone: bool = False) -> None:
        now = time.monotonic()
        self.at.seconds += now - self._began
        self._began = now
        self._write(self.config.checkpoints / checkpoint.LAST, left_alone=left_alone)
        self._saved = time.monotonic()
        self._interval = max(CHECKPOINT_SECONDS, (self._saved - now) / CHECKPOINT_SHARE)

    def _continue(self) -> None:
        """Continue from the checkpoint, if there is one of the same training."""
        last = self.config.checkpoints / checkpoint.LAST
        found = self._checkpoint(last) if self.group.leads else None
        progress = self.group.of_leader(None if found is None else asdict(found[0]))
        if progress is None:
            return
        if self.shared:
            shared_tables.load(last, self.network, self.group)
        else:
            tensors = self.group.tensors_of_leader({} if found is None else found[1])
            checkpoint.apply(tensors, last, network=self.network, optimizer=self.optimizer)
        self.at = Progress(**progress)

    def _checkpoint(self, last: Path) -> tuple[Progress, dict[str, torch.Tensor]] | None:
        """Progress and tensors of the checkpoint, if there is one to continue from."""
        return resume(
            last,
            self.config.settings,
            read_settings=lambda path: checkpoint.read_state(path)["settings"],
            load=lambda path: (
                Progress(**checkpoint.read_state(path)["progress"]),
                {} if self.shared else checkpoint.read_tensors(path),
            ),
            progress=lambda found: f"in epoch {found[0].epoch + 1}, after {found[0].batches} batches",
            output=last.parent.parent,
            required=self.config.resume,
            say=self.session.say,
        )


def priors(trainer: Trainer) -> NDArray[np.float32] | None:
    """Prior score added to each item's cosine with a user, shape (items,); ``None``: nothing is added."""
    prior = trainer.batches.prior
    return None if prior is None else prior * np.float32(trainer.config.network.temperature)


def validate(trainer: Trainer) -> Mapping[str, float]:
    """``validation.METRICS`` of the network as it is."""
    network, config = trainer.network, trainer.config.network
    assert trainer.hidden is not None
    prior = priors(trainer)
    hyper = {**asdict(config), "user_vectors": config.user_vectors}
    if trainer.shared:
        return shared_validation.score(
            network, hyper, prior, group=trainer.group, history=trainer.history, hidden=trainer.hidden,
            kept=trainer.kept, block=int(trainer.session.plan["user_block"]),
        )  # fmt: skip
    items = network.items.dense(more=int(prior is not None))
    if prior is not None:
        items[:, -1] = prior
    user_side = None if network.user_side is None else network.user_side.dense()
    encoder = user_encoders.embedding(items, user_side, hyper)
    return validation.score(
        FactorScorer(items, encoder),
        history=trainer.history,
        hidden=trainer.hidden,
        kept=trainer.kept,
        session=trainer.session,
    )


def tensors(network: EmbeddingNetwork, prior: NDArray[np.float32] | None) -> dict[str, Any]:
    """The network's weights by their names in the model folder (``apps.recsys.models.weights``).

    Parameters
    ----------
    network
        A trained network.
    prior
        Prior score added to each item's score, shape (items,); ``None``: nothing is added.

    Returns
    -------
    dict
        NumPy arrays; of tables whose rows are shared out, ``streamed.Streamed``.
    """
    named: dict[str, Any] = {} if prior is None else {weights.PRIOR: prior}
    for name, table in ((weights.ITEMS, network.items), (weights.USER_SIDE, network.user_side)):
        if table is None:
            continue
        if not isinstance(table.form, StoredRows):
            named[name] = table.dense()
            continue
        if table.form.sharers is not None:
            named |= shared_tables.streamed(name, table.form)
            continue
        named[name] = table.form.codes.numpy()
        if table.form.scales is not None:
            named[f"{name}.scales"] = table.form.scales.numpy()
    return named
