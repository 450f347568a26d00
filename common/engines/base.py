"""What every engine is and shares: its protocol, the arrays it reads and writes, and the files of a model folder."""

from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]
Output = Literal["features", "logits"]
Tile = tuple[int, int, int]

NETWORK = "network.onnx"
WEIGHTS = "weights.safetensors"
INT8 = ("network-int8.xml", "network-int8.bin")
"""OpenVINO's own format; there where a model was quantised (``common.engines.quantization``)."""


class Engine(Protocol):
    """A network made ready for tiles of one shape."""

    in_channels: int
    out_channels: int
    output: Output

    def __call__(self, tiles: Array) -> Array:
        """(n, in_channels, *tile) -> (n, out_channels, *tile), n at most the batch.

        The answer is valid until the next call; of an engine for batches, until the one after that.
        """
        ...


class DoubleBuffer:
    """Zeroed arrays for what goes in or out of an engine: one for single tiles, two for batches, computed ahead."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self._arrays = [np.zeros(shape, np.float32) for _ in range(buffer_count(shape[0]))]

    def next(self, count: int) -> Array:
        """The first ``count`` rows of the array whose turn it is."""
        self._arrays.reverse()
        return self._arrays[0][:count]


def buffer_count(batch: int) -> int:
    """How many arrays ``DoubleBuffer`` has for a batch."""
    return min(batch, 2)


def prefetch(engine: Engine, batches: Iterable[Array], *, ahead: bool) -> Iterator[Array]:
    """The engine's answer to each batch; ``ahead``: the next one is computed meanwhile, by a thread beside this one.

    Parameters
    ----------
    batches
        Ahead, a batch is asked for before the answer to the one before it is given, and must stay as it is until then.
    """
    if not ahead:
        yield from map(engine, batches)
        return
    with ThreadPoolExecutor(1) as worker:
        running: Future[Array] | None = None
        for tiles in batches:
            done = running.result() if running is not None else None
            running = worker.submit(engine, tiles)
            if done is not None:
                yield done
        if running is not None:
            yield running.result()


def read_head(model_dir: Path, head: Mapping[str, str]) -> tuple[Array, Array]:
    """Weight (classes, features) and bias (classes) of the final 1x1x1 convolution."""
    from safetensors import safe_open

    with safe_open(model_dir / WEIGHTS, framework="np") as tensors:
        weight, bias = (np.asarray(tensors.get_tensor(head[key]), np.float32) for key in ("weight", "bias"))
    return np.ascontiguousarray(weight.reshape(weight.shape[0], -1)), bias
