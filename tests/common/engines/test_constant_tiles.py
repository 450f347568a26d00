"""Tiles that hold one value are computed once; every output is the engine's own."""

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.engines.base import DoubleBuffer
from common.engines.constant_tiles import KeptOutput, Step, TileOutput, constant, tile_outputs

SHAPE = (1, 3, 2, 2)


class Cubes:
    """An engine with arrays of its own, which it uses by turns."""

    in_channels, out_channels, output = 1, 2, "logits"

    def __init__(self, batch: int) -> None:
        self._results, self.tiles = DoubleBuffer((batch, 2, *SHAPE[1:])), 0

    def __call__(self, tiles: np.ndarray) -> np.ndarray:
        found = self._results.next(len(tiles))
        self.tiles += len(tiles)
        found[:, 0], found[:, 1] = tiles[:, 0] ** 3, tiles[:, 0] + 1
        return found


def steps(values: list[int], batch: int, row: int) -> Iterator[Step]:
    """Tiles by number: one that is constant for a value of 0 or more, any other below."""
    inputs, known, entries, used = DoubleBuffer((batch, *SHAPE)), None, [], 0
    array = None
    for number, value in enumerate(values):
        if array is None:
            array = inputs.next(batch)
        array[used] = value
        if value < 0:
            array[used, 0, 0] += np.arange(4).reshape(2, 2)
        again = value >= 0 and value == known
        if again and not used:
            yield Step(None, [TileOutput(number, None)])
            continue
        known = value if value >= 0 else known
        entries.append(TileOutput(number, None if again else used, keep=value >= 0))
        used += not again
        if used == batch or (number + 1) % row == 0:
            yield Step(array[:used], entries)
            array, entries, used = None, [], 0
    if used:
        yield Step(array[:used], entries)


@given(st.lists(st.integers(-2, 1), min_size=1, max_size=24), st.integers(1, 3), st.integers(1, 7))
def test_outputs_are_the_engines(values: list[int], batch: int, row: int) -> None:
    engine, again = Cubes(batch), []
    with KeptOutput(Path("/var/tmp")) as kept:
        found = []
        made = tile_outputs(engine, steps(values, batch, row), kept, ahead=batch > 1, recalled=lambda: again.append(1))
        for number, output in made:
            found.append((number, output.copy()))
            output[...] = np.nan  # as a blend overwrites it
    assert [number for number, _ in found] == list(range(len(values)))
    for value, (_, output) in zip(values, found, strict=True):
        tile = np.full(SHAPE[1:], value, np.float32)
        if value < 0:
            tile[0] += np.arange(4).reshape(2, 2)
        np.testing.assert_array_equal(output, np.stack([tile**3, tile + 1]))
    constants = [value for value in values if value >= 0]
    changes = sum(before != after for before, after in pairwise(constants))
    assert engine.tiles == len(values) - len(again) == values.count(-1) + values.count(-2) + changes + bool(constants)


def test_a_tile_is_constant_if_each_channel_is() -> None:
    tile = np.zeros((2, 17, 17, 17), np.float32)
    tile[1] = -1
    assert constant(tile) == (0.0, -1.0)
    for place in ((0, 0, 0), (3, 5, 9), (16, 16, 16)):
        other = tile.copy()
        other[(1, *place)] = 1e-6
        assert constant(other) is None


def test_a_short_file_is_an_error(tmp_path: Path) -> None:
    with KeptOutput(tmp_path) as kept, pytest.raises(OSError, match="ends early"):
        kept.read(np.zeros(3, np.float32))
