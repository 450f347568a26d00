"""``recsys recommend`` for one user, ``similar`` and ``inspect``: questions to a model folder."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Mapping
from itertools import chain, islice
from typing import Any

from apps.recsys.models.recommender import load_manifest, read_manifest
from apps.recsys.planning.answer import AnswerWorkload
from apps.recsys.planning.baselines import warm_up_for
from apps.recsys.planning.requests import AnswerRequest, RecommendRequest, SimilarRequest
from apps.recsys.serving.service import RecommenderService
from common import model_folder, terminal
from common.cli.session import CommandSession
from common.memory.process.budget import MemoryBudget, format_size


def workload(request: AnswerRequest, budget: MemoryBudget) -> AnswerWorkload:
    """Read the model's manifest; raises as ``recommender.load_manifest``."""
    return AnswerWorkload(request, load_manifest(request.model))


def warm_up(request: AnswerRequest) -> str:
    """Name of the warm-up function."""
    return warm_up_for(read_manifest(request.model), request.warm_up)


def recommend(session: CommandSession[RecommendRequest, AnswerWorkload]) -> Mapping[str, Any]:
    """Recommend items for a user of the training data, or for a history."""
    request = session.request
    with session.phase("answer"):
        service = RecommenderService(request.model, session.workload.manifest)
        allowed = service.items.allowed(request.only, request.exclude, session.say)
        ranked = service.ranked(request.user, request.history, request.k, allowed=allowed)
        width = max([2, *(len(str(service.items.id(row))) for row, _ in ranked.best)])
        return _results(service.described(ranked, request.explained), width, prints=request.prints)


def similar(session: CommandSession[SimilarRequest, AnswerWorkload]) -> Mapping[str, Any]:
    """Find the items nearest to one."""
    request = session.request
    with session.phase("answer"):
        answer = RecommenderService(request.model, session.workload.manifest).similar(request.item, request.k)
        width = max([2, *(len(str(item["id"])) for item in answer)])
        return _results(answer, width, prints=request.prints)


def _results(answers: Iterable[dict[str, Any]], width: int, *, prints: bool) -> Mapping[str, Any]:
    """Print the answers one by one, with ids in a column of ``width``; or return them for the record."""
    if not prints:
        return {"items": [_without_title(item) for item in answers]}
    rest = iter(answers)
    first = list(islice(rest, 1))  # before anything is printed, since an explanation may be refused
    sys.stdout.write(f"{'#':>3}  {'id':<{width}}  {'score':>8}  title\n")
    for rank, item in enumerate(chain(first, rest), 1):
        id_, title = terminal.escaped(str(item["id"])), terminal.escaped(item["title"])
        sys.stdout.write(f"{rank:>3}  {id_:<{width}}  {item['score']:>8.4f}  {title}\n")
        if "because" in item:
            sys.stdout.write(f"{'':>3}  {'':<{width}}  because: ")
            for had in item["because"]:
                sys.stdout.write(f"{terminal.escaped(str(had['title'] or had['id']))} {had['score']:+.4f}, ")
            sys.stdout.write(f"all others {item['others']:+.4f}\n")
    return {"items": []}


def _without_title(item: Mapping[str, Any]) -> dict[str, Any]:
    """An answer as the record holds it."""
    kept = {name: item[name] for name in ("id", "score", "others") if name in item}
    return kept | ({"because": [_without_title(had) for had in item["because"]]} if "because" in item else {})


def inspect(args: argparse.Namespace) -> int:
    """Check every digest of a model folder and print what it holds.

    Raises
    ------
    BadInput
        The folder is not a complete model, or a file does not have its digest.
    """
    manifest = load_manifest(args.model)
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
