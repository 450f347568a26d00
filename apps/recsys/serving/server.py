"""The server: its listener, its loop, and its end."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn

from apps.recsys.serving.connections import BoundedProtocol
from apps.recsys.serving.web.application import Application
from common import model_folder
from common.cli import interrupts
from common.errors import UsageError

BACKLOG = 128
"""Connections that wait to be accepted."""
WATCH_SECONDS = 2.0
"""Time between two looks at the model folder."""
STOP_SECONDS = 30
"""Time in which open requests are answered after the request to stop."""


def listen(host: str, port: int) -> socket.socket:
    """Listen on an address of IPv4 or IPv6.

    Raises
    ------
    UsageError
        The address cannot be listened on.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = found[0]
        # With its protocol named: asyncio sets TCP_NODELAY on sockets of TCP only.
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(BACKLOG)
        except OSError:
            listener.close()
            raise
    except (OSError, UnicodeError) as error:
        why = getattr(error, "strerror", None) or "not the name of a host"
        raise UsageError(f"cannot listen on {shown(host, port)}: {why}; choose another --port or --host") from None
    return listener


def shown(host: str, port: int) -> str:
    """An address as it stands in an URL.

    Examples
    --------
    >>> shown("127.0.0.1", 80), shown("::1", 80)
    ('127.0.0.1:80', '[::1]:80')
    """
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def protocol(connections: int) -> type[BoundedProtocol]:
    """The protocol with its number of connections."""
    return type("Protocol", (BoundedProtocol,), {"most": connections})


class Server(uvicorn.Server):
    """uvicorn's server, which a copy of a signal does not stop twice.

    Parameters
    ----------
    application
        What it serves.
    connections
        Most connections at a time.
    watch
        True to look at the model folder every few seconds.
    behind
        True if the folder may have another version than the one that was loaded.
    """

    def __init__(
        self, application: Application, connections: int, *, watch: bool = False, behind: bool = False
    ) -> None:
        config = uvicorn.Config(
            application,
            loop="uvloop",
            http=protocol(connections),
            ws="none",
            lifespan="off",
            interface="asgi3",
            log_config=None,
            access_log=False,
            server_header=False,
            backlog=BACKLOG,
            timeout_graceful_shutdown=STOP_SECONDS,
        )
        super().__init__(config)
        self._application, self._watches, self._behind = application, watch, behind
        self._tasks: set[asyncio.Task[None]] = set()
        # What clients send wrongly is answered, and no line of a log; the application says what else goes wrong.
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to listen, and to change the model on SIGHUP and where its folder changes."""
        await super().startup(sockets)
        self._application.connections = self.server_state.connections
        loop = asyncio.get_running_loop()
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            loop.add_signal_handler(signal.SIGHUP, self._hung_up)
        if self._behind:
            self._hung_up()
        if self._watches:
            self._tasks.add(loop.create_task(self._watch()))

    def _hung_up(self) -> None:
        task = asyncio.get_running_loop().create_task(self._application.change())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _watch(self) -> None:
        """Look at the model folder, and change the model once it has been the same twice."""
        manifest = self._application.live.directory / model_folder.MANIFEST
        before = served = _stamp(manifest)
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            now = _stamp(manifest)
            if now == before and now not in (served, None):
                served = now
                await self._application.change()
            before = now

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Stop: answer what is open, take nothing new."""
        if not interrupts.is_copy(sig):
            self._application.stopping = True
            super().handle_exit(sig, frame)

    def serve_on(self, listener: socket.socket) -> None:
        """Serve until a signal."""
        self.run(sockets=[listener])


def _stamp(path: Path) -> tuple[int, int, int] | None:
    """What changes with a file; ``None`` if there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size


def warm(application: Any) -> None:
    """Load what serving loads: the loop, the protocol, and the application once."""
    uvicorn.Config(application, loop="uvloop", http=BoundedProtocol, ws="none", interface="asgi3").load()
