"""``recsys recommend``, ``similar`` and ``inspect``: questions to a model folder."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from apps.recsys.models import recommender
from apps.recsys.planning import workloads
from common import model_folder
from common.cli.session import CommandSession, Session
from common.errors import BadInput
from common.memory.process.budget import MemoryBudget, format_size

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class Unknown(BadInput):
    """An id that the model does not know."""

    def __init__(self, what: str, id_: str) -> None:
        super().__init__(f"{what} {id_!r} is not in the model", public=f"unknown {what}")


class Desk:
    """A model with its ids and titles: takes ids, answers with ids. What the command line and the server share."""

    def __init__(self, work: workloads.AnswerWorkload) -> None:
        self.recommender = recommender.Recommender(work.directory, work.manifest)
        self.items = recommender.Table(work.directory / "items.parquet")
        self.users = recommender.Table(work.directory / "users.parquet")

    def for_user(self, user: str, k: int, *, explained: int = 0, **limits: NDArray[Any] | None) -> list[dict[str, Any]]:
        """The best items for a known user.

        Parameters
        ----------
        explained
            How many items of the history are named for each, those that added most to its score.

        Raises
        ------
        Unknown
            No such user.
        UsageError
            As ``model.Recommender.explain``.
        """
        row = self.users.row(user)
        if row is None:
            raise Unknown("user", user)
        history = self.recommender.history
        return self._best(history.items(row), history.values(row), k, explained, limits)

    def for_history(
        self, ids: Sequence[str], k: int, *, explained: int = 0, **limits: NDArray[Any] | None
    ) -> list[dict[str, Any]]:
        """The best items for someone who had these items (once each)."""
        import numpy as np

        rows = self.rows(ids)
        return self._best(rows, np.ones(len(rows), np.float32), k, explained, limits)

    def _best(
        self, items: NDArray[Any], values: NDArray[np.float32], k: int, explained: int, limits: Mapping[str, Any]
    ) -> list[dict[str, Any]]:
        import numpy as np

        best = self.recommender.recommend(items, values, k, **limits)
        shown = self._shown(best)
        if explained:
            added = self.recommender.explain(items, values, np.array([row for row, _ in best], np.int64))
            for answer, each in zip(shown, added, strict=True):
                most = np.argsort(-each, kind="stable")[:explained]
                answer["because"] = self._shown([(int(items[place]), float(each[place])) for place in most])
                answer["others"] = round(float(each.sum() - each[most].sum()), 6)
        return shown

    def similar(self, item: str, k: int) -> list[dict[str, Any]]:
        """The items nearest to one."""
        (row,) = self.rows([item])
        return self._shown(self.recommender.similar(int(row), k))

    def rows(self, ids: Sequence[str]) -> NDArray[np.int64]:
        """Rows of item ids, each once, in increasing order.

        Raises
        ------
        Unknown
            Naming the first that is not there.
        """
        import numpy as np

        found = []
        for id_ in ids:
            row = self.items.row(id_)
            if row is None:
                raise Unknown("item", id_)
            found.append(row)
        return np.unique(np.array(found, np.int64))

    def _shown(self, best: Sequence[tuple[int, float]]) -> list[dict[str, Any]]:
        return [
            {"id": self.items.id(row), "title": self.items.title(row), "score": round(score, 6)} for row, score in best
        ]


def workload(name: str, warm_up: str = workloads.ANSWERING) -> Any:
    """The function that describes one of these commands to the planner."""

    def describe(args: argparse.Namespace, budget: MemoryBudget) -> workloads.AnswerWorkload:
        manifest = recommender.load_manifest(args.model)
        explains = warm_up == workloads.SERVING or bool(getattr(args, "explain", 0))
        return workloads.AnswerWorkload(name, args.model, manifest, args.threads, warm_up, explains)

    return describe


def recommend(session: CommandSession[argparse.Namespace, Any]) -> Mapping[str, Any]:
    """For a known user or a history given on the command line."""
    args = session.request
    with session.phase("answer"):
        desk = _desk(session)
        limits = {name: desk.rows(ids) for name in ("exclude", "only") if (ids := getattr(args, name))}
        if args.user is not None:
            found = desk.for_user(args.user, args.k, explained=args.explain, **limits)
        else:
            found = desk.for_history(args.history, args.k, explained=args.explain, **limits)
    return _answer(args, found)


def similar(session: CommandSession[argparse.Namespace, Any]) -> Mapping[str, Any]:
    """The items nearest to one."""
    args = session.request
    with session.phase("answer"):
        found = _desk(session).similar(args.item, args.k)
    return _answer(args, found)


def _desk(session: Session) -> Desk:
    assert isinstance(session.workload, workloads.AnswerWorkload)
    return Desk(session.workload)


def _answer(args: argparse.Namespace, found: list[dict[str, Any]]) -> Mapping[str, Any]:
    if not args.json:
        width = max([2, *(len(str(item["id"])) for item in found)])
        sys.stdout.write(f"{'#':>3}  {'id':<{width}}  {'score':>8}  title\n")
        for rank, item in enumerate(found, 1):
            sys.stdout.write(f"{rank:>3}  {item['id']!s:<{width}}  {item['score']:>8.4f}  {item['title']}\n")
            if "because" in item:
                named = ", ".join(f"{had['title'] or had['id']} {had['score']:+.4f}" for had in item["because"])
                sys.stdout.write(f"{'':>3}  {'':<{width}}  because: {named}, all others {item['others']:+.4f}\n")
    return {"items": [_bare(item) for item in found]}


def _bare(item: Mapping[str, Any]) -> dict[str, Any]:
    """An answer without titles, for the record."""
    kept = {name: item[name] for name in ("id", "score", "others") if name in item}
    return kept | ({"because": [_bare(had) for had in item["because"]]} if "because" in item else {})


def inspect(args: argparse.Namespace) -> int:
    """Check every digest of a model folder and say what it holds."""
    manifest = recommender.load_manifest(args.model)
    model_folder.verify(args.model, manifest)
    size = sum(entry["bytes"] for entry in manifest["files"].values())
    hyper = ", ".join(f"{name}={value}" for name, value in manifest["hyper"].items())
    for line in (
        f"{manifest['kind']}, {manifest['factors']} factors ({manifest['table']} table), made by {manifest['made_by']}",
        f"{manifest['users']:,} users, {manifest['items']:,} items, {manifest['interactions']:,} interactions",
        f"{hyper}, split {manifest['split']}, seed {manifest['seed']}",
        f"{len(manifest['files'])} files, {format_size(size)}, every digest right",
    ):
        sys.stdout.write(line + "\n")
    return 0
