"""PyTorch in eager mode, for machines without OpenVINO and for comparison."""

from typing import Any

from common.engines.base import Array, Output
from common.memory.process.bounded_heap import BoundedHeap


class TorchEngine:
    """A module with its weights, in float32, on the CPU or a CUDA device.

    Parameters
    ----------
    heap
        True to keep a tile's tensors in the heap for the next tile (``common.memory.process.bounded_heap``): a third
        less time, and some free memory in the heap. It applies until the process ends.
    """

    def __init__(self, module: Any, *, threads: int, output: Output, device: str = "cpu", heap: bool = False) -> None:
        import torch

        torch.set_num_threads(threads)
        self._module = module.float().eval().to(device)
        for parameter in self._module.parameters():
            parameter.requires_grad_(False)
        self.in_channels, self.out_channels = int(module.in_channels), int(module.out_channels)
        self.output: Output = output
        self.each_alone = False
        self._device = device
        if heap and device == "cpu":  # tensors of a device are not in the heap
            BoundedHeap(self._module).__enter__()

    def __call__(self, tiles: Array) -> Array:
        """Run one batch (see ``Engine``)."""
        import torch

        with torch.inference_mode():
            result: Array = self._module(torch.from_numpy(tiles).to(self._device)).cpu().numpy()
        return result
