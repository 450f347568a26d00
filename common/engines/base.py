"""The interface of an engine, its input and output buffers, and the names of its files."""

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
INT8 = ("network-int8.xml.gz", "network-int8.bin")
"""Files of a quantised network in OpenVINO's format (``common.engines.quantization``): its graph, which is 15 to 20
times as long when it is not compressed, and its weights."""
PLAIN_INT8 = ("network-int8.xml", INT8[1])
"""The same as version 0.1 wrote them."""


class Engine(Protocol):
    """A network that is loaded for tiles of one shape."""

    in_channels: int
    out_channels: int
    output: Output
    each_alone: bool
    """True if a tile's output does not depend on the other tiles of its batch, to the bit."""

    def __call__(self, tiles: Array) -> Array:
        """Run the network.

        Parameters
        ----------
        tiles
            Shape (n, in_channels, x, y, z), float32; n is at most the batch.

        Returns
        -------
        ndarray
            Shape (n, out_channels, x, y, z), float32; valid until the next call, and with a batch of more than one
            until the call after that.
        """
        ...


class DoubleBuffer:
    """Arrays for the input or output of an engine, used in turn: two for batches, one for single tiles.

    Parameters
    ----------
    shape
        (batch, channels, x, y, z).
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        self._arrays = [np.zeros(shape, np.float32) for _ in range(buffer_count(shape[0]))]

    def next(self, count: int) -> Array:
        """Return the first ``count`` rows of the next array."""
        self._arrays.reverse()
        return self._arrays[0][:count]


def buffer_count(batch: int) -> int:
    """Return the number of arrays of a ``DoubleBuffer``."""
    return min(batch, 2)


def prefetch(engine: Engine, batches: Iterable[Array], *, ahead: bool) -> Iterator[Array]:
    """Yield the engine's output for each batch.

    Parameters
    ----------
    engine
        Runs the batches.
    batches
        Inputs. With ``ahead``, the next batch is requested before the output of the present one is yielded, and an
        input must not change until its output is.
    ahead
        True to compute the next output in a second thread while the caller uses the present one.
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
    """Read the final 1x1x1 convolution.

    Parameters
    ----------
    model_dir
        Folder with ``weights.safetensors``.
    head
        Names of its ``weight`` and ``bias`` in that file.

    Returns
    -------
    weight, bias
        Shapes (classes, features) and (classes,), float32.
    """
    from safetensors import safe_open

    with safe_open(model_dir / WEIGHTS, framework="np") as tensors:
        weight, bias = (np.asarray(tensors.get_tensor(head[key]), np.float32) for key in ("weight", "bias"))
    return np.ascontiguousarray(weight.reshape(weight.shape[0], -1)), bias
