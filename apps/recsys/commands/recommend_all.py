"""``recsys recommend --all-users``: the best items of every user, in parts that become one Parquet file at the end.

A part that is there is whole, so a run that was killed goes on with the next one.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apps.recsys.commands import recommend as answer
from apps.recsys.data import arrow_numpy
from apps.recsys.data.id_table import IdTable
from apps.recsys.models import recommender
from apps.recsys.models.catalogue_search import Catalogue
from apps.recsys.planning.answer import AnswerWorkload
from apps.recsys.planning.recommend_all import BatchWorkload
from apps.recsys.serving.service import UnknownId
from common import files, model_folder
from common.cli.session import CommandSession, Session
from common.errors import UsageError
from common.memory.process import glibc
from common.memory.process.budget import MemoryBudget

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Histories = tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.float32]]
    """Of some users: where each begins and the last ends, items, values."""

KEY = "key.json"
"""In the folder of parts: what they are parts of."""


def workload(args: argparse.Namespace, budget: MemoryBudget) -> AnswerWorkload | BatchWorkload:
    """For one user, or for all."""
    if not args.all_users:
        if args.output is not None:
            raise UsageError("-o is for --all-users; for one user the answer is printed")
        one: AnswerWorkload = answer.workload("recsys recommend")(args, budget)
        return one
    if args.output is None:
        raise UsageError("--all-users needs -o FILE")
    if args.explain:
        raise UsageError("--explain is for one user")
    if args.output.is_dir():
        raise UsageError(f"-o {args.output}: is a folder; expected a file")
    return BatchWorkload(args.model, recommender.load_manifest(args.model), args.k, args.threads)


def record(args: argparse.Namespace) -> Path | None:
    """Beside the file."""
    return args.output.with_suffix(".run.json") if args.all_users and args.output is not None else None


def execute(session: CommandSession[argparse.Namespace, Any]) -> Mapping[str, Any]:
    """For one user, or for all."""
    args = session.request
    work = session.workload
    if not isinstance(work, BatchWorkload):
        return answer.recommend(session)
    parts = args.output.with_name(f".{args.output.name}.parts")
    done = _continue(parts, args, work)
    if done:
        session.say(f"continuing after {done} parts")
    with session.deferred_signals():
        with session.phase("load"):
            ranker = Ranker(work, session, args)
            glibc.trim()
        with session.phase("rank"):
            rows = ranker.write(parts)
            del ranker
            glibc.trim()
        with session.phase("join"):
            _join(parts, args.output)
    shutil.rmtree(parts)
    return {"users": work.manifest["users"], "rows": rows, "k": args.k}


class Ranker:
    """The model, ready to answer for blocks of users."""

    def __init__(self, work: BatchWorkload, session: Session, args: argparse.Namespace) -> None:
        self.work, self.session, self.k = work, session, args.k
        self.items = IdTable(work.directory / "items.parquet")
        self.recommender = recommender.Recommender(work.directory, work.manifest)
        allowed = _allowed(self.items, args, work.manifest["items"])
        self.catalogue = Catalogue(self.recommender.item_factors, allowed)

    def write(self, parts: Path) -> int:
        """Write the parts that are not there; returns the lines of all."""
        import pyarrow.parquet as pq

        total = start = 0
        users = pq.ParquetFile(self.work.directory / "users.parquet", pre_buffer=False)
        bar = self.session.progress(total=self.recommender.history.rows, unit="user", label="recommend")
        with users, bar:
            for batch in users.iter_batches(batch_size=self.work.part_users, columns=["id"], use_threads=False):
                path = _part(parts, start)
                if not path.exists():
                    with files.atomic_file(path) as part:
                        pq.write_table(self.answer(batch.column(0), start), part)
                total += pq.read_metadata(path).num_rows
                start += len(batch)
                bar.update(len(batch))
                if self.session.stopping:
                    raise KeyboardInterrupt
        return total

    def answer(self, ids: Any, start: int) -> Any:
        """The lines of the users from row ``start`` on, whose ids are given, as an Arrow table."""
        from concurrent.futures import ThreadPoolExecutor

        import numpy as np
        import pyarrow as pa
        from threadpoolctl import threadpool_limits

        # As many blocks as keep every thread busy to the end, none larger than planned.
        rounds = -(-len(ids) // (int(self.session.plan["user_block"]) * self.session.threads))
        block = -(-len(ids) // (rounds * self.session.threads))
        firsts = range(start, start + len(ids), block)
        # Read in this thread: others must not share a file's position.
        histories = [self.read(first, min(first + block, start + len(ids))) for first in firsts]
        with ThreadPoolExecutor(self.session.threads) as pool, threadpool_limits(1, "blas"):
            found = list(pool.map(self.best, histories))
        rows, scores = (np.concatenate([pair[part] for pair in found]) for part in range(2))
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
        """The histories of the users ``start`` to ``stop``."""
        history = self.recommender.history
        bounds = history.indptr[start : stop + 1] - history.indptr[start]
        return bounds, history.items(start, stop), history.values(start, stop)

    def best(self, histories: Histories) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
        """Items and scores for some users."""
        import numpy as np

        bounds, items, values = histories
        each = [slice(start, stop) for start, stop in pairwise(bounds)]
        users = np.stack([self.recommender.user_vector(items[part], values[part]) for part in each])
        owner = np.repeat(np.arange(len(each)), np.diff(bounds))
        return self.catalogue.best(users, (owner, items), self.k)


def _allowed(items: IdTable, args: argparse.Namespace, count: int) -> NDArray[np.bool_] | None:
    """Which items may be shown, by ``--only`` and ``--exclude``."""
    import numpy as np

    if not (args.only or args.exclude):
        return None
    allowed = np.full(count, args.only is None)
    for ids, value in ((args.only, True), (args.exclude, False)):
        for id_ in ids or ():
            if (row := items.row(id_)) is None:
                raise UnknownId("item", id_)
            allowed[row] = value
    return allowed


def _part(parts: Path, start: int) -> Path:
    return parts / f"users-{start:012d}.parquet"


def _continue(parts: Path, args: argparse.Namespace, work: BatchWorkload) -> int:
    """Make the folder of parts, empty it if they are of another answer, and say how many there are."""
    manifest = hashlib.sha256((args.model / model_folder.MANIFEST).read_bytes()).hexdigest()
    key = {"model": manifest, "k": args.k, "exclude": args.exclude, "only": args.only, "part": work.part_users}
    with suppress(OSError, ValueError):
        if json.loads((parts / KEY).read_text()) == key:
            return len(list(parts.glob("users-*.parquet")))
    shutil.rmtree(parts, ignore_errors=True)
    parts.mkdir(parents=True)
    files.write_json(parts / KEY, key)
    return 0


def _join(parts: Path, out: Path) -> None:
    """One file of all parts, a row group each."""
    import pyarrow.parquet as pq

    with files.atomic_file(out) as made:
        writer = None
        for table in _tables(parts):
            writer = writer or pq.ParquetWriter(made, table.schema)
            writer.write_table(table)
        if writer is not None:
            writer.close()


def _tables(parts: Path) -> Iterator[Any]:
    for path in sorted(parts.glob("users-*.parquet")):
        yield arrow_numpy.read_parquet(path)
