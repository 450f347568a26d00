"""Requests of ``recsys recommend``, for one user or history and for many: immutable values, checked when made."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar

from apps.recsys.planning.requests import AnswerRequest, check_choice
from apps.recsys.planning.resume_settings import DECIDES
from common.cli import job_scripts
from common.errors import UsageError
from common.parts import Part

K = 10
"""Number of items, unless ``-k`` or a file of candidates says otherwise."""
TEXT_SUFFIXES = (".tsv", ".txt", ".json", ".ndjson", ".xlsx", ".gz", ".bz2", ".zst", ".zip")
"""Names of files by which other programs would expect neither Parquet nor CSV nor JSON lines."""
SUBJECTS = (
    "--user ID, --users FILE, --all-users, --histories FILE, or one history: --history ID,ID,... --item ID"
    " --history-file FILE"
)
"""For whom lists can be made."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecommendRequest(AnswerRequest):
    """The best items for one user or one history.

    Attributes
    ----------
    user
        Id of a user; ``None``: there is a history.
    history
        Ids of the items that someone had.
    history_file
        A file with further ids of the history.
    k
        Number of items to recommend; 0: all candidates.
    exclude, only
        Ids of items never to recommend, and of those to choose from; ``None``: no such limit.
    candidates
        A file with the ids of the items to rank, and no others, whether the history has them or not.
    keep_seen
        True to recommend the history's own items too.
    strict
        True to refuse ids that the model does not have.
    explained
        Number of items of the history that are named for each recommendation.
    """

    command: ClassVar[str] = "recsys recommend"

    user: str | None = None
    history: tuple[str, ...] = ()
    history_file: Path | None = None
    k: int = K
    exclude: tuple[str, ...] | None = None
    only: tuple[str, ...] | None = None
    candidates: Path | None = None
    keep_seen: bool = False
    strict: bool = False
    prints: bool = True
    """False if only the record is wanted."""

    @classmethod
    def of(cls, args: argparse.Namespace) -> RecommendRequest:
        """Read the command line.

        Raises
        ------
        UsageError
            Nobody or several were named, or options do not go together.
        """
        has_history = bool(args.history or args.item or args.history_file)
        if (args.user is None) == (not has_history):
            raise UsageError(f"name one of {SUBJECTS}")
        if args.output is not None:
            raise UsageError("-o is for --all-users, --users and --histories; for one user the answer is printed")
        _check_candidates(args)
        if args.part or args.format:
            raise UsageError(f"{'--part' if args.part else '--format'} is for --all-users")
        return cls(
            model=args.model,
            threads=args.threads,
            user=args.user,
            history=(*(args.history or ()), *(args.item or ())),
            history_file=args.history_file,
            k=_k(args),
            exclude=_ids(args.exclude),
            only=_ids(args.only),
            candidates=args.candidates,
            keep_seen=args.keep_seen,
            strict=args.strict,
            where=args.where,
            diversity=args.diversity,
            explained=args.explain,
            prints=not args.json,
        )

    @property
    def named(self) -> int:
        """All ids of the history and of the limits."""
        return len(self.history) + len(self.exclude or ()) + len(self.only or ())

    @property
    def keeps(self) -> bool:
        """True for a record."""
        return not self.prints

    def with_history(self, ids: tuple[str, ...]) -> RecommendRequest:
        """The same with the further ids of the history's file."""
        return replace(self, history=(*self.history, *ids))

    def with_candidates(self, ids: tuple[str, ...]) -> RecommendRequest:
        """The same with the ids of the candidates' file."""
        return replace(self, only=ids, keep_seen=True, k=self.k or len(ids))


@dataclass(frozen=True, slots=True, kw_only=True)
class RecommendAllRequest:
    """The best items for many users or histories, as one file.

    Attributes
    ----------
    model
        The model folder.
    output
        The file: CSV, JSON lines or Parquet, by its name.
    users, histories
        A file of users, or of histories, to make lists for; neither: all users of the training data.
    part
        Which of these all users; ``None``: all. ``output`` is the part's own file then.
    k
        Number of items to recommend to each; 0: all candidates.
    exclude, only
        Ids of items never to recommend, and of those to choose from; ``None``: no such limit.
    candidates, keep_seen, strict, where, diversity
        As in ``RecommendRequest``.
    threads
        Threads of the computation.

    Raises
    ------
    UsageError
        ``output`` is a folder, or has the name of another kind of file; ``where`` is not of the grammar.
    """

    model: Path
    output: Path
    users: Path | None = None
    histories: Path | None = None
    part: Part | None = None
    k: int = field(default=K, metadata=DECIDES)
    exclude: tuple[str, ...] | None = field(default=None, metadata=DECIDES)
    only: tuple[str, ...] | None = field(default=None, metadata=DECIDES)
    candidates: Path | None = None
    keep_seen: bool = field(default=False, metadata=DECIDES)
    strict: bool = False
    where: str | None = field(default=None, metadata=DECIDES)
    diversity: float = field(default=0.0, metadata=DECIDES)
    threads: int

    def __post_init__(self) -> None:
        check_choice(self.where, self.diversity)
        if self.output.is_dir():
            raise UsageError(f"-o {self.output}: is a folder; expected a file")
        if self.output.suffix.lower() in TEXT_SUFFIXES:
            raise UsageError(
                f"-o {self.output}: lists are Parquet, CSV or JSON lines; end the name with .parquet, .csv or .jsonl"
            )

    @classmethod
    def of(cls, args: argparse.Namespace) -> RecommendAllRequest:
        """Read the command line.

        Raises
        ------
        UsageError
            No file was named, or an option that is for one user; as the constructor.
        """
        if args.user is not None or args.history or args.item or args.history_file:
            raise UsageError(f"name one of {SUBJECTS}")
        if args.output is None:
            raise UsageError("--all-users, --users and --histories need -o FILE")
        if args.explain:
            raise UsageError("--explain is for one user or one history")
        _check_candidates(args)
        job_scripts.check(args.format, dry_run=args.dry_run, as_json=args.json)
        if args.part and (args.users or args.histories):
            raise UsageError("--part is for --all-users: give each process a file of its own users or histories")
        return cls(
            model=args.model,
            output=args.part.file(args.output) if args.part else args.output,
            users=args.users,
            histories=args.histories,
            part=args.part,
            k=_k(args),
            exclude=_ids(args.exclude),
            only=_ids(args.only),
            candidates=args.candidates,
            keep_seen=args.keep_seen,
            strict=args.strict,
            where=args.where,
            diversity=args.diversity,
            threads=args.threads,
        )

    @property
    def named(self) -> int:
        """All ids of the limits."""
        return len(self.exclude or ()) + len(self.only or ())

    def with_candidates(self, ids: tuple[str, ...]) -> RecommendAllRequest:
        """The same with the ids of the candidates' file."""
        return replace(self, only=ids, keep_seen=True, k=self.k or len(ids))


def _k(args: argparse.Namespace) -> int:
    return int(args.k if args.k is not None else K if args.candidates is None else 0)


def _check_candidates(args: argparse.Namespace) -> None:
    if args.candidates is not None and (args.only or args.exclude):
        raise UsageError("--candidates names the items to rank: leave out --only and --exclude")


def _ids(ids: list[str] | None) -> tuple[str, ...] | None:
    return None if ids is None else tuple(ids)
