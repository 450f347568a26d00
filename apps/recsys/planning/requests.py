"""Requests of the commands on a finished model: immutable values, checked when they are made."""

from __future__ import annotations

import argparse
import csv
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from apps.recsys.data.attributes.expression import parse
from apps.recsys.data.columns import Columns, Layout
from apps.recsys.planning.baselines import ANSWERING
from common.errors import UsageError

DEPTH = 10
"""Depth of a metric that is named without one."""
PROTOCOLS = ("user-holdout", "leave-last", "temporal", "random", "split", "lightgcn", "ncf")
"""The model's own splits; a test file, with peakline's recall or LightGCN's; NCF's sampled negatives."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluateRequest:
    """An evaluation of a model.

    Attributes
    ----------
    model
        The model folder.
    test
        Files of pairs to score; none: what the model's own split held out.
    negatives
        NCF's file of scored pairs, each with sampled items.
    protocol
        One of ``PROTOCOLS``; ``None``: the one that suits the files.
    columns, layout
        Of the files in ``test``, as far as the command line says so; the model's own columns otherwise.
    metrics
        Names of the metrics, each with its depth (``ndcg@10``); empty: those that training reports.
    against
        Another model, which is compared on the same users.
    seed, threads
        Seed of the bootstrap intervals; threads of the computation.

    Raises
    ------
    UsageError
        The files and the protocol do not go together.
    """

    model: Path
    test: tuple[Path, ...] = ()
    negatives: Path | None = None
    protocol: str | None = None
    columns: Columns = field(default_factory=Columns)
    layout: Layout = field(default_factory=Layout)
    metrics: tuple[str, ...] = ()
    against: Path | None = None
    seed: int = 0
    threads: int

    def __post_init__(self) -> None:
        if self.negatives is not None and self.against is not None:
            raise UsageError("--negatives: NCF's protocol compares no models; leave out --against")
        if self.negatives is not None and self.metrics:
            raise UsageError("--negatives: NCF's protocol has hr@10 and ndcg@10; leave out --metrics and --k")
        if self.test and self.negatives is not None:
            raise UsageError("--negatives holds the scored pairs too: leave out --test")
        if not self.test and (self.columns, self.layout) != (Columns(), Layout()):
            raise UsageError(
                "--user-col, --item-col, --value-col, --delimiter, --decimal, --no-header: for --test only"
            )
        if self.reads_files:
            fitting = ("ncf",) if self.negatives is not None else ("split", "lightgcn")
            if self.protocol not in (None, *fitting):
                raise UsageError(f"--protocol {self.protocol}: expected {' or '.join(fitting)} with this file")

    @classmethod
    def of(cls, args: argparse.Namespace) -> EvaluateRequest:
        """Read the command line; raises as the constructor."""
        return cls(
            model=args.model,
            test=tuple(args.test or ()),
            negatives=args.negatives,
            protocol=args.protocol,
            columns=Columns(args.user_col, args.item_col, args.value_col),
            layout=layout_of(args),
            metrics=_metrics(args),
            against=args.against,
            seed=args.seed,
            threads=args.threads,
        )

    @property
    def depth(self) -> int:
        """Length of the rankings that the metrics look at; 0: as in training."""
        return max((int(name.partition("@")[2]) for name in self.metrics), default=0)

    @property
    def reads_files(self) -> bool:
        """True if pairs are scored that the model's own split did not hold out."""
        return bool(self.test) or self.negatives is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerRequest:
    """Something that is asked of one loaded model.

    Attributes
    ----------
    model
        The model folder.
    threads
        Threads of the computation.
    """

    command: ClassVar[str]
    """Name of the command, ``"recsys similar"`` for example."""
    warm_up: ClassVar[str] = ANSWERING
    """Warm-up function of the command."""

    model: Path
    threads: int

    k: int = 0
    """Most items of an answer."""
    explained: int = 0
    """Most items of a history that are named for each of them."""
    where: str | None = None
    """An expression over attributes that items must match (``apps.recsys.data.attributes.expression``)."""

    diversity: float = 0.0
    """How far the items of a list should differ from each other, from 0 to 1."""

    def __post_init__(self) -> None:
        check_choice(self.where, self.diversity)

    @property
    def compares_users(self) -> bool:
        """True if a user is compared with all others."""
        return False

    @property
    def named(self) -> int:
        """Most ids that a question names."""
        return 0

    @property
    def keeps(self) -> bool:
        """True if a whole answer is kept before it is written; False if it is printed item by item."""
        return True


@dataclass(frozen=True, slots=True, kw_only=True)
class SimilarRequest(AnswerRequest):
    """The ``k`` items nearest to the item with the id ``item``, or users most like the user with the id ``user``."""

    command: ClassVar[str] = "recsys similar"

    item: str | None = None
    user: str | None = None
    k: int = 10
    prints: bool = True
    """False if only the record is wanted."""

    @classmethod
    def of(cls, args: argparse.Namespace) -> SimilarRequest:
        """Read the command line."""
        asked = {"item": args.item, "user": args.user, "k": args.k}
        return cls(model=args.model, threads=args.threads, prints=not args.json, **asked)

    @property
    def compares_users(self) -> bool:
        """True where a user is named."""
        return self.user is not None


def _metrics(args: argparse.Namespace) -> tuple[str, ...]:
    """Each metric without a depth at all depths of ``--k``; without ``--metrics`` all kinds that there are."""
    if args.metrics is None and args.k is None:
        return ()
    depths = args.k or [DEPTH]
    named = args.metrics or args.metric_kinds
    return tuple(dict.fromkeys(full for name in named for full in ([name] if "@" in name else _at(name, depths))))


def _at(name: str, depths: Sequence[int]) -> list[str]:
    return [f"{name}@{depth}" for depth in depths]


def split_ids(text: str) -> list[str]:
    """Ids separated by commas; one that has a comma stands in quotes, as in CSV.

    Raises
    ------
    UsageError
        A line break stands outside of quotes.

    Examples
    --------
    >>> split_ids('7, 8,"Oak, Ash"')
    ['7', '8', 'Oak, Ash']
    """
    try:
        return [id_.strip() for row in csv.reader([text], skipinitialspace=True) for id_ in row if id_.strip()]
    except csv.Error as error:
        raise UsageError(f"ids separated by commas: {error}") from None


def layout_of(args: argparse.Namespace) -> Layout:
    """Layout of text files, as the command line states it.

    Raises
    ------
    UsageError
        The delimiter is neither one character nor a name that is known.
    """
    delimiter = args.delimiter
    if delimiter is not None and len(delimiter) != 1 and delimiter not in ("tab", "\\t", "space", "::", "list"):
        raise UsageError(f"--delimiter {delimiter}: expected one character, tab, space, :: or list")
    return Layout(delimiter, args.decimal, args.header)


def check_choice(where: str | None, diversity: float) -> None:
    """Check what chooses items, before anything is read.

    Raises
    ------
    UsageError
        ``where`` is not of the grammar, or ``diversity`` not from 0 to 1.
    """
    if where is not None:
        parse(where)
    if not 0 <= diversity <= 1:
        raise UsageError(f"--diversity {diversity:g}: expected a number from 0 to 1")
