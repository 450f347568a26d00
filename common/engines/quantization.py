"""Post-training quantisation to int8 for OpenVINO, by NNCF, calibrated on tiles of real images.

Convolutions compute in int8. Normalisations, which sum over a whole tile, stay in float32. The ranges of activations
are those of the tiles.
"""

import gzip
import io
import logging
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np

from common.engines.base import INT8, NETWORK, PLAIN_INT8, Array, Tile
from common.engines.openvino import import_openvino
from common.errors import BadInput, UsageError
from common.memory.costs.probes import Probe
from common.memory.process import glibc
from common.memory.process.meter import lifetime_peak, reset_peak, resident

LIBRARIES = ("nncf", "openvino", "numpy")
MEANS = ("over_groups",)
"""Endings of the names of weights that take means. The modules with such weights are normalisations, written as
separate operations."""
WHOLE = ("MVN", "ReduceMean", "ReduceL2")
"""OpenVINO's types of normalisations and of their sums."""
_PROBED_TILES = 2


@contextmanager
def _without_other_frameworks() -> Iterator[None]:
    """Make imports of what only other networks need fail: NNCF asks whether a model is PyTorch's by importing it."""
    absent = [name for name in ("torch", "onnx", "openvino_telemetry") if name not in sys.modules]
    sys.modules.update(dict.fromkeys(absent))  # type: ignore[arg-type]  # as the documentation of ``import`` says
    try:
        yield
    finally:
        for name in absent:
            sys.modules.pop(name, None)


def import_nncf() -> Any:
    """Import NNCF without PyTorch, which only PyTorch's networks need (88 MiB instead of 268), and without telemetry.

    Raises
    ------
    UsageError
        If it is not installed.
    """
    import_openvino()
    try:
        with _without_other_frameworks():
            import nncf
    except ImportError:
        raise UsageError("int8 needs the extra 'int8' (NNCF)") from None
    nncf.set_log_level(logging.ERROR)
    return nncf


def quantise(directory: Path, out: Path, tiles: Callable[[], Iterable[Array]], *, count: int, tile: Tile) -> None:
    """Write the int8 network of a model folder.

    Parameters
    ----------
    directory, out
        Folder with ``network.onnx``; folder for the files ``INT8``.
    tiles
        Called for each of several passes; yields arrays of shape (1, channels, x, y, z), float32.
    count
        Number of tiles.
    tile
        Shape of the tiles; the written network accepts others.

    Raises
    ------
    BadInput
        If no layer was quantised.
    """
    nncf, ov = import_nncf(), import_openvino()
    model = ov.Core().read_model(directory / NETWORK)
    channels = model.input(0).partial_shape[1].get_length()
    model.reshape([1, channels, *tile])
    silent = io.StringIO()  # NNCF draws a progress bar
    with redirect_stdout(silent), _without_other_frameworks():
        quantised = nncf.quantize(
            model,
            nncf.Dataset(_Tiles(tiles)),
            subset_size=count,
            preset=nncf.QuantizationPreset.MIXED,
            ignored_scope=nncf.IgnoredScope(names=_normalisations(model), types=list(WHOLE), validate=False),
        )
    _save(quantised, out, "--int8")


def quantise_weights(directory: Path, out: Path) -> None:
    """Write a network of which the weights alone are 8-bit integers; the arithmetic stays in float32.

    Parameters
    ----------
    directory, out
        As in ``quantise``.

    Raises
    ------
    BadInput
        If no layer was quantised.
    """
    nncf, ov = import_nncf(), import_openvino()
    model = ov.Core().read_model(directory / NETWORK)
    with redirect_stdout(io.StringIO()), _without_other_frameworks():
        quantised = nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT8_ASYM)
    _save(quantised, out, "--int8-weights")


def _save(quantised: Any, out: Path, option: str) -> None:
    """Write a quantised network, if there is something quantised in it."""
    operations = quantised.get_ops()
    kinds = {one.get_element_type().get_type_name() for one in operations if one.get_type_name() == "Constant"}
    if not kinds & {"i8", "u8"} and not any(one.get_type_name() == "FakeQuantize" for one in operations):
        raise BadInput(f"{option}: no layer was quantised; there is no convolution for it", public="not quantised")
    ov = import_openvino()
    ov.save_model(quantised, out / PLAIN_INT8[0], compress_to_fp16=False)
    graph = out / PLAIN_INT8[0]
    with gzip.GzipFile(out / INT8[0], "wb", mtime=0) as stream:
        stream.write(graph.read_bytes())
    graph.unlink()


def _normalisations(model: Any) -> list[str]:
    """Return the names of layers that stay in float32: all of a module in which a convolution takes means."""
    operations = model.get_ordered_ops()
    modules = {
        operation.get_friendly_name().rpartition("/")[0]
        for operation in operations
        if operation.get_type_name() == "Convolution"
        and operation.input_value(1).get_node().get_friendly_name().endswith(MEANS)
    }
    names = (operation.get_friendly_name() for operation in operations)
    return [name for name in names if name.rpartition("/")[0] in modules]


class _Tiles:
    """An iterable over tiles that can be repeated."""

    def __init__(self, tiles: Callable[[], Iterable[Array]]) -> None:
        self._tiles = tiles

    def __iter__(self) -> Any:
        return iter(self._tiles())


def probe(*, warm_up: str, threads: int, sha256: str, model_dir: str, tile: Tile, weights_only: bool) -> Probe:
    """Return the probe of a quantisation's memory above the baseline of ``warm_up``; its result is ``bytes``."""
    arguments = {"network": sha256, "model_dir": model_dir, "tile": tile, "weights_only": weights_only}
    return Probe.of(
        "common.engines.quantization:measure", libraries=LIBRARIES, threads=threads, warm_up=warm_up, **arguments
    )


def measure(*, warm_up: str, network: str, model_dir: str, tile: list[int], weights_only: bool) -> dict[str, float]:
    """Quantise with noise; runs in a probe's child, after ``warm_up``."""
    import tempfile

    glibc.trim()
    base = resident()
    reset_peak()
    if weights_only:
        with tempfile.TemporaryDirectory() as folder:
            quantise_weights(Path(model_dir), Path(folder))
        return {"bytes": max(0, lifetime_peak() - base)}
    x, y, z = tile
    model = import_openvino().Core().read_model(Path(model_dir) / NETWORK)
    channels = model.input(0).partial_shape[1].get_length()
    noise = np.random.default_rng(0).standard_normal((_PROBED_TILES, 1, channels, x, y, z)).astype(np.float32)
    with tempfile.TemporaryDirectory() as folder:
        quantise(Path(model_dir), Path(folder), lambda: noise, count=_PROBED_TILES, tile=(x, y, z))
    return {"bytes": max(0, lifetime_peak() - base)}
