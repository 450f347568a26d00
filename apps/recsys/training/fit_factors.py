"""Train a model that is a matrix of factors: ``ials``, ``bpr`` or ``popularity``."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apps.recsys.data.csr_store import History, NpyReader
from apps.recsys.data.splits import HeldOut, Kept
from apps.recsys.models import bpr, popularity, weights
from apps.recsys.models.als import als_matrices, ials
from apps.recsys.models.als.factor_state import FactorState
from apps.recsys.models.embedding import user_encoders
from apps.recsys.models.scorers import FactorScorer
from apps.recsys.training import validation
from apps.recsys.training.checkpoint import FactorCheckpoint
from common import files
from common.training.resume import resume

if TYPE_CHECKING:
    from apps.recsys.training.session import TrainingSession

IterationCallback = Callable[[int, Callable[[], Mapping[str, float]]], None]
"""Called after each iteration with the iteration count and a function that evaluates the model on the hidden items.
An exception that it raises ends the training."""


def no_callback(iterations: int, evaluate: Callable[[], Mapping[str, float]]) -> None:
    """Default callback: does nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FactorConfig:
    """One training of a model of factors.

    Attributes
    ----------
    kind
        ``"ials"``, ``"bpr"`` or ``"popularity"``.
    factors
        Numbers per item.
    hyper
        Hyper-parameters of the kind.
    items
        Number of items.
    interactions
        Number of interactions that training sees.
    directory
        Folder of the history.
    split
        Way in which evaluation items are held out of training (``splits.KINDS``).
    seed
        Seed of the random numbers.
    settings
        All that decides the result (``resume_settings``): only a checkpoint with the same is continued.
    checkpoint
        Path of the checkpoint, or ``None`` to disable checkpoints.
    output
        The model folder, for error messages.
    resume
        True if there must be a checkpoint to continue from.
    """

    kind: str
    factors: int
    hyper: Mapping[str, Any]
    items: int
    interactions: int
    directory: Path
    split: str
    seed: int
    settings: Mapping[str, Any]
    checkpoint: Path | None
    output: Path
    resume: bool = False


@dataclass(frozen=True, slots=True)
class FactorTrainer:
    """Trains a ``FactorConfig``.

    Attributes
    ----------
    config
        The training.
    session
        Plan (knobs ``fit_block``, ``user_block``), threads and progress.
    hidden
        Items that are left out of the training, to evaluate the model on; ``None``: it cannot be evaluated.
    callback
        Called after each iteration.
    """

    config: FactorConfig
    session: TrainingSession
    hidden: HeldOut | None = None
    callback: IterationCallback = no_callback

    def run(self) -> Mapping[str, Any]:
        """Arrange the data, fit, and return the weights by name (``apps.recsys.models.weights``).

        Raises
        ------
        ArithmeticError
            The factors are not finite.
        UsageError, BadInput
            ``resume`` is set, and there is no checkpoint of this training.
        KeyboardInterrupt
            The session is stopping; a checkpoint has been written.
        """
        config = self.config
        pairs = sides = None
        with self.session.phase("arrange"):
            history = History(config.directory)
            kept = Kept.of(history, config.directory, config.split, validation=self.hidden)
            if config.kind == "popularity":
                return {weights.ITEMS: self._popular(history, kept)}
            if config.kind == "bpr":
                pairs = self._pairs(history, kept)
            else:
                sides = self._sides(history, kept)
        # The history stays open only if the callback may evaluate.
        evaluated = (history, kept) if self.hidden is not None else None
        del history, kept
        with self.session.phase("fit"):
            if pairs is not None:
                return self._fit_pairs(pairs, evaluated)
            assert sides is not None
            try:
                return self._fit_sides(sides, evaluated)
            finally:
                als_matrices.remove(config.directory)

    def _popular(self, history: History, kept: Kept) -> Any:
        """Shares of the users, of all time or of a window, whose times are removed."""
        items, window = self.config.items, popularity.window_seconds(self.config.hyper.get("window", popularity.ALL))
        if window is None:
            return popularity.fit(history, kept, items=items)
        path = self.config.directory / "history.times.npy"
        times = NpyReader(path)
        shares = popularity.fit_window(history, kept, times, window, items=items, say=self.session.say)
        times.close()
        path.unlink()
        return shares

    def _pairs(self, history: History, kept: Kept) -> bpr.Pairs:
        matrix = als_matrices.training_matrix(history, kept, items=self.config.items, hyper=bpr.UNWEIGHTED)
        return bpr.Pairs.of(matrix)

    def _sides(self, history: History, kept: Kept) -> als_matrices.Sides:
        config, block = self.config, int(self.session.plan["fit_block"])
        if block >= config.interactions:
            return als_matrices.in_memory(history, kept, items=config.items, hyper=config.hyper)
        return als_matrices.on_disk(
            config.directory, history, kept, items=config.items, hyper=config.hyper, block=block
        )

    def _fit_sides(self, sides: als_matrices.Sides, evaluated: tuple[History, Kept] | None) -> Mapping[str, Any]:
        """Solve users and items in turn; two such sweeps are an iteration."""
        config = self.config
        saved = self._checkpoint()
        state = self._continued(saved) or ials.first_state(sides, factors=config.factors, seed=config.seed)
        with self.session.progress(total=2 * config.hyper["iterations"], unit="sweep", label="fit") as bar:
            bar.update(state.sweep)

            def after_block(state: FactorState) -> None:
                sweep_done = state.row == len(state.items if state.sweep % 2 else state.users)
                bar.update(sweep_done)
                self._save(saved, state, due=sweep_done)
                if sweep_done and state.sweep % 2:
                    self._call_back(state.sweep // 2 + 1, {weights.ITEMS: state.items}, evaluated)

            factors = ials.fit(sides, state, hyper=config.hyper, threads=self.session.threads, after_block=after_block)
        return {weights.ITEMS: factors}

    def _fit_pairs(self, pairs: bpr.Pairs, evaluated: tuple[History, Kept] | None) -> Mapping[str, Any]:
        """Epochs over the pairs of user and item."""
        config = self.config
        saved = self._checkpoint()
        compared = pairs.compared()
        state = self._continued(saved)
        if state is None:
            state = bpr.first_state(pairs, items=config.items, factors=config.factors, seed=config.seed)
        with self.session.progress(total=config.hyper["iterations"], unit="epoch", label="fit") as bar:
            bar.update(state.sweep)

            def after_epoch(state: FactorState) -> None:
                bar.update()
                self._save(saved, state, due=True)
                self._call_back(state.sweep, {weights.ITEMS: state.items, weights.COMPARED: compared}, evaluated)

            factors = bpr.fit(
                pairs,
                state,
                hyper=config.hyper,
                threads=self.session.threads,
                seed=config.seed,
                after_epoch=after_epoch,
            )
        return {weights.ITEMS: factors, weights.COMPARED: compared}

    def _call_back(self, iterations: int, tensors: Mapping[str, Any], evaluated: tuple[History, Kept] | None) -> None:
        def evaluate() -> Mapping[str, float]:
            assert evaluated is not None and self.hidden is not None
            history, kept = evaluated
            items, negatives = tensors[weights.ITEMS], tensors.get(weights.COMPARED)
            encoder = user_encoders.of_kind(self.config.kind, items, self.config.hyper, negatives=negatives)
            scorer = FactorScorer(items, encoder)
            return validation.score(scorer, history=history, hidden=self.hidden, kept=kept, session=self.session)

        self.callback(iterations, evaluate)

    def _checkpoint(self) -> FactorCheckpoint | None:
        if self.config.checkpoint is None:
            return None
        return FactorCheckpoint(self.config.checkpoint, self.config.settings)

    def _save(self, saved: FactorCheckpoint | None, state: FactorState, *, due: bool) -> None:
        """Save if it is time or the session is stopping, which then interrupts the training."""
        stopping = self.session.stopping
        if saved is not None and (stopping or (due and saved.due())):
            saved.save(state)
        if stopping:
            raise KeyboardInterrupt

    def _continued(self, saved: FactorCheckpoint | None) -> FactorState | None:
        """The state that an unfinished run of the same training left; ``None``: start from the beginning."""
        if saved is None:
            return None
        return resume(
            saved.path,
            saved.settings,
            read_settings=lambda path: saved.read_settings(),
            load=lambda path: saved.load(),
            progress=lambda state: f"after {state.sweep} sweeps and {state.row:,} rows",
            output=self.config.output,
            required=self.config.resume,
            say=self.session.say,
        )


def data_digest(directory: Path) -> str:
    """SHA-256 of the interactions and of what the split holds out."""
    names = sorted([*directory.glob("history.*.npy"), *directory.glob("heldout.*.npy")])
    return hashlib.sha256("".join(files.sha256(path) for path in names).encode()).hexdigest()
