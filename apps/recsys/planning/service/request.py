"""The request of ``recsys serve``: an immutable value, checked when it is made."""

from __future__ import annotations

import argparse
import ipaddress
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from apps.recsys.planning.baselines import SERVING
from apps.recsys.planning.service.limits import EVENTS, MOST_CONNECTIONS
from common.errors import UsageError
from common.extras import require

LIBRARIES = ("msgspec", "uvicorn", "uvloop", "httptools")
"""Modules of the extra ``serve``."""


def is_loopback(host: str) -> bool:
    """True for an address of this machine that others do not reach.

    Examples
    --------
    >>> is_loopback("127.0.0.2"), is_loopback("::1"), is_loopback("0.0.0.0"), is_loopback("example.org")
    (True, True, False, False)
    """
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeRequest:
    """A server on an address.

    Attributes
    ----------
    model
        The model folder.
    threads
        Threads of the computation.
    host, port
        Where to listen; port 0 is any free one.
    connections
        Most connections at a time.
    feedback
        Log of feedback; ``None``: none is taken.
    events
        Most events since the model was made.
    sync
        True to write an event to the disk before it is answered.
    token_file
        A file with the token that requests must have; ``None``: none is asked for.
    open
        True to listen for everybody without a token.
    allowed_hosts
        Further names that requests may be sent to.
    watch
        True to change to a new version of the model when its folder changes.
    workers
        Processes that answer.
    log
        ``"text"``, or ``"json"`` with a line for each request.

    Raises
    ------
    UsageError
        A port out of range, an address that others reach without a token, or a library of the server is missing.
    """

    command: ClassVar[str] = "recsys serve"
    """Name of the command."""
    warm_up: ClassVar[str] = SERVING
    """Warm-up function of the command."""

    model: Path
    threads: int
    host: str = "127.0.0.1"
    port: int = 8000
    connections: int = MOST_CONNECTIONS
    feedback: Path | None = None
    events: int = EVENTS
    sync: bool = True
    token_file: Path | None = None
    open: bool = False
    allowed_hosts: tuple[str, ...] = ()
    watch: bool = False
    workers: int = 1
    log: str = "text"

    def __post_init__(self) -> None:
        if not 0 <= self.port < 1 << 16:
            raise UsageError(f"--port {self.port}: expected 0 to 65535")
        if not (is_loopback(self.host) or self.token_file or self.open):
            raise UsageError(
                f"--host {self.host}: everybody who reaches it could ask; give --token-file FILE, or --open if that is"
                " meant"
            )
        require("serve", *LIBRARIES, purpose=self.command)

    @classmethod
    def of(cls, args: argparse.Namespace) -> ServeRequest:
        """Read the command line."""
        return cls(
            model=args.model,
            threads=args.threads,
            host=args.host,
            port=args.port,
            connections=args.connections,
            feedback=args.feedback,
            events=args.feedback_events,
            sync=args.feedback_sync == "always",
            token_file=args.token_file,
            open=args.open,
            allowed_hosts=tuple(args.allow_host),
            watch=args.watch,
            workers=args.workers,
            log=args.log,
        )
