"""Train a model that is a matrix of factors, ``ials``, ``bpr`` or ``popularity``; continued where it stopped."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apps.recsys.data.csr_store import History
from apps.recsys.data.splits import HeldOut, Kept
from apps.recsys.models import bpr, popularity, weights
from apps.recsys.models.als import als_matrices, ials
from apps.recsys.models.als.factor_state import FactorState
from apps.recsys.models.embedding import user_encoders
from apps.recsys.training import checkpoint as pause
from apps.recsys.training import validation as hidden
from common import files

if TYPE_CHECKING:
    from apps.recsys.planning.train import TrainWorkload
    from common.cli.session import Session

Watch = Callable[[int, Callable[[], Mapping[str, float]]], None]
"""Called after each iteration with how many are done, and with what measures the model on the hidden items. What it
raises ends the training."""


def unwatched(done: int, measure: Callable[[], Mapping[str, float]]) -> None:
    """Nobody looks."""


@dataclass(frozen=True, slots=True)
class Training:
    """One training.

    Attributes
    ----------
    checkpoint
        Where an interrupted one goes on; ``None``: it does not.
    validation
        Hidden items, left out of what is trained on; without them nothing can be measured.
    """

    work: TrainWorkload
    session: Session
    checkpoint: Path | None
    resume: bool = False
    validation: HeldOut | None = None
    watch: Watch = field(default=unwatched)

    @property
    def directory(self) -> Path:
        """Where the history is."""
        place: Path = self.work.workspace.path
        return place

    def run(self) -> Mapping[str, Any]:
        """Arrange the data, fit, and return the weights by name."""
        with self.session.phase("arrange"):
            history = History(self.directory)
            kept = Kept.of(history, self.directory, self.work.split, validation=self.validation)
            if self.work.kind == "popularity":
                return {weights.ITEMS: popularity.fit(history, kept, items=self.work.facts.items)}
            arranged = self._pairs(history, kept) if self.work.kind == "bpr" else self._sides(history, kept)
        known = (history, kept) if self.validation is not None else None
        del history, kept
        with self.session.phase("fit"):
            if isinstance(arranged, bpr.Pairs):
                return self._rank_pairs(arranged, known)
            try:
                return self._solve_sides(arranged, known)
            finally:
                als_matrices.remove(self.directory)

    def _pairs(self, history: History, kept: Kept) -> bpr.Pairs:
        matrix = als_matrices.training_matrix(history, kept, items=self.work.facts.items, hyper=bpr.ALIKE)
        return bpr.Pairs.of(matrix)

    def _sides(self, history: History, kept: Kept) -> als_matrices.Sides:
        shared = {"items": self.work.facts.items, "hyper": self.work.hyper}
        block = int(self.session.plan["fit_block"])
        if block >= self.work.fit_interactions:
            return als_matrices.hold(history, kept, **shared)
        return als_matrices.store(self.directory, history, kept, block=block, **shared)

    def _solve_sides(self, arranged: als_matrices.Sides, known: tuple[History, Kept] | None) -> Mapping[str, Any]:
        """Sweep over users and items in turn; two sweeps are an iteration."""
        keeper = self._keeper()
        state = self._paused(keeper)
        if state is None:
            state = ials.first_state(arranged, factors=self.work.factors, seed=self.session.seed)
        with self.session.progress(total=2 * self.work.hyper["iterations"], unit="sweep", label="fit") as bar:
            bar.update(state.sweep)

            def after_block(state: FactorState) -> None:
                swept = state.row == len(state.items if state.sweep % 2 else state.users)
                bar.update(swept)
                self._pause(keeper, state, due=swept)
                if swept and state.sweep % 2:
                    self._look(state.sweep // 2 + 1, {weights.ITEMS: state.items}, known)

            factors = ials.fit(
                arranged, state, hyper=self.work.hyper, threads=self.session.threads, after_block=after_block
            )
        return {weights.ITEMS: factors}

    def _rank_pairs(self, arranged: bpr.Pairs, known: tuple[History, Kept] | None) -> Mapping[str, Any]:
        """Epochs over the pairs."""
        keeper = self._keeper()
        state = self._paused(keeper)
        seed, items, compared = self.session.seed, self.work.facts.items, arranged.compared()
        if state is None:
            state = bpr.first_state(arranged, items=items, factors=self.work.factors, seed=seed)
        with self.session.progress(total=self.work.hyper["iterations"], unit="epoch", label="fit") as bar:
            bar.update(state.sweep)

            def after_epoch(state: FactorState) -> None:
                bar.update()
                self._pause(keeper, state, due=True)
                self._look(state.sweep, {weights.ITEMS: state.items, weights.COMPARED: compared}, known)

            shared = {"hyper": self.work.hyper, "threads": self.session.threads, "seed": seed}
            factors = bpr.fit(arranged, state, after_epoch=after_epoch, **shared)
        return {weights.ITEMS: factors, weights.COMPARED: compared}

    def _look(self, done: int, tensors: Mapping[str, Any], known: tuple[History, Kept] | None) -> None:
        def measure() -> Mapping[str, float]:
            assert known is not None and self.validation is not None
            history, kept = known
            items, others = tensors[weights.ITEMS], tensors.get(weights.COMPARED)
            fold = user_encoders.of_kind(self.work.kind, items, self.work.hyper, others=others)
            return hidden.score(items, fold, history=history, hidden=self.validation, kept=kept, session=self.session)

        self.watch(done, measure)

    def _keeper(self) -> pause.Checkpoint | None:
        if self.checkpoint is None:
            return None
        data = digest(self.directory)
        settings = {"data": data, "factors": self.work.factors, "seed": self.session.seed, **self.work.hyper}
        return pause.Checkpoint(self.checkpoint, settings)

    def _pause(self, keeper: pause.Checkpoint | None, state: FactorState, *, due: bool) -> None:
        """Save where it is time or somebody asked to stop, which then happens."""
        stopping = self.session.stopping
        if keeper is not None and (stopping or (due and keeper.due())):
            keeper.save(state)
        if stopping:
            raise KeyboardInterrupt

    def _paused(self, keeper: pause.Checkpoint | None) -> FactorState | None:
        """What an interrupted run of the same training left; ``None``: start anew."""
        if keeper is None:
            return None
        if not keeper.path.is_file():
            if self.resume:
                raise pause.nothing_to_resume(keeper.path.parents[1])
            return None
        if pause.refused(keeper.differing(), self.session, resume=self.resume):
            return None
        state = keeper.load()
        if state is None:
            self.session.say("the checkpoint found is damaged; starting anew")
        else:
            self.session.say(f"continuing after {state.sweep} sweeps and {state.row:,} rows")
        return state


def digest(directory: Path) -> str:
    """Of the interactions and of what is held out."""
    names = sorted([*directory.glob("history.*.npy"), *directory.glob("heldout.*.npy")])
    return hashlib.sha256("".join(files.sha256(path) for path in names).encode()).hexdigest()
