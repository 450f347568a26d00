"""``recsys recommend`` for all users, or those or the histories of a file: parts that become one file at the end.

Existing parts are complete, so a run that was killed continues with the next one.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apps.recsys.commands.lists import list_files, many, merge
from apps.recsys.commands.lists.many import Part
from apps.recsys.data import arrow_numpy, ingest
from apps.recsys.data.attributes.passing import limited
from apps.recsys.data.id_table import IdTable, unknown_line
from apps.recsys.data.questions.subjects import Subjects
from apps.recsys.models import popularity
from apps.recsys.models.catalogue_search import Catalogue
from apps.recsys.models.likeness.diversity import diverse, rerank, shortlist
from apps.recsys.models.recommender import Recommender, load_manifest, read_manifest
from apps.recsys.models.top_k import best_items
from apps.recsys.planning.baselines import ANSWERING, warm_up_for
from apps.recsys.planning.questions.diversity import require_choice
from apps.recsys.planning.questions.files import read_ids
from apps.recsys.planning.questions.recommend_requests import RecommendAllRequest
from apps.recsys.planning.recommend_all import RecommendAllWorkload, part_users
from apps.recsys.planning.resume_settings import resume_settings
from common import files, model_folder
from common.cli.session import CommandSession
from common.errors import BadInput, DoesNotFit
from common.memory.process import fork, glibc
from common.memory.process.budget import MemoryBudget

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from apps.recsys.commands.lists.many import Histories

KEY = "key.json"
"""File in the folder of parts with the settings that the parts were made with."""


def workload(request: RecommendAllRequest, budget: MemoryBudget) -> RecommendAllWorkload:
    """Read the model's manifest, and the files of ids of the request into a scratch folder next to the output.

    Raises
    ------
    BadInput
        No model, or a file of ids cannot be used; with ``strict``, an id is not in the model.
    DoesNotFit
        The ids alone need more than the ceiling.
    """
    manifest = load_manifest(request.model)
    require_choice(request.where, request.diversity, manifest)
    if request.candidates is not None:
        ids = read_ids(request.candidates, "item", "--candidates", budget, request.threads)
        request = request.with_candidates(ids)
    path = request.users or request.histories
    if path is None and request.part is None:
        return RecommendAllWorkload(request, manifest)
    workspace, size = ingest.workspace(request.output), part_users(request.k)

    def read() -> dict[str, Any]:
        from apps.recsys.data.questions import subjects

        if path is None:
            assert request.part is not None
            return asdict(subjects.read_share(request.part, request.model, workspace.path, part=size))
        reader = subjects.read_users if request.users is not None else subjects.read_histories
        return asdict(reader(path, request.model, workspace.path, part=size))

    try:
        found = Subjects(**fork.run(read, ceiling=budget.host_bytes, threads=request.threads))
    except MemoryError:
        what = path or request.model / "users.parquet"
        raise DoesNotFit(ceiling=budget.host_bytes, reasons=[f"the ids of {what} alone need more"]) from None
    if found.unknown and request.strict:
        raise BadInput(_unknown(found), public="unknown ids")
    return RecommendAllWorkload(request, manifest, found, workspace)


def _unknown(found: Subjects) -> str:
    return unknown_line(f"--{found.kind}", found.unknown, found.named, found.first_unknown)


def warm_up(request: RecommendAllRequest) -> str:
    """Name of the warm-up function."""
    return warm_up_for(read_manifest(request.model), ANSWERING)


def record(request: RecommendAllRequest) -> Path:
    """Path of the record, next to the output."""
    return request.output.with_suffix(".run.json")


def execute(session: CommandSession[RecommendAllRequest, RecommendAllWorkload]) -> Mapping[str, Any]:
    """Write the recommendations for all users, or for those of a file."""
    work = session.workload
    request, found = work.request, work.subjects
    parts = request.output.with_name(f".{request.output.name}.parts")
    done = _continue(parts, work)
    if done:
        session.say(f"continuing after {done} parts")
    for line in _notes(found):
        session.say(line)
    with session.deferred_signals():
        with session.phase("load"):
            ranker = Ranker(session)
            glibc.trim()
        with session.phase("rank"):
            rows = ranker.write(parts)
            del ranker
            glibc.trim()
        with session.phase("join"), files.atomic_file(request.output) as unfinished:
            list_files.write(_tables(parts), unfinished, request.output.suffix)
    shutil.rmtree(parts)
    counts: dict[str, Any] = {} if found is None else {"unknown": found.unknown, "popular": found.popular}
    if request.part is not None:
        counts["part"] = asdict(merge.PartNote.of_request(request))
    return {"users": work.count, "rows": rows, "k": request.k, **counts}


def _notes(found: Subjects | None) -> Iterator[str]:
    """Lines about what stood in the file."""
    if found is None:
        return
    if found.unknown:
        yield _unknown(found)
    if found.repeated:
        yield f"--users: {found.repeated:,} ids stand in the file once more, and get one list"
    if found.popular:
        yield (
            f"popular items: shown to {found.popular:,} of {found.count:,} {found.kind} without an item of the model;"
            " scores are numbers of users"
        )


class Ranker:
    """A loaded model that ranks for blocks of users.

    Parameters
    ----------
    session
        Session of the command, with its plan (knob ``user_block``).

    Raises
    ------
    BadInput
        None of the ids of ``only`` is in the model; with ``strict``, an id is not.
    """

    def __init__(self, session: CommandSession[RecommendAllRequest, RecommendAllWorkload]) -> None:
        self.session, self.request = session, session.workload.request
        request, directory, manifest = self.request, session.request.model, session.workload.manifest
        self.k = request.k
        self.items = IdTable(directory / "items.parquet", manifest["items"])
        self.recommender = Recommender(directory, manifest)
        option = "--only" if request.candidates is None else "--candidates"
        allowed = self.items.allowed(request.only, request.exclude, session.say, option=option, strict=request.strict)
        allowed = limited(allowed, request.where, directory, manifest, session.say)
        subjects, history = session.workload.subjects, self.recommender.history
        some_empty = subjects.popular if subjects is not None else (history.indptr[1:] == history.indptr[:-1]).any()
        self.listed = shortlist(self.k, request.diversity)
        """Items of a shortlist, from which a list is chosen."""
        popular: list[tuple[int, float]] = []
        if some_empty:
            shares = self.recommender.recent_shares
            numbers = popularity.numbers(history, items=manifest["items"], shares=shares)
            popular = popularity.most(numbers, self.listed, allowed)
        self.popular = diverse(popular, self.recommender.scorer, self.k, request.diversity)
        """Rows and scores of the items for those without a history."""
        self.allowed, factors = allowed, self.recommender.factors
        self.catalogue = None if factors is None else Catalogue(factors.item_factors, allowed)

    def write(self, parts: Path) -> int:
        """Write the missing parts; returns the number of rows in all parts.

        Raises
        ------
        KeyboardInterrupt
            The session is stopping.
        """
        import pyarrow.parquet as pq

        total = 0
        with self.session.progress(total=self.session.workload.count, unit="user", label="recommend") as bar:
            for part in self.parts(self.session.workload.part_users):
                path = parts / f"users-{part.start:012d}.parquet"
                if not path.exists():
                    with files.atomic_file(path) as unfinished:
                        pq.write_table(self.answer(part), arrow_numpy.native(unfinished))
                total += pq.read_metadata(path).num_rows
                bar.update(len(part.ids))
                if self.session.stopping:
                    raise KeyboardInterrupt
        return total

    def parts(self, size: int) -> Iterator[Part]:
        """All for whom there is a list, ``size`` at a time."""
        work, history = self.session.workload, self.recommender.history
        if work.workspace is None:
            return many.all_users(self.request.model, history, size)
        if self.request.histories is not None:
            return many.listed_histories(work.workspace.path, size)
        return many.listed_users(work.workspace.path, history, size)

    def answer(self, part: Part) -> Any:
        """Recommendations for consecutive users or histories.

        Returns
        -------
        pyarrow.Table
            Columns ``user`` or ``history``, ``rank``, ``item``, ``score``.
        """
        from concurrent.futures import ThreadPoolExecutor

        import numpy as np
        import pyarrow as pa
        from threadpoolctl import threadpool_limits

        # Read in this thread, because threads must not share a file's position.
        offsets, items, values = part.read()
        ranked = np.flatnonzero(np.diff(offsets))  # without a history all scores are equal
        # As many blocks as keep every thread busy to the end, none larger than planned.
        count = len(ranked)
        rounds = max(1, -(-count // (int(self.session.plan["user_block"]) * self.session.threads)))
        block = max(1, -(-count // (rounds * self.session.threads)))
        ends = np.append(offsets[ranked], offsets[-1])
        bounds = [(first, min(first + block, count)) for first in range(0, count, block)]
        spans = [(ends[first : last + 1], slice(ends[first], ends[last])) for first, last in bounds]
        histories = [(some - some[0], items[span], values[span]) for some, span in spans]
        with ThreadPoolExecutor(self.session.threads) as pool, threadpool_limits(1, "blas"):
            best = list(pool.map(self.best, histories))
        rows, scores = self.popular_lists(len(part.ids))
        for (first, last), pair in zip(bounds, best, strict=True):
            rows[ranked[first:last]], scores[ranked[first:last]] = pair
        shown = rows >= 0
        user, rank = np.nonzero(shown)
        return pa.table(
            {
                "user" if self.request.histories is None else "history": part.ids.take(arrow_numpy.numbers(user)),
                "rank": arrow_numpy.numbers((rank + 1).astype(np.int32)),
                "item": self.items.ids(rows[shown]),
                "score": arrow_numpy.numbers(scores[shown]),
            }
        )

    def popular_lists(self, count: int) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
        """Popular items for so many, as ``best`` returns lists."""
        import numpy as np

        rows, scores = np.full((count, self.k), -1, np.int32), np.full((count, self.k), -np.inf)
        rows[:, : len(self.popular)] = [row for row, _ in self.popular]
        scores[:, : len(self.popular)] = [score for _, score in self.popular]
        return rows, scores

    def best(self, histories: Histories) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
        """The best items of n users and their scores, as ``Catalogue.best``: shape (n, k) each."""
        import numpy as np

        offsets, items, values = histories
        spans = [slice(start, stop) for start, stop in pairwise(offsets)]
        factors = self.recommender.factors
        if factors is None or self.catalogue is None:
            scorer, samples = self.recommender.scorer, [(items[span], values[span]) for span in spans]
            scores = scorer.scores(samples, scorer.workspace(len(spans)))
            own = [items[:0] if self.request.keep_seen else some for some, _ in samples]
            return self.chosen(*best_items(scores, own, self.allowed, self.listed))
        users = np.stack([factors.fold_in(items[span], values[span]) for span in spans])
        owner = np.repeat(np.arange(len(spans)), np.diff(offsets))
        seen = (owner[:0], items[:0]) if self.request.keep_seen else (owner, items)
        return self.chosen(*self.catalogue.best(users, seen, self.listed))

    def chosen(
        self, rows: NDArray[np.int32], scores: NDArray[np.float64]
    ) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
        """Choose the lists from shortlists, shape (n, listed) each; these themselves without ``--diversity``."""
        import numpy as np

        diversity, k = self.request.diversity, self.k
        if not diversity:
            return rows, scores
        lists = np.full((len(rows), k), -1, np.int32), np.full((len(rows), k), -np.inf)
        for user in range(len(rows)):
            some = rows[user, rows[user] >= 0]
            closeness = self.recommender.scorer.closeness(some)
            order = rerank(scores[user, : len(some)], closeness, k, diversity)
            lists[0][user, : len(order)], lists[1][user, : len(order)] = some[order], scores[user, order]
        return lists


def _continue(parts: Path, work: RecommendAllWorkload) -> int:
    """Make the folder of parts, empty it if they belong to another request, and return the number of parts in it."""
    digest = files.sha256(work.request.model / model_folder.MANIFEST)
    subjects = work.subjects.digest if work.subjects is not None else ""
    settings = resume_settings(work.request, model=digest, part=work.part_users, subjects=subjects)
    with suppress(OSError, ValueError):
        if json.loads((parts / KEY).read_text()) == settings:
            return len(list(parts.glob("users-*.parquet")))
    shutil.rmtree(parts, ignore_errors=True)
    parts.mkdir(parents=True)
    files.write_json(parts / KEY, settings)
    return 0


def _tables(parts: Path) -> Iterator[Any]:
    for path in sorted(parts.glob("users-*.parquet")):
        yield arrow_numpy.read_parquet(path)
