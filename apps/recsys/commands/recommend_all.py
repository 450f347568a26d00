"""``recsys recommend --all-users``: the best items for every user, in parts that become one Parquet file at the end.

Existing parts are complete, so a run that was killed continues with the next one.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apps.recsys.data import arrow_numpy
from apps.recsys.data.id_table import IdTable
from apps.recsys.models.catalogue_search import Catalogue
from apps.recsys.models.recommender import Recommender, load_manifest, read_manifest
from apps.recsys.models.top_k import best_items
from apps.recsys.planning.baselines import ANSWERING, warm_up_for
from apps.recsys.planning.recommend_all import RecommendAllWorkload
from apps.recsys.planning.requests import RecommendAllRequest
from apps.recsys.planning.resume_settings import resume_settings
from common import files, model_folder
from common.cli.session import CommandSession
from common.memory.process import glibc
from common.memory.process.budget import MemoryBudget

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Histories = tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.float32]]
    """Histories of n users: offsets of their items, shape (n + 1,); items; values."""

KEY = "key.json"
"""File in the folder of parts with the settings that the parts were made with."""


def workload(request: RecommendAllRequest, budget: MemoryBudget) -> RecommendAllWorkload:
    """Read the model's manifest; raises as ``recommender.load_manifest``."""
    return RecommendAllWorkload(request, load_manifest(request.model))


def warm_up(request: RecommendAllRequest) -> str:
    """Name of the warm-up function."""
    return warm_up_for(read_manifest(request.model), ANSWERING)


def record(request: RecommendAllRequest) -> Path:
    """Path of the record, next to the output."""
    return request.output.with_suffix(".run.json")


def execute(session: CommandSession[RecommendAllRequest, RecommendAllWorkload]) -> Mapping[str, Any]:
    """Write the recommendations for all users."""
    request, manifest = session.request, session.workload.manifest
    parts = request.output.with_name(f".{request.output.name}.parts")
    done = _continue(parts, session.workload)
    if done:
        session.say(f"continuing after {done} parts")
    with session.deferred_signals():
        with session.phase("load"):
            ranker = Ranker(session)
            glibc.trim()
        with session.phase("rank"):
            rows = ranker.write(parts)
            del ranker
            glibc.trim()
        with session.phase("join"):
            _join(parts, request.output)
    shutil.rmtree(parts)
    return {"users": manifest["users"], "rows": rows, "k": request.k}


class Ranker:
    """A loaded model that ranks for blocks of users.

    Parameters
    ----------
    session
        Session of the command, with its plan (knob ``user_block``).

    Raises
    ------
    BadInput
        None of the ids of ``only`` is in the model.
    """

    def __init__(self, session: CommandSession[RecommendAllRequest, RecommendAllWorkload]) -> None:
        self.session, self.k = session, session.request.k
        directory, manifest = session.request.model, session.workload.manifest
        self.items = IdTable(directory / "items.parquet", manifest["items"])
        self.recommender = Recommender(directory, manifest)
        allowed = self.items.allowed(session.request.only, session.request.exclude, session.say)
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

        total = start = 0
        size = self.session.workload.part_users
        users = pq.ParquetFile(arrow_numpy.native(self.session.request.model / "users.parquet"), pre_buffer=False)
        bar = self.session.progress(total=self.recommender.history.rows, unit="user", label="recommend")
        with users, bar:
            for batch in users.iter_batches(batch_size=size, columns=["id"], use_threads=False):
                path = parts / f"users-{start:012d}.parquet"
                if not path.exists():
                    with files.atomic_file(path) as unfinished:
                        pq.write_table(self.answer(batch.column(0), start), arrow_numpy.native(unfinished))
                total += pq.read_metadata(path).num_rows
                start += len(batch)
                bar.update(len(batch))
                if self.session.stopping:
                    raise KeyboardInterrupt
        return total

    def answer(self, ids: Any, start: int) -> Any:
        """Recommendations for consecutive users.

        Parameters
        ----------
        ids
            Their ids, an Arrow array.
        start
            Row of the first user.

        Returns
        -------
        pyarrow.Table
            Columns ``user``, ``rank``, ``item``, ``score``.
        """
        from concurrent.futures import ThreadPoolExecutor

        import numpy as np
        import pyarrow as pa
        from threadpoolctl import threadpool_limits

        # As many blocks as keep every thread busy to the end, none larger than planned.
        rounds = -(-len(ids) // (int(self.session.plan["user_block"]) * self.session.threads))
        block = -(-len(ids) // (rounds * self.session.threads))
        firsts = range(start, start + len(ids), block)
        # Read in this thread, because threads must not share a file's position.
        histories = [self.read(first, min(first + block, start + len(ids))) for first in firsts]
        with ThreadPoolExecutor(self.session.threads) as pool, threadpool_limits(1, "blas"):
            best = list(pool.map(self.best, histories))
        rows, scores = (np.concatenate([pair[column] for pair in best]) for column in range(2))
        shown = rows >= 0
        user, rank = np.nonzero(shown)
        return pa.table(
            {
                "user": ids.take(arrow_numpy.numbers(user)),
                "rank": arrow_numpy.numbers((rank + 1).astype(np.int32)),
                "item": self.items.ids(rows[shown]),
                "score": arrow_numpy.numbers(scores[shown]),
            }
        )

    def read(self, start: int, stop: int) -> Histories:
        """Read the histories of the users in rows ``start`` to ``stop``."""
        history = self.recommender.history
        offsets = history.indptr[start : stop + 1] - history.indptr[start]
        return offsets, history.items(start, stop), history.values(start, stop)

    def best(self, histories: Histories) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
        """The best items of n users and their scores, as ``Catalogue.best``: shape (n, k) each."""
        import numpy as np

        offsets, items, values = histories
        spans = [slice(start, stop) for start, stop in pairwise(offsets)]
        factors = self.recommender.factors
        if factors is None or self.catalogue is None:
            scorer, samples = self.recommender.scorer, [(items[span], values[span]) for span in spans]
            scores = scorer.scores(samples, scorer.workspace(len(spans)))
            return best_items(scores, [own for own, _ in samples], self.allowed, self.k)
        users = np.stack([factors.fold_in(items[span], values[span]) for span in spans])
        owner = np.repeat(np.arange(len(spans)), np.diff(offsets))
        return self.catalogue.best(users, (owner, items), self.k)


def _continue(parts: Path, work: RecommendAllWorkload) -> int:
    """Make the folder of parts, empty it if they belong to another request, and return the number of parts in it."""
    digest = files.sha256(work.request.model / model_folder.MANIFEST)
    settings = resume_settings(work.request, model=digest, part=work.part_users)
    with suppress(OSError, ValueError):
        if json.loads((parts / KEY).read_text()) == settings:
            return len(list(parts.glob("users-*.parquet")))
    shutil.rmtree(parts, ignore_errors=True)
    parts.mkdir(parents=True)
    files.write_json(parts / KEY, settings)
    return 0


def _join(parts: Path, out: Path) -> None:
    """Write one file of all parts, a row group each."""
    import pyarrow.parquet as pq

    with files.atomic_file(out) as unfinished:
        writer = None
        for table in _tables(parts):
            writer = writer or pq.ParquetWriter(arrow_numpy.native(unfinished), table.schema)
            writer.write_table(table)
        if writer is not None:
            writer.close()


def _tables(parts: Path) -> Iterator[Any]:
    for path in sorted(parts.glob("users-*.parquet")):
        yield arrow_numpy.read_parquet(path)
