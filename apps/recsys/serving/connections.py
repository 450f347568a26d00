"""Bounds of the server's connections: their number, what each may hold, and the time in which a request must arrive."""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from apps.recsys.planning.requests import HEADER_BYTES, MOST_CONNECTIONS, READ_BYTES, REQUEST_SECONDS

_BUSY = (
    b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\nconnection: close\r\n"
    b'content-length: 33\r\n\r\n{"detail":"too many connections"}'
)


class BoundedProtocol(H11Protocol):
    """uvicorn's protocol with bounds: more than ``MOST_CONNECTIONS`` are answered with 503, late requests are cut off.

    Without them, some thousand clients that send nothing, or half a request, take the server above its ceiling.
    """

    def __init__(self, config: Any, *arguments: Any, **options: Any) -> None:
        config.h11_max_incomplete_event_size = HEADER_BYTES
        super().__init__(config, *arguments, **options)
        self._deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Accept a connection, or answer that there are too many."""
        if len(self.connections) >= MOST_CONNECTIONS:
            transport.write(_BUSY)
            transport.close()
            return
        super().connection_made(transport)
        transport.max_size = READ_BYTES  # type: ignore[attr-defined]
        # A response is written in two parts, of which Nagle's algorithm would hold the second back for 40 ms.
        with suppress(OSError, AttributeError):
            transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._wait()

    def data_received(self, data: bytes) -> None:
        """Take a part of a request."""
        if self.transport is None:
            return
        try:
            super().data_received(data)
        except h11.ProtocolError:  # what follows a request is none
            self.transport.close()
        if self._complete():
            self._stop_waiting()
        elif self._deadline is None:
            self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget a connection."""
        self._stop_waiting()
        if self.transport is not None:
            super().connection_lost(exc)

    def _complete(self) -> bool:
        """True while nothing more of a request is expected."""
        return self.conn.their_state in (h11.DONE, h11.MUST_CLOSE, h11.CLOSED)

    def _wait(self) -> None:
        self._deadline = self.loop.call_later(REQUEST_SECONDS, self._cut_off)

    def _stop_waiting(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _cut_off(self) -> None:
        self._deadline = None
        if not self._complete():
            self.transport.abort()
