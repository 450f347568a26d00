"""Bounds of the server's connections: their number, what each may hold, and the time in which a request must arrive."""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from apps.recsys.planning.service.limits import (
    BODY_BYTES,
    HEADER_BYTES,
    MOST_CONNECTIONS,
    MOST_PIPELINED,
    PIECE_BYTES,
    REQUEST_SECONDS,
)

GONE = "peakline.gone"
"""Extension of a request's scope: a function that tells whether its client has gone."""
_READ = frozenset((b"authorization", b"connection", b"content-length", b"expect", b"host", b"origin", b"upgrade"))
"""Headers that the protocol or the application reads."""


class BoundedProtocol(HttpToolsProtocol):
    """uvicorn's protocol with bounds: too many connections are answered with 503, late and long requests are cut off.

    Without them, some thousand clients that send nothing, or half a request, take the server above its ceiling.
    """

    most = MOST_CONNECTIONS
    """Most connections at a time."""

    def __init__(self, config: Any, *arguments: Any, **options: Any) -> None:
        super().__init__(config, *arguments, **options)
        self._deadline: asyncio.TimerHandle | None = None
        self._stalled: asyncio.TimerHandle | None = None
        self._waiting = True
        """True while the rest of a request is expected."""
        self._header = 0
        """Bytes so far of a request's header."""
        self._refused = False
        self._answering: Any = None
        """The request that is being answered."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Accept a connection, or answer that there are too many."""
        if len(self.connections) >= self.most:
            self.transport = transport
            self._refuse(b"503 Service Unavailable", b"too many connections")
            self.transport = None  # type: ignore[assignment]
            return
        super().connection_made(transport)
        transport.set_write_buffer_limits(PIECE_BYTES)
        # A response is written in two parts, of which Nagle's algorithm would hold the second back for 40 ms.
        with suppress(OSError, AttributeError):
            transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._wait()

    def data_received(self, data: bytes) -> None:
        """Take a part of a request."""
        if self.transport is None or self._refused:
            return
        self._unset_keepalive_if_required()
        if self._deadline is None:
            self._wait()
        try:
            # A single reading may be larger than a header may be; the parser keeps what it has not understood.
            for start in range(0, len(data), PIECE_BYTES):
                if self._refused or self.parser is None:
                    return
                self.parser.feed_data(memoryview(data)[start : start + PIECE_BYTES])
                self._header += len(data[start : start + PIECE_BYTES]) if self._header >= 0 else 0
                if self._header > HEADER_BYTES:
                    self._refuse(b"431 Request Header Fields Too Large", b"the header is too large")
        except httptools.HttpParserUpgrade:  # no other protocol is spoken here
            self._refuse(b"400 Bad Request", b"no upgrade")
        except httptools.HttpParserError:
            if not self._refused:
                self._refuse(b"400 Bad Request", b"not HTTP")
        if not self._waiting:
            self._stop_waiting()

    def on_message_begin(self) -> None:
        """Begin a request."""
        if len(self.pipeline) >= MOST_PIPELINED:
            self._refuse(b"429 Too Many Requests", b"too many requests ahead of their answers")
        self._go_on()
        self._waiting, self._header = True, 0
        super().on_message_begin()
        self.scope["extensions"] = {GONE: self._gone}  # type: ignore[dict-item]

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep a header that somebody reads: four thousand short ones would take ten times their bytes."""
        if name.lower() in _READ:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Begin to answer a request whose body is not too long."""
        self._header = -1
        for name, value in self.headers:
            if name == b"content-length" and int(value) > BODY_BYTES:
                self._refuse(b"413 Content Too Large", b"the body is too large")
        self._go_on()
        try:
            super().on_headers_complete()
        except httptools.HttpParserInvalidURLError:
            self._refuse(b"400 Bad Request", b"not an address")
            self._go_on()

    def on_body(self, body: bytes) -> None:
        """Take a part of a body."""
        if not self.cycle.response_complete and len(self.cycle.body) + len(body) > BODY_BYTES:
            self._refuse(b"413 Content Too Large", b"the body is too large")
        self._go_on()
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Note that a request has arrived."""
        self._waiting, self._header = False, 0
        super().on_message_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget a connection."""
        self._stop_waiting()
        self.resume_writing()
        self._forget()
        if self.transport is not None:
            super().connection_lost(exc)

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        self._answering = cycle
        super()._start_asgi_task(cycle, app)

    def _forget(self) -> None:
        """Let nothing more be written: uvicorn tells the last request of a connection only that its client has gone."""
        self.pipeline.clear()
        if self._answering is not None:
            self._answering.disconnected = True

    def _abort(self) -> None:
        """Break off the connection."""
        self._forget()
        self.transport.abort()

    def pause_writing(self) -> None:
        """Wait for the client to take what was sent, for some time."""
        super().pause_writing()
        self._stalled = self._stalled or self.loop.call_later(REQUEST_SECONDS, self._abort)

    def resume_writing(self) -> None:
        """Go on writing."""
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None
        if self.flow is not None:
            super().resume_writing()

    def _gone(self) -> bool:
        """True once the client has gone."""
        return self.parser is None or self.transport.is_closing()

    def _go_on(self) -> None:
        """Raise in the parser once the request was refused."""
        if self._refused:
            raise RuntimeError("refused")

    def _refuse(self, status: bytes, detail: bytes) -> None:
        """Answer a request that is not read to its end, and close the connection."""
        self._refused = True
        body = b'{"detail":"%s"}' % detail
        head = b"HTTP/1.1 %s\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length: %d\r\n\r\n"
        busy = self.cycle is not None and self.cycle.response_started and not self.cycle.response_complete
        if not busy:  # otherwise this would stand within another answer
            self.transport.write(head % (status, len(body)) + body)
        self.transport.close()

    def _wait(self) -> None:
        self._deadline = self.loop.call_later(REQUEST_SECONDS, self._cut_off)

    def _stop_waiting(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _cut_off(self) -> None:
        self._deadline = None
        if self._waiting and self.transport is not None:
            self._abort()
