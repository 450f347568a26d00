"""The routes of the server: one table, from which requests are answered and the document is made."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from urllib.parse import unquote_to_bytes

from msgspec import Struct

from apps.recsys.serving.web import answers, questions


@dataclass(frozen=True, slots=True)
class Route:
    """A method and a path, and what is answered.

    Attributes
    ----------
    method
        ``"GET"``, which answers HEAD too, or ``"POST"``.
    path
        With ``{id}`` where the path has an id.
    summary
        A line for the document.
    answer
        Called in the thread of the model with it, the question and the path's id; ``None``: the application answers.
    query
        Type of the parameters.
    body
        Type of the body; ``None``: there is none.
    shape
        Name of the answer's form in the document.
    kind
        Media type of the answer.
    statuses
        Statuses other than 200, 401 and 422 with their meaning.
    """

    method: str
    path: str
    summary: str
    answer: Callable[..., Iterator[bytes]] | None = None
    query: type[Struct] = questions.Nothing
    body: type[Struct] | None = None
    shape: str = "Anything"
    kind: bytes = b"application/json"
    statuses: tuple[tuple[int, str], ...] = ()

    @property
    def question(self) -> type[Struct]:
        """Type of what is asked: the body's, or that of the parameters."""
        return self.body or self.query


_UNKNOWN = ((404, "a user or an item that the model does not have"), (503, "the model's files are damaged"))
ROUTES = (
    Route("GET", "/health", "The model, and that the server answers", shape="Health"),
    Route("GET", "/health/live", "200 while the process answers", shape="Status"),
    Route(
        "GET",
        "/health/ready",
        "200 while lists are made, 503 from the request to stop on",
        shape="Status",
        statuses=((503, "the server is stopping"),),
    ),
    Route("GET", "/model", "The model, its version, and memory by terms", shape="Model"),
    Route(
        "GET",
        "/recommend",
        "A list for a user or for a history",
        answers.recommend,
        query=questions.RecommendQuery,
        shape="List",
        statuses=_UNKNOWN,
    ),
    Route(
        "POST",
        "/recommend",
        "Lists for several users and histories",
        answers.batch,
        body=questions.Batch,
        shape="Lists",
        statuses=_UNKNOWN,
    ),
    Route(
        "GET",
        "/users/{id}/recommend",
        "A list for a user",
        answers.for_user,
        query=questions.UserQuery,
        shape="List",
        statuses=_UNKNOWN,
    ),
    Route(
        "POST",
        "/session/recommend",
        "A list for items with weights, of nobody in particular",
        answers.session,
        body=questions.Session,
        shape="List",
        statuses=_UNKNOWN,
    ),
    Route(
        "GET",
        "/similar",
        "The items nearest to one",
        lambda live, question: answers.similar(live, question, question.item),
        query=questions.NamedSimilarQuery,
        shape="List",
        statuses=_UNKNOWN,
    ),
    Route(
        "GET",
        "/items/{id}/similar",
        "The items nearest to one",
        answers.similar,
        query=questions.SimilarQuery,
        shape="List",
        statuses=_UNKNOWN,
    ),
    Route(
        "GET",
        "/items",
        "Items by a part of their title, those that most users had first",
        answers.search,
        query=questions.SearchQuery,
        shape="List",
        statuses=_UNKNOWN[1:],
    ),
    Route(
        "POST",
        "/feedback",
        "Events that count at once",
        answers.feedback,
        body=questions.Events,
        shape="Taken",
        statuses=(
            (404, "an item that the model does not have"),
            (503, "no feedback is taken, its log is full or damaged, or the disk is full"),
        ),
    ),
    Route(
        "GET",
        "/metrics",
        "Requests, times and memory as Prometheus reads them",
        kind=b"text/plain; version=0.0.4; charset=utf-8",
    ),
    Route("GET", "/", "The page", kind=b"text/html; charset=utf-8"),
    Route("GET", "/page.js", "Its program", kind=b"text/javascript; charset=utf-8"),
    Route("GET", "/openapi.json", "This document", shape="Anything"),
)


class Table:
    """Finds routes."""

    def __init__(self, routes: tuple[Route, ...] = ROUTES) -> None:
        self._exact: dict[str, dict[str, int]] = {}
        self._open: dict[tuple[str, str], dict[str, int]] = {}
        for number, route in enumerate(routes):
            if "{id}" in route.path:
                _, first, _, last = route.path.split("/")
                self._open.setdefault((first, last), {})[route.method] = number
            else:
                self._exact.setdefault(route.path, {})[route.method] = number

    def find(self, path: bytes) -> tuple[dict[str, int], tuple[str, ...]]:
        """Numbers of the routes of a path by method, and the ids in it; no route for a path that there is not.

        Parameters
        ----------
        path
            As it stands in the request: an id may have an escaped slash.
        """
        text = path.decode("ascii", "replace")
        if text in self._exact:
            return self._exact[text], ()
        parts = text.split("/")
        if len(parts) == 4 and (parts[1], parts[3]) in self._open:
            try:
                id_ = unquote_to_bytes(parts[2]).decode()
            except UnicodeDecodeError:
                return {}, ()
            return self._open[parts[1], parts[3]], (id_,)
        return {}, ()
