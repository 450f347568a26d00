"""An engine that says how long its network took."""

import time
from collections.abc import Callable

from common.engines.base import Array, Engine


class TimedEngine:
    """Another engine, with the time of each call.

    Parameters
    ----------
    engine
        Runs the tiles.
    spent
        Called with the seconds of each call, in the thread of the call.
    """

    def __init__(self, engine: Engine, spent: Callable[[float], object]) -> None:
        self._engine, self._spent = engine, spent
        self.in_channels, self.out_channels, self.output = engine.in_channels, engine.out_channels, engine.output
        self.each_alone = engine.each_alone

    def __call__(self, tiles: Array) -> Array:
        """Run the engine (see ``Engine``)."""
        began = time.monotonic()
        values = self._engine(tiles)
        self._spent(time.monotonic() - began)
        return values
