"""Lines that the server writes: text for a terminal, or JSON for a collector. Neither has ids of users or items."""

from __future__ import annotations

import json
import time
from collections.abc import Callable


class Lines:
    """Writes lines.

    Parameters
    ----------
    say
        Writes a line of text.
    as_json
        True for JSON, with a line for each request; False for text about the server alone.
    """

    def __init__(self, say: Callable[[str], None], *, as_json: bool = False) -> None:
        self._say, self.as_json = say, as_json

    def event(self, event: str, message: str) -> None:
        """Write that something happened to the server."""
        self._say(self._json(event, message=message) if self.as_json else message)

    def request(self, method: str, route: str, status: int, seconds: float) -> None:
        """Write that a request was answered: its route, not its address, which may name a user."""
        if self.as_json:
            self._say(self._json("request", method=method, route=route, status=status, ms=round(seconds * 1e3, 3)))

    def _json(self, event: str, **fields: str | float) -> str:
        return json.dumps({"time": round(time.time(), 3), "event": event, **fields}, ensure_ascii=True)
