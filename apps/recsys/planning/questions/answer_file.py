"""A file of questions to one model: what is asked, and what answering takes, in bytes."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from apps.recsys.planning.answer import LIMIT_BYTES, LOOK_UP_BYTES, AnswerWorkload
from apps.recsys.planning.requests import AnswerRequest
from common.memory.costs.probes import Costs
from common.memory.footprint import Footprint, Term
from common.memory.plan.plan import Setting

MODULE = "apps.recsys.commands.answer_file"
"""The command line that answers."""
IDS = "ids"
"""Column of the questions, and of a file of limits."""
LINES = 1 << 13
"""Lines of the answers that are kept before they are written."""
LINE_BYTES, LINE_TEXTS = 350, 3
"""A line while it is kept, as a row and a score in Python, and while it is written; copies of its id and title then
(measured 270 to 390 bytes together, with ids of 10 letters)."""
QUESTION_TIMES = 12
"""Memory of a question by its size in the file: its ids are text in Python while their rows are looked up (measured
11)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerFileRequest(AnswerRequest):
    """Questions in an Arrow file, each a list of ids; the answers go to another.

    Attributes
    ----------
    questions, output
        The files.
    by
        Kind of the ids of a question: ``"user"``, ``"history"`` or ``"item"``.
    k
        Number of items in an answer.
    exclude, only
        Arrow files with the ids of items never to name, and of those to choose from; ``None``: no such limit.
    batch_bytes
        Size of the largest batch of questions.
    """

    questions: Path
    output: Path
    by: str
    k: int = 10
    exclude: Path | None = None
    only: Path | None = None
    batch_bytes: int

    @property
    def limit_files(self) -> tuple[Path, ...]:
        """The files of ``exclude`` and ``only`` that there are."""
        return tuple(path for path in (self.exclude, self.only) if path is not None)

    @classmethod
    def of(cls, args: argparse.Namespace) -> AnswerFileRequest:
        """Read the command line."""
        files, limits = ("questions", "output", "batch_bytes"), ("exclude", "only", "where", "diversity")
        names = ("model", "by", "k", "threads", *files, *limits)
        return cls(**{name: getattr(args, name) for name in names})


@dataclass(frozen=True, slots=True, kw_only=True)
class RecommendFileRequest(AnswerFileRequest):
    """The best items for users or histories."""

    command: ClassVar[str] = "recsys recommend"


@dataclass(frozen=True, slots=True, kw_only=True)
class SimilarFileRequest(AnswerFileRequest):
    """The items nearest to others."""

    command: ClassVar[str] = "recsys similar"


@dataclass(frozen=True, slots=True)
class AnswerFileWorkload(AnswerWorkload):
    """The model as for one answer, and some questions with their answers at a time."""

    request: AnswerFileRequest

    def footprint(self, setting: Setting, costs: Costs) -> Footprint:
        """The terms of one answer, and those of the files."""
        request, manifest = self.request, self.manifest
        named = sum(path.stat().st_size for path in request.limit_files)
        files, items, k = manifest["files"], manifest["items"], min(request.k, manifest["items"])
        line = LINE_BYTES + LINE_TEXTS * files["items.parquet"]["bytes"] // items
        limits = QUESTION_TIMES * named + LIMIT_BYTES * items * len(request.limit_files)
        answer = AnswerWorkload.footprint(self, setting, costs)
        return Footprint.of(
            [
                *answer.terms,
                Term("questions", QUESTION_TIMES * request.batch_bytes, "measured", ("answer",)),
                Term("limits", limits, "measured", ("answer",)),
                Term("looking up ids", LOOK_UP_BYTES * max(items, manifest["users"]), "analytic", ("answer",)),
                Term("answers", line * k * -(-LINES // k), "measured", ("answer",)),
            ]
        )
