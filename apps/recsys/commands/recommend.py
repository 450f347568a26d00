"""``recsys recommend`` for one user, ``similar`` and ``inspect``: questions to a model folder."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Mapping
from itertools import chain, islice
from typing import Any

from apps.recsys.data.attributes.stored import listed
from apps.recsys.models.recommender import load_manifest, read_manifest
from apps.recsys.planning.answer import AnswerWorkload
from apps.recsys.planning.baselines import warm_up_for
from apps.recsys.planning.questions.diversity import require_choice
from apps.recsys.planning.questions.files import read_ids
from apps.recsys.planning.questions.like_users import require_tastes
from apps.recsys.planning.questions.recommend_requests import RecommendRequest
from apps.recsys.planning.requests import AnswerRequest, SimilarRequest
from apps.recsys.serving.service import Ranked, RecommenderService, UnknownId
from common import model_folder, terminal
from common.cli.session import CommandSession
from common.memory.process.budget import MemoryBudget, format_size


def workload(request: AnswerRequest, budget: MemoryBudget) -> AnswerWorkload:
    """Read the model's manifest, and the files of ids of the request.

    Raises
    ------
    BadInput, DoesNotFit
        As ``recommender.load_manifest`` and ``read_ids``.
    """
    manifest = load_manifest(request.model)
    require_choice(request.where, request.diversity, manifest)
    if isinstance(request, SimilarRequest) and request.user is not None:
        require_tastes(manifest)
    if isinstance(request, RecommendRequest):
        reading = (budget, request.threads)
        if request.history_file is not None:
            request = request.with_history(read_ids(request.history_file, "item", "--history-file", *reading))
        if request.candidates is not None:
            request = request.with_candidates(read_ids(request.candidates, "item", "--candidates", *reading))
    return AnswerWorkload(request, manifest)


def warm_up(request: AnswerRequest) -> str:
    """Name of the warm-up function."""
    return warm_up_for(read_manifest(request.model), request.warm_up)


def recommend(session: CommandSession[RecommendRequest, AnswerWorkload]) -> Mapping[str, Any]:
    """Recommend items for a user of the training data, or for a history.

    Raises
    ------
    BadInput
        None of the ids to choose from is in the model; with ``strict``, any id is not.
    """
    request = session.workload.request
    assert isinstance(request, RecommendRequest)
    with session.phase("answer"):
        service = RecommenderService(request.model, session.workload.manifest)
        ranked = _ranked(service, request, session.say)
        if not ranked.best and not request.where:  # of an expression that is said already
            session.say("the list is empty: the history has all items that may be recommended (--keep-seen)")
        width = max([2, *(len(str(service.items.id(row))) for row, _ in ranked.best)])
        explained = request.explained if len(ranked.items) else 0
        return _results(service.described(ranked, explained), width, prints=request.prints)


def _ranked(service: RecommenderService, request: RecommendRequest, say: Callable[[str], object]) -> Ranked:
    """The best items; for somebody of whom the model knows nothing, those that most users had."""
    option = "--only" if request.candidates is None else "--candidates"
    allowed = service.items.allowed(request.only, request.exclude, say, option=option, strict=request.strict)
    allowed = service.passing(request.where, allowed, say)
    k = request.k
    how: dict[str, Any] = {"keep_seen": request.keep_seen, "diversity": request.diversity}
    if request.user is not None:
        if service.users.row(request.user) is not None:
            return service.ranked(request.user, (), k, allowed, **how)
        if request.strict or not service.users.possible(request.user):
            raise UnknownId("user", request.user)
        say(f"user {request.user!r} is not in the model, and is shown popular items: scores are numbers of users")
        return service.popular(k, allowed, diversity=request.diversity)
    rows, line = service.items.known_rows(request.history, "history", strict=request.strict)
    if line:
        say(line)
    if len(rows):
        return service.ranked_rows(rows, k, allowed, **how)
    say("the history has no item of the model, and is shown popular items: scores are numbers of users")
    return service.popular(k, allowed, diversity=request.diversity)


def similar(session: CommandSession[SimilarRequest, AnswerWorkload]) -> Mapping[str, Any]:
    """Find the items nearest to one, or the users most like one."""
    request = session.request
    with session.phase("answer"):
        if request.user is not None:
            return _like_users(session, request.user)
        answer = RecommenderService(request.model, session.workload.manifest).similar(str(request.item), request.k)
        width = max([2, *(len(str(item["id"])) for item in answer)])
        return _results(answer, width, prints=request.prints)


def _like_users(session: CommandSession[SimilarRequest, AnswerWorkload], user: str) -> Mapping[str, Any]:
    """Print the users most like one, or return them for the record."""
    request, manifest = session.request, session.workload.manifest
    service = RecommenderService(request.model, manifest)
    with session.progress(total=manifest["users"], unit="user", label="similar") as bar:
        answer = service.like_user(user, request.k, threads=session.threads, done=bar.update)
    if request.prints:
        width = max([2, *(len(str(one["id"])) for one in answer)])
        sys.stdout.write(f"{'#':>3}  {'id':<{width}}  {'score':>8}\n")
        for rank, one in enumerate(answer, 1):
            sys.stdout.write(f"{rank:>3}  {terminal.escaped(str(one['id'])):<{width}}  {one['score']:>8.4f}\n")
    return {"users": [] if request.prints else answer}


def _results(answers: Iterable[dict[str, Any]], width: int, *, prints: bool) -> Mapping[str, Any]:
    """Print the answers one by one, with ids in a column of ``width``; or return them for the record."""
    if not prints:
        return {"items": [_recorded(item) for item in answers]}
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


def _recorded(item: Mapping[str, Any]) -> dict[str, Any]:
    """An answer as the record holds it: with its title, if it has one."""
    kept = {name: item[name] for name in ("id", "title", "score", "others") if item.get(name, "") != ""}
    return kept | ({"because": [_recorded(had) for had in item["because"]]} if "because" in item else {})


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
    codes = sum(manifest.get("codes", {}).values())
    stored = (
        f"{manifest.get('code_form', 'scalar')} codes, {codes} bytes an item" if codes else f"{manifest['table']} table"
    )
    for line in (
        f"{manifest['kind']}, {manifest['factors']} factors ({stored}), made by {manifest['made_by']}",
        f"{manifest['users']:,} users, {manifest['items']:,} items, {manifest['interactions']:,} interactions",
        f"{hyper}, split {manifest['split']}, seed {manifest['seed']}",
        *([f"attributes: {listed(found)}"] if (found := manifest.get("attributes")) else []),
        f"{len(manifest['files'])} files, {format_size(size)}, every digest right",
    ):
        sys.stdout.write(line + "\n")
    return 0
