"""A parser of a command's arguments that takes files before, between and after options."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def _path(text: str) -> Path:
    """A path; ``Path("")`` would be the working directory, which nobody means who gives an unset variable.

    Raises
    ------
    argparse.ArgumentTypeError
        The text is empty.
    """
    if not text:
        raise argparse.ArgumentTypeError("an empty path; for the working directory give .")
    return Path(text)


class IntermixedParser(argparse.ArgumentParser):
    """Parser of one command, without commands of its own.

    ``argparse`` gives all files at once to the positional arguments, those that may be absent included: of
    ``update MODEL -o OUT NEW`` it takes ``MODEL`` for both and then does not know ``NEW``.

    Examples
    --------
    >>> parser = IntermixedParser()
    >>> _ = parser.add_argument("model"), parser.add_argument("new", nargs="*"), parser.add_argument("-o")
    >>> parser.parse_args(["m", "-o", "out", "a", "b"])
    Namespace(model='m', new=['a', 'b'], o='out')
    """

    _inside = False

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self.register("type", Path, _path)

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        """Parse options first and what is left as positional arguments; otherwise as ``ArgumentParser``."""
        if self._inside or self._subparsers is not None:
            return super().parse_known_args(args, namespace)
        self._inside = True  # the two passes come back here
        try:
            return self.parse_known_intermixed_args(args, namespace)
        finally:
            self._inside = False
