"""Connections to other ranks that are given up when the other machine is silent.

The kernel closes the connections of a process that ends, so a rank that dies is noticed at once. A machine that dies,
or a cable that is cut, closes nothing: the kernel at this end then gives a connection up. It is the other kernel that
answers, so a rank may compute, write or validate for as long as it likes.
"""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress

SILENT_SECONDS = 20
"""For how long another machine may answer nothing before its ranks are taken for lost."""
_IDLE, _PROBES = 5, 3


@contextmanager
def watched_connections() -> Iterator[None]:
    """A block whose new connections, as far as they are still open at its end, are given up when they are silent."""
    before = set(_sockets())
    yield
    for descriptor in set(_sockets()) - before:
        with suppress(OSError), socket.socket(fileno=os.dup(descriptor)) as connection:
            if connection.type == socket.SOCK_STREAM and connection.family in (socket.AF_INET, socket.AF_INET6):
                _watch(connection)


def _watch(connection: socket.socket) -> None:
    """Ask a silent machine ``_PROBES`` times whether it is there, and give up what it does not acknowledge."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _IDLE)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, (SILENT_SECONDS - _IDLE) // _PROBES)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, _PROBES)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 1000 * SILENT_SECONDS)


def _sockets() -> Iterator[int]:
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            if os.readlink(f"/proc/self/fd/{name}").startswith("socket:"):
                yield int(name)
