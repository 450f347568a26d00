"""The planners' own workloads for data that is assumed: what ``recsys size`` prices."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from apps.recsys.data.ingest import TITLE_BYTES, TITLE_TIMES, Facts
from apps.recsys.data.splits import HOLDOUT_SHARE, LEAST_ITEMS, SCORED_SHARE
from apps.recsys.data.staging import BUCKET_ROWS
from apps.recsys.models.linear import readers
from apps.recsys.models.linear.options import AUTO, FORMS, open_factors
from apps.recsys.models.manifest import RecommenderManifest
from apps.recsys.models.scan import stored as scan_files
from apps.recsys.planning.answer import AnswerWorkload
from apps.recsys.planning.evaluate import EvaluateWorkload
from apps.recsys.planning.questions.recommend_requests import RecommendAllRequest, RecommendRequest
from apps.recsys.planning.recommend_all import RecommendAllWorkload
from apps.recsys.planning.requests import EvaluateRequest
from apps.recsys.planning.service.request import ServeRequest
from apps.recsys.planning.service.workload import ServeWorkload
from apps.recsys.planning.sizing.request import NOWHERE, SizeRequest
from apps.recsys.planning.train import TrainWorkload
from common.errors import UsageError
from common.memory.plan.planner import Workload

ROW_BYTES, NUMBER_BYTES, OFFSET_BYTES = 4, 8, 4
"""Bytes of a row in a Parquet file of ids, without compression: the row's number, a whole number as an id, and the
length of a text."""
FILE_BYTES = 1500
"""Metadata of such a file."""


def workloads(request: SizeRequest) -> Iterator[tuple[str, Workload]]:
    """Yield what is done with a model, with its price by the planners."""
    facts, threads = assumed_facts(request), request.threads
    manifest = assumed_manifest(request, facts.held_interactions)
    yield "train", TrainWorkload(request.training, facts)
    scored = facts.scored_users or request.users
    yield "evaluate", EvaluateWorkload(EvaluateRequest(model=NOWHERE, threads=threads), manifest, scored)
    many = RecommendAllRequest(model=NOWHERE, output=NOWHERE, k=request.k, threads=threads)
    yield "recommend --all-users", RecommendAllWorkload(many, manifest)
    one = RecommendRequest(model=NOWHERE, user="", k=request.k, threads=threads)
    yield "recommend --user", AnswerWorkload(one, manifest)
    with suppress(UsageError):  # where its libraries are installed
        yield "serve", ServeWorkload(ServeRequest(model=NOWHERE, threads=threads), manifest)


def assumed_facts(request: SizeRequest) -> Facts:
    """Facts that reading would find."""
    users, pairs, longest = request.users, request.interactions, request.longest
    mean, letters = pairs / users, request.title_letters
    scored = held = scored_items = 0
    if request.split == "user-holdout":
        scored = max(1, int(HOLDOUT_SHARE * users))
        held, scored_items = int(scored * mean), int(SCORED_SHARE * scored * mean)
    elif request.split != "none":
        scored = (
            users if mean >= LEAST_ITEMS or request.split == "leave-last" else max(1, int(users * mean / LEAST_ITEMS))
        )
        held = scored_items = users if request.split == "leave-last" else int(SCORED_SHARE * pairs)
    return Facts(
        rows=pairs,
        users=users,
        items=request.items,
        interactions=pairs,
        longest=longest,
        ids=users + request.items,
        bucket=min(pairs, BUCKET_ROWS + longest),
        scored_users=scored,
        scored_items=scored_items,
        scored_longest=longest if scored else 0,
        held_interactions=held,
        describing=request.items * (TITLE_BYTES + TITLE_TIMES * (OFFSET_BYTES + letters)) if letters else 0,
    )


def assumed_manifest(request: SizeRequest, held: int) -> RecommenderManifest:
    """The ``model.json`` that training would write, with ``held`` interactions held out."""
    model, hyper = request.model, dict(request.model.hyper)
    factors = model.factors
    if model.kind == "linear":  # the larger form, with as many eigenvalues as there can be
        hyper["form"] = FORMS[0] if hyper["form"] == AUTO else hyper["form"]
        if len(model.ranks) > 1:
            factors = min(factors, open_factors(hyper["form"], request.items, request.interactions - held))
        factors = min(factors, request.items)
    manifest: Any = {
        "application": "recsys",
        "kind": model.kind,
        "factors": factors,
        "table": hyper.get("table", "full"),
        "items": request.items,
        "users": request.users,
        "interactions": request.interactions,
        "longest_history": request.longest,
        "longest": request.longest,
        "hyper": hyper,
        "split": request.split,
        "seed": 0,
        "files": {
            "items.parquet": {"bytes": _table(request.items, request.id_letters, request.title_letters)},
            "users.parquet": {"bytes": _table(request.users, request.id_letters)},
        },
    }
    if model.kind == "linear" and readers.uses_readers(hyper["form"], request.interactions - held):
        manifest["files"] |= {f"{readers.NAME}.{part}.npy": {"bytes": 0} for part in ("indptr", "users")}
    if scan_files.applies(model.kind, hyper, request.items):
        for name, numbers in scan_files.sizes(request.items, factors).items():
            manifest["files"][name] = {"bytes": numbers * int(scan_files.TYPES[name][-1])}
    named: RecommenderManifest = manifest
    return named


def _table(rows: int, id_letters: int, title_letters: int = 0) -> int:
    """Bytes of a Parquet file of ids and titles."""
    id_bytes = OFFSET_BYTES + id_letters if id_letters else NUMBER_BYTES
    title_bytes = OFFSET_BYTES + title_letters if title_letters else 0
    return FILE_BYTES + rows * (ROW_BYTES + id_bytes + title_bytes)
