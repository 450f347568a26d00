"""A recommender over HTTP.

GET /recommend?user=ID&k=10, GET /recommend?history=ID,ID&k=10, GET /similar?item=ID&k=10, GET /health.
With ``explain=3`` each recommendation names the three items of the history that added most to its score.
``where=genre = Comedy and year >= 1990`` chooses items by their attributes.
``k`` and ``explain`` are at most 1,000, ``k * (1 + explain)`` at most 5,000, a history has at most 2,000 ids,
and ``where`` at most 1,000 characters and 20 comparisons.
An unknown id is answered with 404, a malformed request with 422, each with ``{"detail": why}``.
"""

from typing import Any

from apps.recsys.data.attributes.expression import comparisons, parse
from apps.recsys.data.attributes.passing import UnknownAttribute
from apps.recsys.planning.questions.where import LONGEST_SERVED, MOST_SERVED
from apps.recsys.planning.requests import MOST, MOST_ENTRIES, MOST_HISTORY, split_ids
from apps.recsys.serving.service import RecommenderService, UnknownId
from common import __version__
from common.errors import UsageError


def application(service: RecommenderService) -> Any:
    """Make the FastAPI application.

    Its endpoints are coroutines that compute without waiting, so there is one answer at a time, and the plan needs the
    memory of one answer only.
    """
    from fastapi import FastAPI, HTTPException, Query, Request
    from fastapi.responses import JSONResponse

    app = FastAPI(title="peakline recsys", version=__version__)
    manifest = service.recommender.manifest
    depth = Query(10, ge=1, le=MOST)

    @app.exception_handler(UnknownId)
    async def unknown(request: Request, error: UnknownId) -> JSONResponse:
        return JSONResponse({"detail": str(error)}, 404)

    @app.exception_handler(UnknownAttribute)
    @app.exception_handler(UsageError)
    async def unanswerable(request: Request, error: Exception) -> JSONResponse:
        return JSONResponse({"detail": str(error)}, 422)

    @app.get("/health")
    async def health() -> dict[str, Any]:
        return {"status": "ok", **{name: manifest[name] for name in ("kind", "users", "items", "factors")}}

    @app.get("/recommend")
    async def recommend(
        user: str | None = None,
        history: str | None = None,
        k: int = depth,
        explain: int = Query(0, ge=0, le=MOST),
        where: str | None = Query(None, max_length=LONGEST_SERVED),
    ) -> JSONResponse:
        if (user is None) == (history is None):
            raise HTTPException(422, "give either user or history (ids separated by commas)")
        if k * (1 + explain) > MOST_ENTRIES:
            raise HTTPException(
                422, f"k * (1 + explain) is {k * (1 + explain):,}, at most {MOST_ENTRIES:,} are answered"
            )
        if where is not None and sum(1 for _ in comparisons(parse(where))) > MOST_SERVED:
            raise HTTPException(422, f"where has more than {MOST_SERVED} comparisons")
        if user is not None:
            return JSONResponse({"items": service.for_user(user, k, explained=explain, where=where)})
        ids = split_ids(str(history))
        if not ids:
            raise HTTPException(422, "history is empty")
        if len(ids) > MOST_HISTORY:
            raise HTTPException(422, f"history has {len(ids):,} ids; at most {MOST_HISTORY:,} are read")
        return JSONResponse({"items": service.for_history(ids, k, explained=explain, where=where)})

    @app.get("/similar")
    async def similar(item: str, k: int = depth) -> JSONResponse:
        return JSONResponse({"items": service.similar(item, k)})

    return app
