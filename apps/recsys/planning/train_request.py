"""The request of ``recsys train``: one immutable value, checked when it is made, before anything is read."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from apps.recsys.data.columns import Columns, Layout
from apps.recsys.data.staging import Filters
from apps.recsys.models import search_space
from apps.recsys.models.linear import options as linear
from apps.recsys.models.old_names import renamed_pairs
from apps.recsys.planning.model_options import IN_PASSES, ModelOptions, kind_of, not_for
from apps.recsys.planning.requests import layout_of
from apps.recsys.planning.resume_settings import DECIDES
from common.errors import UsageError
from common.search.space import Space
from common.training import amp
from common.training.distributed.world import ONE, World

OVER_RANKS = ("embedding", "ials", "linear")
"""Kinds of models that several ranks train."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DataOptions:
    """The interactions that are read.

    Attributes
    ----------
    paths
        Files of interactions.
    columns
        Their columns, as far as the command line names them.
    items
        A table with the items' titles.
    filters
        Rows, users and items that are left out.
    layout
        Layout of text files, as far as the command line states it.
    duplicates
        What repeated rows of a pair count (``apps.recsys.data.staging.DUPLICATES``).
    needs_times
        The setting that needs times (``ModelOptions.needs_times``); empty: only a split may need them.
    """

    paths: tuple[Path, ...]
    columns: Columns = field(default_factory=Columns)
    items: Path | None = None
    filters: Filters = field(default_factory=Filters)
    layout: Layout = field(default_factory=Layout)
    duplicates: str = "sum"
    needs_times: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainRequest:
    """A training of a recommender.

    Attributes
    ----------
    model
        The model to fit.
    data
        The interactions to read.
    output
        The model folder to make.
    split
        Interactions that are held out for the evaluation at the end (``apps.recsys.data.splits.KINDS``).
    trials
        Settings that are tried before the training; 0: none.
    space
        The hyper-parameters that trials vary.
    resume
        True if an unfinished training must be there to be continued.
    seed, threads
        Seed of the random numbers; threads of the computation.
    notes
        Sentences for the user: old names that were read, a precision that is emulated.
    world
        The ranks that train together, and which of them this is.
    """

    model: ModelOptions = field(metadata=DECIDES)
    data: DataOptions
    output: Path
    split: str = field(default="none", metadata=DECIDES)
    trials: int = 0
    space: Space = field(default_factory=dict)
    resume: bool = False
    seed: int = field(default=0, metadata=DECIDES)
    threads: int
    notes: tuple[str, ...] = ()
    world: World = ONE

    def __post_init__(self) -> None:
        if self.world.size > 1:
            if self.model.kind not in OVER_RANKS:
                kinds = f"{', '.join(OVER_RANKS[:-1])} or {OVER_RANKS[-1]}"
                raise UsageError(f"--model {self.model.kind}: several ranks train --model {kinds}")
            if self.model.kind == "linear":
                linear.check_over_ranks(self.model.hyper)
            if self.trials:
                raise UsageError("--tune does not run under torchrun; search with one process")
            if self.model.kind == "embedding":
                self.world.check_batch(int(self.model.hyper["batch"]))
        if self.trials and not self.space:
            raise UsageError("--tune: the command line fixes all that could be searched")

    @classmethod
    def of(cls, args: argparse.Namespace) -> TrainRequest:
        """Read the command line.

        Raises
        ------
        UsageError
            In one line, if an option is out of range or does not fit the others.
        """
        kind, notes = kind_of(args)
        pairs, renamed = renamed_pairs(kind, args.set)
        notes += renamed
        model = ModelOptions.of(kind, args, pairs)
        if note := amp.require(model.amp, "cpu"):
            notes = [*notes, f"recsys train: {note}"]
        for option, chosen in (("--tune", args.tune), ("--resume", args.resume)):
            if chosen and model.kind not in IN_PASSES:
                raise not_for(option, IN_PASSES, model.kind)
        fixed = {pair.partition("=")[0] for pair in pairs} | ({"factors"} if args.factors else set())
        return cls(
            model=model,
            data=DataOptions(
                paths=tuple(args.interactions),
                columns=Columns(args.user_col, args.item_col, args.value_col, args.time_col),
                items=args.items,
                filters=Filters(args.min_value, args.min_user, args.min_item),
                layout=layout_of(args),
                duplicates=args.duplicates,
                needs_times=model.needs_times,
            ),
            output=args.output,
            split=args.split,
            trials=args.tune,
            space=search_space.of(model.kind, model.hyper, fixed) if args.tune else {},
            resume=args.resume,
            seed=args.seed,
            threads=args.threads,
            notes=tuple(notes) if args.world.leads else (),
            world=args.world,
        )

    def with_settings(self, settings: Mapping[str, Any]) -> TrainRequest:
        """The same training with other values of some hyper-parameters or of ``factors``."""
        return replace(self, model=self.model.with_settings(settings))
