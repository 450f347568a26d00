"""OpenVINO on the CPU, the default engine, without PyTorch."""

import gzip
import sys
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from common.engines.base import INT8, NETWORK, PLAIN_INT8, Array, DoubleBuffer, Output, Tile, read_head
from common.engines.openvino_graph import normalise_in_steps, split_concatenations
from common.errors import BadInput, UsageError
from common.memory.process import glibc

LONGEST_GRAPH = 32 << 20
"""Bytes of a graph in XML; one of 60 convolutions has half a megabyte."""


def import_openvino() -> Any:
    """Import OpenVINO without its model converter; call it before every use of OpenVINO.

    The converter needs memory, and when imported it sends usage statistics over the network from a thread that forks,
    which can deadlock with OpenBLAS.
    """
    converter = "openvino.tools.ovc"
    if converter not in sys.modules:
        sys.modules[converter] = None  # type: ignore[assignment]  # makes the import fail, as the documentation of ``import`` says
    import openvino

    return openvino


class OpenVinoEngine:
    """``network.onnx``, or the network in int8, compiled for one static shape.

    Each tile of a batch runs in a stream of its own with its share of the threads. This is a tenth faster than one
    stream, whose threads wait for each other at every layer, and needs the activations of one more tile.
    """

    def __init__(
        self,
        model_dir: Path,
        *,
        tile: Tile,
        batch: int,
        threads: int,
        output: Output,
        head: Mapping[str, str] | None,
        precision: str = "float32",
    ) -> None:
        self._ov = import_openvino()
        core = self._ov.Core()
        model = read_int8(core, model_dir) if precision == "int8" else core.read_model(model_dir / NETWORK)
        stored: Output = "features" if "features" in model.output(0).names else "logits"
        if stored == "logits" and output == "features":
            raise ValueError(f"{NETWORK} has no features")
        if stored == "features" and output == "logits":
            assert head is not None
            model = _with_head(model, *read_head(model_dir, head))
        split_concatenations(model)
        channels = model.input(0).partial_shape[1].get_length()
        model.reshape([1, channels, *tile])
        if precision == "float32":  # sums in bfloat16 would be less exact; int8 is quantised with the layer as it was
            normalise_in_steps(model)
        settings: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32",
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": batch,
            "ENABLE_CPU_PINNING": False,  # pinned threads of two runs on one machine would share a core
        }
        compiled = core.compile_model(model, "CPU", settings)
        _check_precision(precision, compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name())
        self.in_channels = int(channels)
        self.out_channels = int(compiled.output(0).shape[1])
        self.output: Output = output
        self.each_alone = True
        self._requests = [compiled.create_infer_request() for _ in range(batch)]
        self._results = DoubleBuffer((batch, self.out_channels, *tile))
        glibc.trim()  # 4 MiB that the compiler freed would count twice: here, and where they are used again

    def __call__(self, tiles: Array) -> Array:
        """Run up to one batch (see ``Engine``)."""
        results = self._results.next(len(tiles))
        running = list(zip(self._requests, tiles, results, strict=False))
        for request, tile, result in running:
            request.set_input_tensor(self._ov.Tensor(tile[None], shared_memory=True))
            request.set_output_tensor(self._ov.Tensor(result[None], shared_memory=True))
            request.start_async()
        for request, _, _ in running:
            request.wait()
        return results


def read_int8(core: Any, model_dir: Path) -> Any:
    """Read the quantised network.

    Raises
    ------
    BadInput
        If its graph is not compressed text, or longer than ``LONGEST_GRAPH``.
    """
    graph, weights = (model_dir / name for name in INT8)
    if not graph.is_file():
        return core.read_model(model_dir / PLAIN_INT8[0])
    try:
        with gzip.open(graph) as stream:
            text = stream.read(LONGEST_GRAPH + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise BadInput(f"{graph}: damaged ({error})", public="network damaged") from None
    if len(text) > LONGEST_GRAPH:
        raise BadInput(f"{graph}: a graph of more than {LONGEST_GRAPH:,} bytes", public="network damaged")
    return core.read_model(text, import_openvino().Tensor(np.fromfile(weights, np.uint8)))


def _check_precision(asked: str, effective: str) -> None:
    """Raise ``UsageError`` if OpenVINO compiled the network for another precision than bfloat16 was asked for."""
    if asked == "bf16" and effective != "bf16":
        raise UsageError(f"--precision bf16: OpenVINO computes in {effective} on this CPU; use --precision float32")


def _with_head(model: Any, weight: Array, bias: Array) -> Any:
    """Append the final 1x1x1 convolution to a model, so that it is fused and features need no second buffer."""
    ov = import_openvino()
    from openvino import opset13 as ops

    kernel = ops.constant(weight[:, :, None, None, None])
    ones, none = [1, 1, 1], [0, 0, 0]
    logits = ops.convolution(model.output(0).get_node().input_value(0), kernel, ones, none, none, ones)
    shifted = ops.add(logits, ops.constant(np.ascontiguousarray(bias[None, :, None, None, None])))
    return ov.Model([shifted], model.get_parameters())
