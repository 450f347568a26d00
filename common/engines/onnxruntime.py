"""ONNX Runtime on the CPU, without PyTorch."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from common.engines.base import NETWORK, Array, DoubleBuffer, Output, Tile, read_head


class OnnxEngine:
    """Run ``network.onnx`` for one shape; if the file gives features, NumPy applies the head."""

    def __init__(
        self,
        model_dir: Path,
        *,
        tile: Tile,
        batch: int,
        threads: int,
        output: Output,
        head: Mapping[str, str] | None,
    ) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.enable_cpu_mem_arena = False  # an arena would keep freed memory
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(
            str(model_dir / NETWORK),
            options,
            providers=["CPUExecutionProvider"],
            # This optimizer loses one of several names of the same weights (ONNX Runtime 1.32).
            disabled_optimizers=["EliminateIdentity"],
        )
        (image,), (result,) = self._session.get_inputs(), self._session.get_outputs()
        if result.name == "logits" and output == "features":
            raise ValueError(f"{NETWORK} has no features")
        self._names = image.name, result.name
        self._head = None
        if result.name == "features" and output == "logits":
            assert head is not None
            self._head = read_head(model_dir, head)
        self.in_channels = int(image.shape[1])
        channels = len(self._head[1]) if self._head is not None else self._channels(tile)
        self.out_channels = channels
        self.output: Output = output
        self.each_alone = False
        self._results = DoubleBuffer((batch, channels, *tile))

    def _channels(self, tile: Tile) -> int:
        """Return the number of output channels from the file, or from a run on one tile if the file has none."""
        declared = self._session.get_outputs()[0].shape[1]
        if isinstance(declared, int):
            return declared
        image, result = self._names
        (output,) = self._session.run([result], {image: np.zeros((1, self.in_channels, *tile), np.float32)})
        return int(output.shape[1])

    def __call__(self, tiles: Array) -> Array:
        """Run up to one batch (see ``Engine``)."""
        results = self._results.next(len(tiles))
        image, name = self._names
        if self._head is not None:
            (features,) = self._session.run([name], {image: tiles})
            weight, bias = self._head
            for result, values in zip(results, features, strict=True):
                flat = result.reshape(len(bias), -1)
                np.matmul(weight, values.reshape(len(values), -1), out=flat)
                flat += bias[:, None]
            return results
        binding = self._session.io_binding()
        binding.bind_cpu_input(image, tiles)
        binding.bind_output(name, "cpu", 0, np.float32, results.shape, results.ctypes.data)
        self._session.run_with_iobinding(binding)
        return results
