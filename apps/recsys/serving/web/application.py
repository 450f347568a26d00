"""The server's application: who may ask, which route, and an answer in one part or in several (ASGI).

Answers that need the model are computed in one thread, one after the other, so the plan needs the memory of one answer
only, and ``/health`` answers meanwhile.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sized
from pathlib import Path
from typing import Any

import msgspec

from apps.recsys.planning.service.limits import ANSWER_SECONDS, BODY_BYTES, MOST_ANSWERS, PIECE_BYTES, SMALL_ENTRIES
from apps.recsys.serving.connections import GONE
from apps.recsys.serving.feedback.feedback import Full
from apps.recsys.serving.feedback.journal import NoRoom
from apps.recsys.serving.lines import Lines
from apps.recsys.serving.live import Live
from apps.recsys.serving.web import openapi
from apps.recsys.serving.web.access import Access
from apps.recsys.serving.web.answers import Pieces
from apps.recsys.serving.web.metrics import OTHER, Metrics
from apps.recsys.serving.web.model_thread import ModelThread
from apps.recsys.serving.web.questions import Unanswerable, of_body, of_query
from apps.recsys.serving.web.routes import ROUTES, Route, Table
from common.errors import BadInput, UsageError

log = logging.getLogger("peakline")
Send = Callable[[Mapping[str, Any]], Awaitable[None]]
Receive = Callable[[], Awaitable[Mapping[str, Any]]]
JSON = (b"content-type", b"application/json")
PAGE = Path(__file__).parent / "page"
"""Folder of the page."""
POLICY = (
    (
        b"content-security-policy",
        b"default-src 'self'; style-src 'unsafe-inline'; img-src 'self' data:; frame-ancestors 'none'; base-uri 'none'",
    ),
    (b"referrer-policy", b"no-referrer"),
)
"""What a browser may do with the page: ask this server, and nothing else."""
PUBLIC = frozenset((b"/", b"/page.js", b"/health", b"/health/live", b"/health/ready"))
"""Paths that are answered without a token: they have no data."""


class Refused(Exception):
    """A request that is answered with an error."""

    def __init__(self, status: int, detail: str, *headers: tuple[bytes, bytes]) -> None:
        super().__init__(detail)
        self.status, self.detail, self.headers = status, detail, headers


class Application:
    """The application.

    Parameters
    ----------
    live
        The model.
    lines
        What it writes.
    access
        Who may ask.
    metrics
        Counts requests.
    """

    def __init__(
        self,
        live: Live,
        lines: Lines,
        *,
        access: Access = Access(),
        metrics: Metrics | None = None,
    ) -> None:
        self.live, self.lines, self.access = live, lines, access
        self.metrics = metrics or Metrics()
        self.stopping = False
        """True once the server was asked to stop."""
        self.connections: Sized = ()
        """Connections of the server."""
        self._table = Table(ROUTES)
        self._model_thread = ModelThread()
        self._large = asyncio.Semaphore(MOST_ANSWERS)
        self._changing, self._again = False, False
        self._own: Mapping[str, Callable[[], tuple[int, bytes]]] = {
            "/health": self._health,
            "/health/live": lambda: (200, b'{"status":"ok"}'),
            "/health/ready": self._ready,
            "/model": lambda: (200, msgspec.json.encode(self.live.described())),
            "/metrics": self._metrics,
            "/": lambda: (200, (PAGE / "page.html").read_bytes()),
            "/page.js": lambda: (200, (PAGE / "page.js").read_bytes()),
            "/openapi.json": lambda: (200, msgspec.json.encode(openapi.document())),
        }

    def close(self) -> None:
        """End the thread of the model."""
        self._model_thread.close()

    async def __call__(self, scope: Mapping[str, Any], receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            return
        began, number, status = time.perf_counter(), OTHER, 0

        async def sent(message: Mapping[str, Any]) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            number, ids = self._find(scope)
            await self._answer(ROUTES[number], ids, scope, receive, sent)
        except TimeoutError:
            self.lines.event("slow", "recsys serve: a client took its answer too slowly, and was cut off")
            raise ConnectionError("too slow") from None  # the server closes the connection
        except Refused as refused:
            await _whole(sent, refused.status, msgspec.json.encode({"detail": refused.detail}), refused.headers)
        except Exception as error:
            self.lines.event("error", f"recsys serve: {type(error).__name__}: {error}")
            if status:
                raise
            await _whole(sent, 500, b'{"detail":"unforeseen"}')
        finally:
            seconds = time.perf_counter() - began
            self.metrics.count(number, status or 499, seconds)
            self.lines.request(scope["method"], _name(number), status, seconds)

    async def change(self) -> None:
        """Serve what the model folder holds now, if that can be served; otherwise say why not."""
        if self._changing:
            self._again = True
            return
        self._changing = True
        try:
            await self._change()
        finally:
            self._changing = False
        if self._again:
            self._again = False
            await self.change()

    async def _change(self) -> None:
        live = self.live
        try:
            version = await asyncio.to_thread(live.newer)
            if version is None:
                live.refused = ""
                self.lines.event("same", f"recsys serve: the model is the same (version {live.version.name})")
                return
            for _ in range(MOST_ANSWERS):  # answers that are sent in parts hold the model
                await self._large.acquire()
            try:
                await self._in_thread(live.change, version)
            finally:
                for _ in range(MOST_ANSWERS):
                    self._large.release()
        except BadInput as error:
            live.refused = error.public
            self.lines.event(
                "refused", f"recsys serve: the model stays as it was (version {live.version.name}): {error}"
            )
        else:
            live.refused = ""
            self.lines.event("changed", f"recsys serve: the model is version {live.version.name} now")

    async def _answer(
        self, route: Route, ids: tuple[str, ...], scope: Mapping[str, Any], receive: Receive, send: Send
    ) -> None:
        body = b"" if route.body is None else await _body(receive)
        question = _read(route, scope["query_string"], body)
        if route.answer is None:
            status, answer = self._own[route.path]()
            await _whole(send, status, answer, POLICY if route.path == "/" else (), route.kind)
        elif question.entries <= SMALL_ENTRIES:
            first, _ = await self._in_thread(_answered, route, self.live, question, ids)
            await _whole(send, 200, first)
        else:
            del question  # its ids would wait in memory
            gone = scope.get("extensions", {}).get(GONE, lambda: False)
            async with self._large, asyncio.timeout(ANSWER_SECONDS):
                if gone():
                    return
                question = _read(route, scope["query_string"], body)
                part, rest = await self._in_thread(_begun, route, self.live, question, ids)
                if rest is None:
                    await _whole(send, 200, part)
                    return
                await send({"type": "http.response.start", "status": 200, "headers": [JSON]})
                await send({"type": "http.response.body", "body": part, "more_body": True})
                while rest is not None and not gone():
                    part, rest = await self._in_thread(_next, rest)
                    await send({"type": "http.response.body", "body": part, "more_body": rest is not None})

    async def _in_thread(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call a function in the thread of the model."""
        return await self._model_thread.call(function, *arguments)

    def _find(self, scope: Mapping[str, Any]) -> tuple[int, tuple[str, ...]]:
        """Number of the route of a request, and the ids in its path.

        Raises
        ------
        Refused
            There is none, or the request may not be answered.
        """
        path = scope["raw_path"]
        if refusal := self.access.refusal(scope["headers"], public=path in PUBLIC):
            challenge = [(b"www-authenticate", b"Bearer")] if refusal[0] == 401 else []
            raise Refused(*refusal, *challenge)
        by_method, ids = self._table.find(path)
        if not by_method:
            raise Refused(404, "not found")
        method = "GET" if scope["method"] == "HEAD" else scope["method"]
        if method not in by_method:
            allowed = ", ".join(sorted({*by_method, *(["HEAD"] if "GET" in by_method else [])}))
            raise Refused(405, f"expected {allowed}", (b"allow", allowed.encode()))
        return by_method[method], ids

    def _health(self) -> tuple[int, bytes]:
        fields = {name: self.live.manifest[name] for name in ("kind", "users", "items", "factors")}
        return 200, msgspec.json.encode({"status": "ok", **fields})

    def _ready(self) -> tuple[int, bytes]:
        return (503, b'{"status":"stopping"}') if self.stopping else (200, b'{"status":"ok"}')

    def _metrics(self) -> tuple[int, bytes]:
        live, memory = self.live, self.live.version.gauge.read()
        gauges = {
            "recsys_memory_ceiling_bytes": ("The ceiling.", memory["ceiling_bytes"]),
            "recsys_memory_predicted_bytes": ("The predicted peak.", memory["predicted_bytes"]),
            "recsys_memory_resident_bytes": ("What the process that answers holds.", memory["resident_bytes"]),
            "recsys_connections": ("Open connections of this process.", len(self.connections)),
            "recsys_feedback_events": (
                "Events since the model was made.",
                0 if live.feedback is None else live.feedback.count,
            ),
            "recsys_model_changes": ("Changes to another version of the model.", live.changes),
        }
        return 200, self.metrics.text(gauges)


def _name(number: int) -> str:
    """The path of a route by its number."""
    return "other" if number == OTHER else ROUTES[number].path


def _read(route: Route, query: bytes, body: bytes) -> Any:
    """The question of a request.

    Raises
    ------
    Refused
        It is not of its form.
    """
    try:
        question = of_query(query, route.query)
        return question if route.body is None else of_body(body, route.body)
    except Unanswerable as error:
        raise Refused(422, str(error)) from None


def _answered(route: Route, live: Live, question: Any, ids: tuple[str, ...]) -> tuple[bytes, None]:
    """A small answer; raises as ``_begun``."""
    part, rest = _begun(route, live, question, ids)
    return (part, None) if rest is None else (part + b"".join(rest), None)


def _begun(route: Route, live: Live, question: Any, ids: tuple[str, ...]) -> tuple[bytes, Pieces | None]:
    """The first part of an answer and what is left of it, as ``_next``.

    Raises
    ------
    Refused
        The question has no answer.
    """
    assert route.answer is not None
    try:
        return _next(iter(route.answer(live, question, *ids)))
    except BadInput as error:
        raise Refused(_status(error), _public(error)) from None
    except UsageError as error:
        raise Refused(422, str(error).removeprefix("--")) from None
    except Full as error:
        raise Refused(503, str(error)) from None
    except NoRoom as error:
        raise Refused(503, f"the feedback log cannot be written: {error}") from None
    except MemoryError:
        raise Refused(503, "no memory is left for this question") from None
    except OSError as error:
        log.error("recsys serve: %s", error)
        raise Refused(503, "the model's files cannot be read") from None


def _status(error: BadInput) -> int:
    """The status that stands for an error: it is unknown what was asked for, or the model's files are damaged."""
    return {"unknown user": 404, "unknown item": 404, "no such attribute": 422}.get(error.public, 503)


def _public(error: BadInput) -> str:
    """What a client is told: what is wrong, without ids and paths."""
    return str(error).removeprefix("--") if error.public == "no such attribute" else error.public


def _next(pieces: Pieces) -> tuple[bytes, Pieces | None]:
    """The next part of an answer, of ``PIECE_BYTES`` at least, and what is left; ``None`` after the last."""
    part = bytearray()
    for piece in pieces:
        part += piece
        if len(part) >= PIECE_BYTES:
            return bytes(part), pieces
    return bytes(part), None


async def _whole(
    send: Send, status: int, body: bytes, headers: tuple[tuple[bytes, bytes], ...] = (), kind: bytes = JSON[1]
) -> None:
    """Send an answer whose length is known."""
    about = [(JSON[0], kind), (b"content-length", b"%d" % len(body)), *headers]
    await send({"type": "http.response.start", "status": status, "headers": about})
    await send({"type": "http.response.body", "body": body})


async def _body(receive: Receive) -> bytes:
    """Read a body; the connection has cut off what is longer than ``BODY_BYTES`` already."""
    body, more = b"", True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Refused(400, "the body did not arrive")
        body += message["body"]
        more = message["more_body"]
        if len(body) > BODY_BYTES:
            raise Refused(413, f"the body is larger than {BODY_BYTES:,} bytes")
    return body
