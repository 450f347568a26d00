"""Who may ask: a token, the names of this host, and pages of this host only."""

from __future__ import annotations

import hmac
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from common.errors import BadInput

LOOPBACK = frozenset(("localhost", "127.0.0.1", "::1"))
"""Names of this host that nobody else's page can have: a name that leads here from elsewhere is not among them."""
LEAST_TOKEN, MOST_TOKEN = 16, 1000
"""Letters of a token."""


def read_token(path: Path) -> bytes:
    """Read a token from a file, without the white space around it.

    Raises
    ------
    BadInput
        The file cannot be read, or holds none.
    """
    try:
        with path.open("rb") as stream:
            token = stream.read(2 * MOST_TOKEN).strip()
    except OSError as error:
        raise BadInput(f"--token-file {path}: {error.strerror}", public="no token") from None
    if not LEAST_TOKEN <= len(token) <= MOST_TOKEN or not all(33 <= letter < 127 for letter in token):
        raise BadInput(
            f"--token-file {path}: expected {LEAST_TOKEN} to {MOST_TOKEN:,} letters and digits in one line, such as"
            " openssl rand -hex 24 makes",
            public="no token",
        )
    return token


def host_of(header: bytes) -> str:
    """The host of a ``Host`` header or of an ``Origin``, without its port.

    Examples
    --------
    >>> host_of(b"Example.org:80"), host_of(b"[::1]:8000"), host_of(b"http://localhost:8000")
    ('example.org', '::1', 'localhost')
    """
    text = header.decode("latin-1").lower().rpartition("//")[2]
    if text.startswith("["):
        return text[1:].partition("]")[0]
    return text.partition(":")[0]


@dataclass(frozen=True, slots=True)
class Access:
    """What a request must have.

    Attributes
    ----------
    token
        Sent as ``Authorization: Bearer TOKEN``; ``None``: not asked for.
    hosts
        Names that requests may be sent to; ``None``: any.
    """

    token: bytes | None = None
    hosts: frozenset[str] | None = None

    def refusal(self, headers: Sequence[tuple[bytes, bytes]], *, public: bool) -> tuple[int, str] | None:
        """Status and reason of a refusal; ``None`` if the request may be answered.

        Parameters
        ----------
        headers
            Names in small letters, and values.
        public
            True for what is answered without a token.
        """
        host = origin = given = None
        for name, value in headers:
            if name == b"host":
                host = host_of(value)
            elif name == b"origin":
                origin = host_of(value)
            elif name == b"authorization":
                given = value
        # A name of somebody else's that leads to this host (DNS rebinding), and a form on somebody else's page.
        if self.hosts is not None and host is not None and host not in self.hosts:
            return 421, "this server has another name (--allow-host)"
        if origin is not None and origin != host:
            return 403, "a page of another host asks"
        if self.token is not None and not public:
            kind, _, token = (given or b"").partition(b" ")
            if kind.lower() != b"bearer" or not hmac.compare_digest(token.strip(), self.token):
                return 401, "expected Authorization: Bearer TOKEN"
        return None


def hosts_for(host: str, others: Iterable[str]) -> frozenset[str]:
    """Names of a server that listens on ``host``, with ``others``."""
    return LOOPBACK | {host.lower(), *(other.lower() for other in others)}
