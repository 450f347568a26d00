"""Run an engine over tiles, and only once over those that hold a single value: air that was clipped, or padding.

The same input gives the same output, to the bit, wherever it lies. So the output of the last such tile is kept in a
scratch file and read for each later one that is equal, into the array of the output in front of it, which has been used
by then: this takes no memory, only disk.
"""

import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common.engines.base import Array, Engine
from common.files import read_at, write_at

SAMPLE = 8
"""Every eighth voxel along each axis is compared first, which is enough for nearly all tiles that are not constant."""


@dataclass(frozen=True, slots=True)
class TileOutput:
    """The place of a tile's output."""

    number: int
    """Of the tile."""
    slot: int | None
    """Row of the engine's output; ``None``: the kept output."""
    keep: bool = False
    """True if this output is kept."""


@dataclass(frozen=True, slots=True)
class Step:
    """Tiles that follow each other."""

    tiles: Array | None
    """(n, channels, x, y, z), input of the engine; ``None``: all outputs are the kept one."""
    outputs: Sequence[TileOutput]


def constant(tile: Array) -> tuple[float, ...] | None:
    """The value of each channel of a tile (channels, x, y, z); ``None`` if a channel has several.

    Examples
    --------
    >>> constant(np.zeros((1, 4, 4, 4), np.float32)), constant(np.arange(8, dtype=np.float32).reshape(1, 2, 2, 2))
    ((0.0,), None)
    """
    for channel in tile:
        sample = channel[::SAMPLE, ::SAMPLE, ::SAMPLE]
        if sample.min() != sample.max() or channel.min() != channel.max():
            return None
    return tuple(float(channel[0, 0, 0]) for channel in tile)


class KeptOutput(AbstractContextManager["KeptOutput"]):
    """One output on disk, in a file without a name.

    Parameters
    ----------
    directory
        A directory on a disk, not on a memory file system.
    """

    def __init__(self, directory: Path) -> None:
        self._file = tempfile.TemporaryFile(dir=directory, buffering=0)  # noqa: SIM115

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def write(self, values: Array) -> None:
        """Keep an output in the place of the last one."""
        write_at(self._file.fileno(), np.ascontiguousarray(values).reshape(-1).view(np.uint8).data, 0)

    def read(self, out: Array) -> None:
        """Fill a C-contiguous array with the kept output.

        Raises
        ------
        OSError
            The file is shorter than it should be.
        """
        read_at(self._file.fileno(), out.reshape(-1).view(np.uint8).data, 0)


def tile_outputs(
    engine: Engine,
    steps: Iterable[Step],
    kept: KeptOutput | None,
    *,
    ahead: bool,
    recalled: Callable[[], object] = lambda: None,
) -> Iterator[tuple[int, Array]]:
    """Yield each tile's number and output (channels, x, y, z), which may be overwritten until the next is asked for.

    Parameters
    ----------
    steps
        The first tile of each value has a row of its own, and is kept.
    kept
        ``None`` if no step takes the kept output.
    ahead
        True to compute the next step in a second thread while the caller uses the present one, as ``prefetch`` does: an
        input must not change until its outputs are yielded.
    recalled
        Called for each output that is read instead of computed.
    """
    values: Array | None = None
    last = 0

    def used(entries: Sequence[TileOutput]) -> Iterator[tuple[int, Array]]:
        nonlocal last
        assert values is not None
        for entry in entries:
            if entry.slot is None:
                assert kept is not None
                kept.read(values[last])
                recalled()
            else:
                last = entry.slot
                if entry.keep and kept is not None:
                    kept.write(values[last])
            yield entry.number, values[last]

    if not ahead:
        for step in steps:
            if step.tiles is not None:
                values = None  # before the engine makes the next ones: not every engine has an array for them
                values = engine(step.tiles)
            yield from used(step.outputs)
        return
    waiting: list[TileOutput] = []
    with ThreadPoolExecutor(1) as worker:
        running: Future[Array] | None = None
        for step in steps:
            if step.tiles is None:
                waiting.extend(step.outputs)
                continue
            entries, waiting = waiting, list(step.outputs)
            values = running.result() if running is not None else None
            running = worker.submit(engine, step.tiles)
            if values is not None:
                yield from used(entries)
        if running is not None:
            values = running.result()
            yield from used(waiting)
