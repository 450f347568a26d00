"""One inference interface over the libraries that run a network.

``open_engine`` reads a model folder: ``network.onnx`` for OpenVINO, ``weights.safetensors`` and the application's own
network for PyTorch. What such a library allocates cannot be computed from outside, so ``probe`` asks for it to be
measured once, in a child (``common.memory.costs.store``).
"""

import time
from collections.abc import Mapping
from importlib.util import find_spec
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from common.engines.base import Engine, Output, Tile
from common.errors import UsageError
from common.memory.costs import cpu
from common.memory.costs.probes import Probe, resolve
from common.memory.process import glibc
from common.memory.process.meter import lifetime_peak, reset_peak, resident

ENGINES = ("openvino", "onnxruntime", "torch")
LIBRARIES: Mapping[str, tuple[str, ...]] = {
    "openvino": ("openvino", "numpy"),
    "onnxruntime": ("onnxruntime", "numpy"),
    "torch": ("torch", "monai", "numpy"),
}
"""Distributions whose versions an engine's cost depends on."""

PRECISIONS: Mapping[str, tuple[str, ...]] = {
    "openvino": ("float32", "bf16", "int8"),
    "onnxruntime": ("float32",),
    "torch": ("float32",),
}
"""In what each engine computes, where the CPU does (``require_precision``)."""

_RUNS = 2
"""Tiles per probe: the first run allocates, the second is timed."""


def choose(name: str) -> str:
    """The engine that ``auto`` stands for here: OpenVINO where it is installed, else PyTorch."""
    if name == "auto":
        return "openvino" if find_spec("openvino") else "torch"
    return name


def require_precision(engine: str, precision: str) -> None:
    """Refuse a precision before anything is loaded for it.

    int8 and float32 run on every CPU. bfloat16 has to be native: emulated it is half as fast as float32, and where
    there are no kernels OpenVINO computes in float32 without a word.

    Raises
    ------
    UsageError
        The engine, or this CPU, does not compute in ``precision``.
    """
    if precision not in PRECISIONS[engine]:
        raise UsageError(f"--precision {precision}: not with the engine {engine}")
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
        One of ``PRECISIONS``; always set explicitly, because OpenVINO's own default is bfloat16 where the CPU has it.
        What is given and returned stays float32.
    tile, batch, threads
        Fixed for the life of the engine; fewer tiles than a batch may be given.
    output
        ``"features"`` leaves the final 1x1x1 convolution to the caller; needs ``head``.
    head
        Names of that convolution's ``weight`` and ``bias`` in ``weights.safetensors``, where there is one.
    builder
        For PyTorch: ``"package.module:function"`` of the application, called with (model_dir, output), which returns
        the module with its weights.

    device
        Where PyTorch computes: ``"cpu"`` or ``"cuda:N"``.
    heap
        Whether PyTorch keeps a tile's memory for the next one.

    Raises
    ------
    ValueError
        For a name, precision or output that is not available.
    UsageError
        OpenVINO computes in another precision than ``precision`` on this CPU.
    """
    if precision not in PRECISIONS.get(name, ()):
        known = ", ".join(PRECISIONS.get(name, PRECISIONS["openvino"]))
        raise ValueError(f"engine {name!r}, precision {precision!r}: choose one of {', '.join(ENGINES)}; {known}")
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
    """What an engine needs above the baseline of ``warm_up``; ``arguments`` are those of ``open_engine``.

    The answer has ``open_bytes`` (while loading), ``run_bytes`` (while running, without the input) and ``seconds``
    for one batch.
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


def measure(*, warm_up: str, workers: int, network: str, model_dir: str, **arguments: Any) -> dict[str, float]:
    """Open an engine and run it on noise; called in a probe's child, which has run ``warm_up``."""
    glibc.trim()
    base = resident()  # as the baseline is measured, so that baseline + engine is this process's peak
    reset_peak()
    tile: Tile = tuple(arguments.pop("tile"))
    engine = open_engine(Path(model_dir), tile=tile, threads=workers, **arguments)
    opened = lifetime_peak() - base
    # No random numbers: their library is not loaded where an engine is used.
    tiles = np.arange(arguments["batch"] * engine.in_channels * prod(tile), dtype=np.float32)
    tiles = np.sin(tiles, out=tiles).reshape(arguments["batch"], engine.in_channels, *tile)
    reset_peak()
    for _ in range(_RUNS):
        began = time.perf_counter()
        engine(tiles)
        seconds = time.perf_counter() - began
    running = lifetime_peak() - base - tiles.nbytes
    return {"open_bytes": max(0, opened), "run_bytes": max(0, running), "seconds": seconds}
