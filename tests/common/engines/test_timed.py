"""An engine that says how long its network took."""

import time

import numpy as np

from common.engines.timed import TimedEngine


class Slow:
    """Doubles after a tenth of a second."""

    in_channels, out_channels, output, each_alone = 1, 3, "logits", True

    def __call__(self, tiles: np.ndarray) -> np.ndarray:
        time.sleep(0.1)
        return 2 * tiles


def test_it_gives_what_the_engine_gives_and_its_seconds() -> None:
    seconds: list[float] = []
    engine = TimedEngine(Slow(), seconds.append)
    assert (engine.in_channels, engine.out_channels, engine.output, engine.each_alone) == (1, 3, "logits", True)
    for _ in range(2):
        np.testing.assert_array_equal(engine(np.ones((1, 1, 2, 2, 2), np.float32)), 2)
    assert len(seconds) == 2 and all(0.1 <= each < 1 for each in seconds)
