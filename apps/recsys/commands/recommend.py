"""``recsys recommend``, ``similar`` and ``inspect``: questions to a model folder."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from typing import Any

from apps.recsys.models import recommender
from apps.recsys.planning import floors
from apps.recsys.planning.answer import AnswerWorkload
from apps.recsys.serving.service import RecommenderService
from common import model_folder
from common.cli.session import CommandSession
from common.memory.process.budget import MemoryBudget, format_size


def workload(name: str, warm_up: str = floors.ANSWERING) -> Any:
    """The function that describes one of these commands to the planner."""

    def describe(args: argparse.Namespace, budget: MemoryBudget) -> AnswerWorkload:
        manifest = recommender.load_manifest(args.model)
        explains = warm_up == floors.SERVING or bool(getattr(args, "explain", 0))
        return AnswerWorkload(name, args.model, manifest, args.threads, warm_up, explains)

    return describe


def recommend(session: CommandSession[argparse.Namespace, Any]) -> Mapping[str, Any]:
    """For a known user or a history given on the command line."""
    args = session.request
    with session.phase("answer"):
        service = _service(session)
        limits = {name: service.rows(ids) for name in ("exclude", "only") if (ids := getattr(args, name))}
        if args.user is not None:
            found = service.for_user(args.user, args.k, explained=args.explain, **limits)
        else:
            found = service.for_history(args.history, args.k, explained=args.explain, **limits)
    return _answer(args, found)


def similar(session: CommandSession[argparse.Namespace, Any]) -> Mapping[str, Any]:
    """The items nearest to one."""
    args = session.request
    with session.phase("answer"):
        found = _service(session).similar(args.item, args.k)
    return _answer(args, found)


def _service(session: CommandSession[argparse.Namespace, Any]) -> RecommenderService:
    assert isinstance(session.workload, AnswerWorkload)
    return RecommenderService(session.workload.directory, session.workload.manifest)


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
