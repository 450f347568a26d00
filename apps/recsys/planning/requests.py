"""Requests of the commands on a finished model: immutable values, checked when they are made."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from apps.recsys.planning.baselines import ANSWERING, SERVING
from apps.recsys.planning.resume_settings import DECIDES
from common.errors import UsageError
from common.extras import require

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
    seed: int = 0
    threads: int

    def __post_init__(self) -> None:
        if self.test and self.negatives is not None:
            raise UsageError("--negatives holds the scored pairs too: leave out --test")
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
            seed=args.seed,
            threads=args.threads,
        )

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

    @property
    def explains(self) -> bool:
        """True if it may be asked which items of a history carried a score."""
        return False


@dataclass(frozen=True, slots=True, kw_only=True)
class RecommendRequest(AnswerRequest):
    """The best items for one user or one history.

    Attributes
    ----------
    user
        Id of a user of the training data; ``None``: ``history`` is given.
    history
        Ids of the items that someone had.
    k
        Number of items to recommend.
    exclude, only
        Ids of items never to recommend, and of those to choose from; ``None``: no such limit.
    explained
        Number of items of the history that are named for each recommendation.
    """

    command: ClassVar[str] = "recsys recommend"

    user: str | None = None
    history: tuple[str, ...] = ()
    k: int = 10
    exclude: tuple[str, ...] | None = None
    only: tuple[str, ...] | None = None
    explained: int = 0
    prints: bool = True
    """False if only the record is wanted."""

    @classmethod
    def of(cls, args: argparse.Namespace) -> RecommendRequest:
        """Read the command line.

        Raises
        ------
        UsageError
            ``-o`` was given.
        """
        if args.output is not None:
            raise UsageError("-o is for --all-users; for one user the answer is printed")
        return cls(
            model=args.model,
            threads=args.threads,
            user=args.user,
            history=tuple(args.history or ()),
            k=args.k,
            exclude=_ids(args.exclude),
            only=_ids(args.only),
            explained=args.explain,
            prints=not args.json,
        )

    @property
    def explains(self) -> bool:
        """True if items of the history are named."""
        return self.explained > 0


@dataclass(frozen=True, slots=True, kw_only=True)
class SimilarRequest(AnswerRequest):
    """The ``k`` items nearest to the item with the id ``item``."""

    command: ClassVar[str] = "recsys similar"

    item: str
    k: int = 10
    prints: bool = True
    """False if only the record is wanted."""

    @classmethod
    def of(cls, args: argparse.Namespace) -> SimilarRequest:
        """Read the command line."""
        return cls(model=args.model, threads=args.threads, item=args.item, k=args.k, prints=not args.json)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeRequest(AnswerRequest):
    """A server on an address; port 0 is any free one."""

    command: ClassVar[str] = "recsys serve"
    warm_up: ClassVar[str] = SERVING

    host: str = "127.0.0.1"
    port: int = 8000

    def __post_init__(self) -> None:
        require("serve", "fastapi", "uvicorn", purpose=self.command)

    @classmethod
    def of(cls, args: argparse.Namespace) -> ServeRequest:
        """Read the command line."""
        return cls(model=args.model, threads=args.threads, host=args.host, port=args.port)

    @property
    def explains(self) -> bool:
        """True: a client may ask for it."""
        return True


@dataclass(frozen=True, slots=True, kw_only=True)
class RecommendAllRequest:
    """The best items for every user of the training data, as one Parquet file.

    Attributes
    ----------
    model
        The model folder.
    output
        The file.
    k
        Number of items to recommend to each user.
    exclude, only
        Ids of items never to recommend, and of those to choose from; ``None``: no such limit.
    threads
        Threads of the computation.

    Raises
    ------
    UsageError
        ``output`` is a folder.
    """

    model: Path
    output: Path
    k: int = field(default=10, metadata=DECIDES)
    exclude: tuple[str, ...] | None = field(default=None, metadata=DECIDES)
    only: tuple[str, ...] | None = field(default=None, metadata=DECIDES)
    threads: int

    def __post_init__(self) -> None:
        if self.output.is_dir():
            raise UsageError(f"-o {self.output}: is a folder; expected a file")

    @classmethod
    def of(cls, args: argparse.Namespace) -> RecommendAllRequest:
        """Read the command line.

        Raises
        ------
        UsageError
            No file was named, or an option that is for one user; as the constructor.
        """
        if args.output is None:
            raise UsageError("--all-users needs -o FILE")
        if args.explain:
            raise UsageError("--explain is for one user")
        return cls(
            model=args.model,
            output=args.output,
            k=args.k,
            exclude=_ids(args.exclude),
            only=_ids(args.only),
            threads=args.threads,
        )


def _ids(ids: list[str] | None) -> tuple[str, ...] | None:
    return None if ids is None else tuple(ids)
