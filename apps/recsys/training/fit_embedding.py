"""Train an ``embedding`` model: epochs, a look at hidden items after each, checkpoints; continued where it stopped."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from apps.recsys.data import splits
from apps.recsys.data.csr_store import History
from apps.recsys.data.splits import HeldOut, Kept
from apps.recsys.models.embedding import user_encoders
from apps.recsys.models.embedding.embedding_config import Recipe
from apps.recsys.models.embedding.model import Network, make_step
from apps.recsys.models.embedding.table_codes import gather
from apps.recsys.training import checkpoint as pause
from apps.recsys.training import validation as hidden
from apps.recsys.training.batches import Batches
from apps.recsys.training.fit_factors import Watch, unwatched
from common.compression.stored import StoredRows
from common.errors import BadInput
from common.memory.process import glibc
from common.training import checkpoint

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from common.cli.session import Session

BEST = "best.safetensors"
CHECKPOINT_SECONDS = 30.0
METRIC = "ndcg@20"
"""What decides which epoch was the best."""


@dataclass(frozen=True, slots=True)
class Course:
    """One training.

    Attributes
    ----------
    directory
        Where the history is.
    work
        Where checkpoints go.
    held_out, whole_users
        Whether there is a split, and whether its users are left out altogether (``split.Kept``).
    patience
        Epochs without a better validation after which it ends; without ``validation`` it never does.
    resume
        A checkpoint must be there.
    """

    recipe: Recipe
    epochs: int
    patience: int
    validation: bool
    directory: Path
    work: Path
    held_out: bool
    whole_users: bool
    seed: int
    resume: bool = False


@dataclass(slots=True)
class Progress:
    """How far it is: what a checkpoint keeps beside the tensors."""

    epoch: int = 0
    batches: int = 0
    """Of the current epoch."""
    best: float = -math.inf
    best_epoch: int = 0
    seconds: float = 0.0


def rate(recipe: Recipe, progress: float) -> float:
    """Learning rate at a share of the training: half a cosine down to zero."""
    return recipe.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))


class Learner:
    """The loop, and all that it holds."""

    def __init__(self, course: Course, session: Session, watch: Watch = unwatched) -> None:
        torch.set_num_threads(session.threads)
        torch.manual_seed(course.seed)
        self.course, self.session, self.watch = course, session, watch
        self.history = History(course.directory)
        heldout = HeldOut(course.directory) if course.held_out else None
        kept = Kept(self.history, heldout, whole_users=course.whole_users)
        self.validation = self._hide(kept) if course.validation else None
        self.kept = Kept(self.history, heldout, whole_users=course.whole_users, validation=self.validation)
        self.batches = Batches(self.history, self.kept, course.recipe, seed=course.seed)
        if not self.batches.windows:
            raise BadInput("no user has two items to learn from", public="nothing to learn from")
        plan = session.plan
        with session.phase("arrange"):
            known = gather(self.history, self.kept, course.recipe, seed=course.seed)
        self.network, self.optimizer, self.step = make_step(
            course.recipe, micro_batch=plan["micro_batch"], amp=plan["amp"], known=known
        )
        self.step.training.on_shrink = lambda size: session.say(
            f"an allocation failed: going on with micro-batches of {size}"
        )
        self.at = Progress()
        self._began = self._saved = time.monotonic()

    def _hide(self, kept: Kept) -> HeldOut | None:
        users = splits.hide_for_validation(self.course.directory, kept, self.history, self.course.seed)
        return HeldOut(self.course.directory, "validation") if users else None

    def run(self) -> Network:
        """Train to the end; returns the network as it was at its best."""
        self._continue()
        course, at = self.course, self.at
        with self.session.progress(total=course.epochs, unit="epoch", label="fit") as bar:
            bar.update(at.epoch)
            while at.epoch < course.epochs and at.epoch - at.best_epoch < course.patience:
                with self.session.phase("fit"):
                    glibc.unpin_thresholds()  # mapped anew at each use, a step's tensors cost as much again in page faults
                    loss = self._epoch(bar)
                    glibc.pin_thresholds()
                at.epoch, at.batches = at.epoch + 1, 0
                if self.validation is None:
                    at.best_epoch = at.epoch
                else:
                    glibc.trim()
                    with self.session.phase("validate"):
                        self._validate(loss)
                self._save()
        if self.validation is not None and at.best_epoch < at.epoch:
            checkpoint.restore(course.work / BEST, network=self.network, optimizer=self.optimizer)
        return self.network

    def _epoch(self, bar: Any) -> float:
        """The rest of an epoch; returns the mean loss over its batches."""
        at, course = self.at, self.course
        total, seen = 0.0, 0
        for batch in self.batches.epoch(at.epoch, after=at.batches):
            share = min(1.0, at.batches * course.recipe.batch / self.batches.windows)
            self.optimizer.param_groups[0]["lr"] = rate(course.recipe, (at.epoch + share) / course.epochs)
            total, seen = total + self.step(batch).item(), seen + 1
            if not math.isfinite(total):
                raise ArithmeticError(f"the loss is not finite in epoch {at.epoch + 1}; try a smaller learning_rate")
            at.batches += 1
            if self.session.stopping:
                self._save()
                raise KeyboardInterrupt
            if time.monotonic() - self._saved > CHECKPOINT_SECONDS:
                self._save()
        bar.update()
        return total / seen if seen else math.nan

    def _validate(self, loss: float) -> None:
        """Rank for the users whose items were hidden; keep the network if it was never better."""
        at = self.at
        scores = validate(self)
        reached = scores[METRIC]
        if reached > at.best:
            at.best, at.best_epoch = reached, at.epoch
            self._write(self.course.work / BEST)
        self.session.say(
            f"epoch {at.epoch}: loss {loss:.4f}, {METRIC} {reached:.4f} on hidden items"
            + ("" if at.best_epoch == at.epoch else f" (best {at.best:.4f} in epoch {at.best_epoch})")
        )
        self.watch(at.epoch, lambda: scores)

    def _settings(self) -> dict[str, Any]:
        course = self.course
        data = {"users": self.history.rows, "interactions": self.history.size}
        named = ("epochs", "validation", "held_out", "whole_users", "seed")
        return {**asdict(course.recipe), **data, **{name: getattr(course, name) for name in named}}

    def _write(self, path: Path) -> None:
        self.course.work.mkdir(parents=True, exist_ok=True)
        state = {"progress": asdict(self.at), "settings": self._settings()}
        checkpoint.save(path, network=self.network, optimizer=self.optimizer, state=state)

    def _save(self) -> None:
        now = time.monotonic()
        self.at.seconds += now - self._began
        self._began = self._saved = now
        self._write(self.course.work / checkpoint.LAST)

    def _continue(self) -> None:
        """Take up the checkpoint, if there is one and it is of the same training."""
        last = self.course.work / checkpoint.LAST
        if not last.is_file():
            if self.course.resume:
                raise pause.nothing_to_resume(self.course.work.parent)
            return
        state = checkpoint.read_state(last)
        differing = pause.differing(self._settings(), state["settings"])
        if pause.refused(differing, self.session, resume=self.course.resume):
            return
        checkpoint.restore(last, network=self.network, optimizer=self.optimizer)
        self.at = Progress(**state["progress"])
        self.session.say(f"continuing in epoch {self.at.epoch + 1}, after {self.at.batches} batches")


def priors(learner: Learner) -> NDArray[np.float32] | None:
    """What each item's cosine with a user has added: shape (items,); ``None``: nothing."""
    recipe = learner.course.recipe
    return learner.batches.prior * recipe.temperature if recipe.prior else None


def validate(learner: Learner) -> Mapping[str, float]:
    """``hidden.METRICS`` of its network as it is."""
    network, recipe = learner.network, learner.course.recipe
    assert learner.validation is not None
    prior = priors(learner)
    items = network.items.dense(more=int(prior is not None))
    if prior is not None:
        items[:, -1] = prior
    taste = None if network.taste is None else network.taste.dense()
    fold = user_encoders.embedding(items, taste, {**asdict(recipe), "user": recipe.user})
    known = {"history": learner.history, "kept": learner.kept, "hidden": learner.validation}
    return hidden.score(items, fold, session=learner.session, **known)


def tensors(network: Network, prior: NDArray[np.float32] | None) -> dict[str, Any]:
    """The network's weights as NumPy arrays, by the names of the model folder (``apps.recsys.models.weights``)."""
    named = {} if prior is None else {"item_prior": prior}
    for name, table in (("item_factors", network.items), ("taste_factors", network.taste)):
        if table is None:
            continue
        if not isinstance(table.form, StoredRows):
            named[name] = table.dense()
            continue
        named[name] = table.form.codes.numpy()
        if table.form.scales is not None:
            named[f"{name}.scales"] = table.form.scales.numpy()
    return named
