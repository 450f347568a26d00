"""nnU-Net's networks by name: its own classes (``dynamic-network-architectures``), only those in these tables.

A ``plans.json`` names classes by import path. Nothing is imported by these: names are looked up in the tables, and all
other arguments are numbers. The folds of an ensemble are one network whose logits are the mean of theirs.
"""

from collections.abc import Mapping
from math import prod
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from apps.imaging.models.networks.ensemble import mean_of
from common.errors import BadInput, UsageError
from common.extras import require

if TYPE_CHECKING:
    import torch

Arguments = Mapping[str, Any]

NETWORKS: Mapping[str, str] = MappingProxyType(
    {"plainconvunet": "PlainConvUNet", "residualencoderunet": "ResidualEncoderUNet"}
)
"""Our names of the classes in ``MODULE``."""
MODULE = "dynamic_network_architectures.architectures.unet"
OPERATORS: Mapping[str, str] = MappingProxyType(
    {
        "torch.nn.modules.conv.Conv3d": "Conv3d",
        "torch.nn.modules.instancenorm.InstanceNorm3d": "InstanceNorm3d",
        "torch.nn.modules.batchnorm.BatchNorm3d": "BatchNorm3d",
        "torch.nn.LeakyReLU": "LeakyReLU",
        "torch.nn.modules.activation.LeakyReLU": "LeakyReLU",
        "torch.nn.ReLU": "ReLU",
        "torch.nn.modules.activation.ReLU": "ReLU",
    }
)
"""Layers that a plan may name, and their names in ``torch.nn``."""
NUMBERS = frozenset(
    {"n_stages", "features_per_stage", "kernel_sizes", "strides", "n_conv_per_stage", "n_blocks_per_stage"}
    | {"n_conv_per_stage_decoder", "conv_bias"}
)
LAYERS = frozenset({"conv_op", "norm_op", "dropout_op", "nonlin"})
LAYER_ARGUMENTS = frozenset({"norm_op_kwargs", "dropout_op_kwargs", "nonlin_kwargs"})
LAYERS_OF_PLANS: Arguments = MappingProxyType(
    {
        "conv_op": "torch.nn.modules.conv.Conv3d",
        "conv_bias": True,
        "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    }
)
"""The layers that nnU-Net's planner writes (``default_experiment_planner.py``), and a training here has."""
LARGEST = 4096
"""Largest number among a network's arguments."""


def checked(complete: Arguments) -> dict[str, Any]:
    """Check the arguments of a plan, and replace layers by their names in ``torch.nn``.

    Raises
    ------
    BadInput
        An argument that is not known, a layer that is not in the table, or a value that is no number.
    """
    arguments: dict[str, Any] = {}
    for key, value in complete.items():
        if key in LAYERS:
            if value is not None and value not in OPERATORS and value not in OPERATORS.values():
                raise BadInput(f"nnU-Net plan: {key} {value!r} is not one of {', '.join(OPERATORS)}")
            arguments[key] = OPERATORS.get(value, value) if value is not None else None
        elif key in LAYER_ARGUMENTS:
            numbers = isinstance(value, dict) and all(isinstance(item, bool | int | float) for item in value.values())
            if value is not None and not numbers:
                raise BadInput(f"nnU-Net plan: {key} {value!r} holds more than numbers")
            arguments[key] = value
        elif key in NUMBERS | {"in_channels", "out_channels", "members"}:
            if not _numbers(value):
                raise BadInput(f"nnU-Net plan: {key} {value!r} is no number in range")
            arguments[key] = value
        else:
            raise BadInput(f"nnU-Net plan: the network's argument {key!r} is not known")
    return arguments


def _numbers(value: object) -> bool:
    if isinstance(value, list):
        return 0 < len(value) <= 16 and all(map(_numbers, value))
    return isinstance(value, bool) or (isinstance(value, int) and 0 < value <= LARGEST)


def divisors(complete: Arguments) -> tuple[int, int, int]:
    """Required divisor of each tile side."""
    x, y, z = (prod(stride[axis] for stride in complete["strides"]) for axis in range(3))
    return x, y, z


def build(name: str, complete: Arguments) -> "torch.nn.Module":
    """Build the network of a plan with random weights; with ``members``, the mean of several.

    Raises
    ------
    UsageError
        If nnU-Net's library of networks is not installed.
    """
    import torch

    try:
        from dynamic_network_architectures.architectures import unet
    except ImportError:
        raise UsageError("nnU-Net's networks need the extra 'nnunet' (dynamic-network-architectures)") from None
    arguments = checked(complete)
    members = arguments.pop("members", 1)
    for key in LAYERS & set(arguments):
        arguments[key] = getattr(torch.nn, arguments[key]) if arguments[key] is not None else None
    channels = {"input_channels": arguments.pop("in_channels"), "num_classes": arguments.pop("out_channels")}
    kind = getattr(unet, NETWORKS[name])
    networks = [kind(**channels, **arguments, deep_supervision=False) for _ in range(members)]
    return networks[0] if members == 1 else mean_of(networks)


def check_installed(name: str) -> None:
    """Refuse a network whose library is not installed.

    Raises
    ------
    UsageError
        With the extra that has it.
    """
    if name in NETWORKS:
        require("nnunet", "dynamic_network_architectures", purpose=f"the network {name}")


def initialise(network: "torch.nn.Module") -> None:
    """Draw weights in place as nnU-Net's trainer does: He's normal for a slope of 0.01, and residual blocks that begin
    as their shortcut. The heads of coarser levels, which have no part in the output, are not trained."""
    network.apply(network.initialize)  # type: ignore[arg-type]
    for unused in network.decoder.seg_layers[:-1]:  # type: ignore[union-attr, index]
        unused.requires_grad_(False)


def head(network: "torch.nn.Module") -> str:
    """Name of the final 1x1x1 convolution."""
    return f"decoder.seg_layers.{len(network.decoder.seg_layers) - 1}"  # type: ignore[arg-type, union-attr]
