"""Networks of MONAI bundles by name: MONAI's own classes, only those in this table, with all their arguments.

A bundle names a class and its arguments. The name is looked up in the table, never imported, and an argument is a
number, a list of numbers, or the name of a layer that is in a table too.
"""

from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from math import prod
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from common.errors import BadInput

if TYPE_CHECKING:
    import torch

Arguments = Mapping[str, Any]
Check = Callable[[object], bool]

LARGEST, DEEPEST = 4096, 2
"""Largest number among a network's arguments, and deepest nesting of lists of numbers."""
ACTIVATIONS = frozenset({"elu", "relu", "leakyrelu", "prelu", "relu6", "selu", "celu", "gelu", "swish", "mish"})
NORMALISATIONS = frozenset({"instance", "batch", "group"})
"""Names in MONAI's factories of layers, in lower case as MONAI compares them."""
UPSAMPLINGS = frozenset({"deconv", "nontrainable", "pixelshuffle"})


def _boolean(value: object) -> bool:
    return isinstance(value, bool)


def _numbers(value: object, depth: int = 0) -> bool:
    """True if a value is a size, or a list of sizes, possibly along each axis."""
    if isinstance(value, list):
        return depth < DEEPEST and 0 < len(value) <= 16 and all(_numbers(item, depth + 1) for item in value)
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value <= LARGEST


def _count(value: object) -> bool:
    """True if a value is a number of layers, possibly 0."""
    return value == 0 or (_numbers(value) and not isinstance(value, list))


def _factor(value: object) -> bool:
    """True if a value is a factor of a number of channels."""
    return isinstance(value, int | float) and 0 < value <= LARGEST


def _codes(value: object) -> bool:
    """True if a value is a table of small numbers, each of a block and a path or a resolution."""
    return (
        isinstance(value, list)
        and all(
            isinstance(row, list) and len(row) <= 64 and all(isinstance(one, int) and 0 <= one <= 64 for one in row)
            for row in value[:65]
        )
        and len(value) <= 64
    )


def _share(value: object) -> bool:
    """True if a value is a dropout rate, which inference does not use."""
    if isinstance(value, list):
        return len(value) <= 16 and all(isinstance(item, int | float) or item is None for item in value)
    return value is None or (isinstance(value, int | float) and 0 <= value <= 1)


def _layer(names: frozenset[str]) -> Check:
    """A check for a layer's name, alone or with its numbers."""

    def check(value: object) -> bool:
        if isinstance(value, list) and len(value) == 2 and isinstance(value[1], dict):
            numbers = all(isinstance(item, bool | int | float) for item in value[1].values())
            return numbers and check(value[0])
        return isinstance(value, str) and value.lower() in names

    return check


def _upsampling(value: object) -> bool:
    return isinstance(value, str) and value.lower() in UPSAMPLINGS


_ACT, _NORM = _layer(ACTIVATIONS), _layer(NORMALISATIONS)


@dataclass(frozen=True, slots=True)
class BundleNetwork:
    """A network that is read from bundles."""

    module: str
    """MONAI's module."""
    arguments: Mapping[str, Check]
    """Arguments that are read, in addition to the channels, and their checks."""
    head: str | None
    """Name of the final 1x1x1 convolution; ``None`` if the network does not end in one."""
    halvings: str | int
    """Argument that decides how often the grid is halved, or that number if it is always the same."""
    static: bool = False
    """True if a tile's shape is part of the exported network."""


_UNET_SIZES: Mapping[str, Check] = {
    "channels": _numbers,
    "strides": _numbers,
    "kernel_size": _numbers,
    "up_kernel_size": _numbers,
    "dropout": _share,
}

NETWORKS: Mapping[str, BundleNetwork] = MappingProxyType(
    {
        "UNet": BundleNetwork(
            "monai.networks.nets.unet",
            {
                **_UNET_SIZES,
                "num_res_units": _count,
                "act": _ACT,
                "norm": _NORM,
                "bias": _boolean,
                "adn_ordering": lambda value: value in ("NDA", "NAD", "AND", "ADN", "DNA", "DAN", "NA", "AN", "A"),
            },
            None,
            "strides",
        ),
        "AttentionUnet": BundleNetwork("monai.networks.nets.attentionunet", _UNET_SIZES, None, "strides"),
        "BasicUNet": BundleNetwork(
            "monai.networks.nets.basic_unet",
            {
                "features": _numbers,
                "act": _ACT,
                "norm": _NORM,
                "bias": _boolean,
                "dropout": _share,
                "upsample": _upsampling,
            },
            "final_conv",
            4,
        ),
        "SegResNet": BundleNetwork(
            "monai.networks.nets.segresnet",
            {
                "init_filters": _numbers,
                "dropout_prob": _share,
                "act": _ACT,
                "norm": _NORM,
                "norm_name": _layer(frozenset({"group", ""})),
                "num_groups": _numbers,
                "blocks_down": _numbers,
                "blocks_up": _numbers,
                "upsample_mode": _upsampling,
            },
            "conv_final.2.conv",
            "blocks_down",
        ),
        "DynUNet": BundleNetwork(
            "monai.networks.nets.dynunet",
            {
                "kernel_size": _numbers,
                "strides": _numbers,
                "upsample_kernel_size": _numbers,
                "filters": _numbers,
                "dropout": _share,
                "norm_name": _NORM,
                "act_name": _ACT,
                "deep_supervision": _boolean,
                "deep_supr_num": _numbers,
                "res_block": _boolean,
                "trans_bias": _boolean,
            },
            "output_block.conv.conv",
            "strides",
        ),
        "SwinUNETR": BundleNetwork(
            "monai.networks.nets.swin_unetr",
            {
                "feature_size": _numbers,
                "depths": _numbers,
                "num_heads": _numbers,
                "patch_size": lambda value: value == 2,
                "window_size": _numbers,
                "mlp_ratio": _factor,
                "norm_name": _NORM,
                "downsample": lambda value: value in ("merging", "mergingv2"),
                **dict.fromkeys(("qkv_bias", "normalize", "patch_norm", "use_checkpoint", "use_v2"), _boolean),
                **dict.fromkeys(("drop_rate", "attn_drop_rate", "dropout_path_rate"), _share),
            },
            "out.conv.conv",
            5,
            static=True,
        ),
        "DiNTS": BundleNetwork(
            "monai.networks.nets.dints",
            {
                "channel_mul": _factor,
                "num_blocks": _numbers,
                "num_depths": _numbers,
                "use_downsample": _boolean,
                "act_name": _ACT,
                "norm_name": _NORM,
                **dict.fromkeys(("arch_code_a", "arch_code_c", "node_a"), _codes),
            },
            "stem_finals.1",
            "num_depths",
        ),
        "vista3d132": BundleNetwork("apps.imaging.models.networks.vista3d", {"encoder_embed_dim": _numbers}, "head", 4),
        "VNet": BundleNetwork(
            "monai.networks.nets.vnet",
            {
                "act": _ACT,
                "dropout_prob": _share,
                "dropout_prob_down": _share,
                "dropout_prob_up": _share,
                "dropout_dim": _numbers,
                "bias": _boolean,
            },
            None,
            4,
        ),
    }
)
"""By MONAI's names, which are not those of the networks that ``imaging train`` offers."""


def checked(name: str, arguments: Arguments) -> dict[str, Any]:
    """Return the arguments of a network if all are known and harmless.

    Raises
    ------
    BadInput
        An unknown network or argument, or a value that is neither a number in range nor a layer of the tables.
    """
    if name not in NETWORKS:
        raise BadInput(f"network {name!r}; only {', '.join(NETWORKS)} are read")
    checks = NETWORKS[name].arguments
    for key, value in arguments.items():
        if key in ("in_channels", "out_channels"):
            if not (_numbers(value) and isinstance(value, int) and value):
                raise BadInput(f"network {name}: {key} {value!r} is no number in range")
        elif key not in checks:
            raise BadInput(f"network {name}: the argument {key!r} is not read")
        elif not checks[key](value):
            raise BadInput(f"network {name}: {key} {value!r} is not read")
    return dict(arguments)


def divisors(name: str, complete: Arguments) -> tuple[int, int, int]:
    """Required divisor of each tile side."""
    halvings = NETWORKS[name].halvings
    if isinstance(halvings, int):
        return (2**halvings,) * 3
    if halvings == "num_depths":
        return (2 ** (complete.get(halvings, 3) + bool(complete.get("use_downsample", True))),) * 3
    sizes = complete.get(halvings, [1, 2, 2, 4])  # SegResNet's default; the others have none
    if halvings == "blocks_down":
        return (2 ** (len(sizes) - 1),) * 3
    x, y, z = (prod(size[axis] if isinstance(size, list) else size for size in sizes) for axis in range(3))
    return x, y, z


def build(name: str, complete: Arguments) -> "torch.nn.Module":
    """Build the network with random weights.

    Raises
    ------
    BadInput
        Arguments that are not read, or of which MONAI cannot make such a network.
    """
    from importlib import import_module

    from apps.imaging.models.networks.monai import import_monai

    arguments = checked(name, complete)
    network: torch.nn.Module
    import_monai()
    layers = {key: tuple(value) for key, value in arguments.items() if isinstance(value, list)}
    try:
        module = import_module(NETWORKS[name].module)
        with redirect_stdout(StringIO()):  # one of them talks
            if name == "DiNTS":
                network = _dints(module, arguments | layers)
            elif name == "vista3d132":
                counts = arguments["in_channels"], arguments["out_channels"]
                network = module.AutomaticVista3D(*counts, arguments.get("encoder_embed_dim", 48))
            else:
                network = getattr(module, name)(spatial_dims=3, **(arguments | layers))
    except (TypeError, ValueError, IndexError, KeyError, AssertionError, RuntimeError) as error:
        raise BadInput(f"network {name}: MONAI does not make it of these arguments ({error})") from None
    network.in_channels, network.out_channels = arguments["in_channels"], arguments["out_channels"]
    return network


CODES = ("arch_code_a", "arch_code_c", "node_a")
"""The result of DiNTS's search, tables that are arguments of the network."""


def _dints(module: Any, arguments: Arguments) -> "torch.nn.Module":
    import numpy as np
    import torch

    a, c, nodes = (np.array(arguments[key]) for key in CODES)
    outer = {"in_channels", "out_channels", *CODES}
    space = {key: value for key, value in arguments.items() if key not in outer}
    topology = module.TopologyInstance(arch_code=[a, c], **space)
    shared = {key: value for key, value in space.items() if key in ("act_name", "norm_name", "use_downsample")}
    network: torch.nn.Module = module.DiNTS(
        topology, arguments["in_channels"], arguments["out_channels"], node_a=torch.from_numpy(nodes), **shared
    )
    return network
