"""Open an engine by name, and measure its memory.

``open_engine`` reads a model folder: ``network.onnx`` for OpenVINO and ONNX Runtime, ``weights.safetensors`` and the
application's own network for PyTorch. The allocations of such a library cannot be computed, so ``probe`` has them
measured once in a child (``common.memory.costs.store``).
"""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from common.engines.base import Engine, Output, Tile
from common.errors import BadInput, UsageError
from common.memory.costs import cpu
from common.memory.costs.probes import DeferredProbe, NotAvailable, Probe, resolve
from common.memory.process import glibc
from common.memory.process.guard import is_out_of_memory
from common.memory.process.meter import lifetime_peak, reset_peak, resident

ENGINES = ("openvino", "onnxruntime", "torch")
LIBRARIES: Mapping[str, tuple[str, ...]] = {
    "openvino": ("openvino", "numpy"),
    "onnxruntime": ("onnxruntime", "numpy"),
    "torch": ("torch", "monai", "numpy"),
}
"""Distributions whose versions an engine's memory depends on."""

PRECISIONS: Mapping[str, tuple[str, ...]] = {
    "openvino": ("float32", "bf16", "int8"),
    "onnxruntime": ("float32",),
    "torch": ("float32",),
}
"""Precisions of each engine, if the CPU supports them (``require_precision``)."""

_RUNS = 2
"""Number of batches in a probe: the first allocates, the second is timed."""


def choose(name: str) -> str:
    """Return the engine of a name; ``auto`` is OpenVINO if it is installed, else PyTorch."""
    if name == "auto":
        return "openvino" if find_spec("openvino") else "torch"
    return name


def require_precision(engine: str, precision: str) -> None:
    """Check a precision before anything is loaded.

    int8 and float32 run on every CPU. bfloat16 has to be native: emulated it is half as fast as float32, and without
    kernels for it OpenVINO silently computes in float32.

    Raises
    ------
    UsageError
        If the engine or this CPU does not support the precision.
    """
    if precision not in PRECISIONS[engine]:
        raise UsageError(f"--precision {precision}: engine {engine} does not support it")
    if precision == "bf16" and cpu.precisions("openvino").get(precision) != "native":
        raise UsageError(f"--precision bf16: {cpu.lacks_bfloat16('openvino')}; use float32, or int8 with such a model")


def open_engine(
    model_dir: Path,
    *,
    name: str,
    precision: str,
    tile: Tile,
    batch: int,
    threads: int,
    output: Output = "logits",
    head: Mapping[str, str] | None = None,
    builder: str | None = None,
    device: str = "cpu",
    heap: bool = False,
) -> Engine:
    """Load the network of a model folder.

    Parameters
    ----------
    name
        One of ``ENGINES``.
    precision
        One of ``PRECISIONS``; always set, because OpenVINO's own default is bfloat16 on CPUs that support it. Inputs
        and outputs are float32.
    tile, batch, threads
        Fixed for the life of the engine; a call may have fewer tiles than the batch.
    output
        ``"features"`` leaves the final 1x1x1 convolution to the caller; needs ``head``.
    head
        Names of that convolution's ``weight`` and ``bias`` in ``weights.safetensors``; ``None`` if there is none.
    builder
        For PyTorch: ``"package.module:function"`` of the application, called with (model_dir, output), which returns
        the module with its weights.
    device
        PyTorch's device: ``"cpu"`` or ``"cuda:N"``.
    heap
        True to keep a tile's tensors in the heap for the next tile (``TorchEngine``).

    Raises
    ------
    ValueError
        If the name, precision or output is not available.
    UsageError
        If OpenVINO computes in another precision on this CPU.
    """
    if precision not in PRECISIONS.get(name, ()):
        allowed = ", ".join(PRECISIONS.get(name, PRECISIONS["openvino"]))
        raise ValueError(f"engine {name!r}, precision {precision!r}: choose one of {', '.join(ENGINES)}; {allowed}")
    if output == "features" and head is None:
        raise ValueError("features were asked for, but the network has no 1x1x1 head")
    if name == "openvino":
        from common.engines.openvino import OpenVinoEngine

        return OpenVinoEngine(
            model_dir, tile=tile, batch=batch, threads=threads, output=output, head=head, precision=precision
        )
    if name == "onnxruntime":
        from common.engines.onnxruntime import OnnxEngine

        return OnnxEngine(model_dir, tile=tile, batch=batch, threads=threads, output=output, head=head)
    if name == "torch" and builder is not None:
        from common.engines.pytorch import TorchEngine

        network = resolve(builder)(model_dir, output)
        return TorchEngine(network, threads=threads, output=output, device=device, heap=heap)
    raise ValueError(f"engine {name!r}: choose one of {', '.join(ENGINES)}")


def probe(*, warm_up: str, threads: int, sha256: str, **arguments: Any) -> Probe:
    """Return the probe of an engine's memory above the baseline of ``warm_up``.

    Its results are ``open_bytes`` (while loading), ``run_bytes`` (while running, without the input) and ``seconds`` for
    one batch.

    Parameters
    ----------
    warm_up
        ``"module:function"``, the command's warm-up.
    threads
        Threads of the engine.
    sha256
        Digest of the network's file.
    arguments
        Those of ``open_engine``.
    """
    return Probe.of(
        "common.engines.registry:measure",
        libraries=LIBRARIES[arguments["name"]],
        threads=threads,
        warm_up=warm_up,
        workers=threads,
        network=sha256,
        **arguments,
    )


@contextmanager
def _broken_network(model_dir: Path, engine: str) -> Iterator[None]:
    """A block in which an engine reads or runs a network.

    Raises
    ------
    BadInput
        If it cannot, for another reason than memory.
    """
    try:
        yield
    except (BadInput, UsageError, NotAvailable, DeferredProbe, TypeError, AttributeError, NameError, AssertionError):
        raise  # of ours
    except Exception as error:
        if is_out_of_memory(error):
            raise
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        message = f"{engine} cannot run this network; the model is damaged, or needs another engine ({reason[:200]})"
        raise BadInput(f"{model_dir}: {message}", public="network damaged") from None


def measure(*, warm_up: str, workers: int, network: str, model_dir: str, **arguments: Any) -> dict[str, float]:
    """Open an engine and run it on sines; runs in a probe's child, after ``warm_up``."""
    glibc.trim()
    base = resident()  # as the baseline is measured, so that baseline plus engine is the peak
    reset_peak()
    tile: Tile = tuple(arguments.pop("tile"))
    with _broken_network(Path(model_dir), str(arguments["name"])):
        engine = open_engine(Path(model_dir), tile=tile, threads=workers, **arguments)
    opened = lifetime_peak() - base
    # Sines instead of random numbers, whose library a command would not load.
    tiles = np.arange(arguments["batch"] * engine.in_channels * prod(tile), dtype=np.float32)
    tiles = np.sin(tiles, out=tiles).reshape(arguments["batch"], engine.in_channels, *tile)
    reset_peak()
    for _ in range(_RUNS):
        began = time.perf_counter()
        with _broken_network(Path(model_dir), str(arguments["name"])):
            engine(tiles)
        seconds = time.perf_counter() - began
    running = lifetime_peak() - base - tiles.nbytes
    return {"open_bytes": max(0, opened), "run_bytes": max(0, running), "seconds": seconds}
