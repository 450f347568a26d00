"""Export networks as ONNX, in a form that runs fast on a CPU.

OpenVINO's convolutions keep the channels of a voxel together. The usual form of group normalisation, a reshape to
(batch, groups, rest), separates and rejoins them, which takes a quarter of a SegResNet's time. So it is written here as
reductions that keep the axes, and a 1x1x1 convolution that averages over the channels of a group.
"""

import warnings
from pathlib import Path

import torch
from torch import nn

from apps.imaging.models.networks import registry
from common.memory.process import libraries

OPSET = 17
"""Version of ONNX's operators: the newest that the older exporter writes."""
SMALLEST_HALF = 64
"""Numbers in a constant from which its half is smaller than the operator that widens it."""


class GroupNormByReductions(nn.Module):
    """``nn.GroupNorm`` of (B, C, x, y, z), with the same parameters."""

    over_groups: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor

    def __init__(self, norm: nn.GroupNorm) -> None:
        super().__init__()
        size = norm.num_channels // norm.num_groups
        same_group: torch.Tensor = torch.block_diag(  # type: ignore[no-untyped-call]
            *[torch.full((size, size), 1 / size)] * norm.num_groups
        )
        self.register_buffer("over_groups", same_group[:, :, None, None, None])
        # As buffers of the right shape, because the exporter may leave out of the file what it folds itself.
        self.register_buffer("weight", norm.weight.detach()[:, None, None, None])
        self.register_buffer("bias", norm.bias.detach()[:, None, None, None])
        self.eps = norm.eps

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """Subtract the mean, then divide by the standard deviation; no difference of large squares is taken."""
        centred = values - self._group_mean(_mean(values))
        along_z = torch.linalg.vector_norm(centred, 2, 4, keepdim=True).square() / values.shape[4]
        variance = self._group_mean(_mean(along_z))
        scale = self.weight * torch.rsqrt(variance + self.eps)
        return centred * scale + self.bias

    def _group_mean(self, of_channels: torch.Tensor) -> torch.Tensor:
        return nn.functional.conv3d(of_channels, self.over_groups)


def _mean(values: torch.Tensor) -> torch.Tensor:
    """Mean over x, y, z, one axis after the other: a single float32 sum over a million voxels would lose three digits.

    It is a mean of sums of means, because OpenVINO would join two reductions of the same kind.
    """
    along_z = values.mean(4, keepdim=True)
    along_y = along_z.sum(3, keepdim=True) / values.shape[3]
    return along_y.mean(2, keepdim=True)


def _for_inference(network: nn.Module) -> nn.Module:
    """A copy of the network with every affine group normalisation in the form above."""
    copy = registry.twin(network)
    for module in list(copy.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.GroupNorm) and child.affine:
                setattr(module, name, GroupNormByReductions(child))
    return copy.eval()


def export_onnx(name: str, network: nn.Module, path: Path, *, tile: tuple[int, int, int]) -> str:
    """Write the network as float32 ONNX with dynamic batch and spatial axes, its head taken off where it has one.

    The spatial axes of a static network are those of ``tile``.

    Parameters
    ----------
    name, network
        As for ``registry.build``; the network is set to evaluation mode.
    path
        The file, which is not written atomically.
    tile
        Spatial shape to trace with; the smallest valid one takes the least memory.

    Returns
    -------
    str
        The output's name: ``"features"`` or ``"logits"``.
    """
    # These are imported here; the planned export contains them.
    libraries.priced("torch.onnx", "onnx", "ml_dtypes", "google")
    network.eval()
    split = registry.split_head(name, network)
    output = "features" if split else "logits"
    channels = getattr(network, "in_channels", None) or next(network.parameters()).shape[1]
    axes = {0: "batch"} if registry.is_static(name) else {0: "batch", 2: "x", 3: "y", 4: "z"}
    with torch.no_grad(), warnings.catch_warnings():
        # The older exporter traces in half the memory of the newer one, which wants onnxscript as well.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            _for_inference(split[0] if split else network),
            (torch.zeros(1, channels, *tile),),
            str(path),
            dynamo=False,
            opset_version=OPSET,
            input_names=["image"],
            output_names=[output],
            dynamic_axes={"image": axes, output: axes},
        )
    return output


def halve_constants(path: Path) -> None:
    """Store the weights of an ONNX file in half precision where that loses nothing; they are widened when it is read.

    Parameters
    ----------
    path
        The file, which is replaced.
    """
    import numpy as np
    import onnx
    from onnx import helper, numpy_helper

    network = onnx.load(str(path))
    graph = network.graph
    widened = []
    for tensor in graph.initializer:
        array = numpy_helper.to_array(tensor)
        if array.dtype != np.float32 or array.size < SMALLEST_HALF:
            continue
        with np.errstate(over="ignore"):
            half = array.astype(np.float16)
        if np.array_equal(half.astype(np.float32), array):
            name = tensor.name
            tensor.CopyFrom(numpy_helper.from_array(half, f"{name}.half"))
            widened.append(helper.make_node("Cast", [f"{name}.half"], [name], to=onnx.TensorProto.FLOAT))
    nodes = [*widened, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    path.write_bytes(network.SerializeToString())
