"""Networks by name: those that can be trained, with checked arguments, and those of imported models.

A model folder never names an import path.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import lcm, prod
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from apps.imaging.models.networks import monai_bundle, nnunet
from apps.imaging.models.networks.ensemble import MOST_MEMBERS, mean_of
from apps.imaging.models.networks.monai import import_monai
from common.compression.networks.reshaping import reshape
from common.errors import BadInput, UsageError

if TYPE_CHECKING:
    import torch

Arguments = Mapping[str, Any]
"""Keyword arguments of a network: numbers, booleans and lists of them, and names of layers, so that they are JSON."""
RESHAPED = "reshaped"
"""Further argument of a network that was made smaller: sizes of its layers (``common.compression.networks``)."""


@dataclass(frozen=True, slots=True)
class TrainableNetwork:
    """A network that ``imaging train`` offers."""

    module: str
    """The class's module, MONAI's or nnU-Net's."""
    type: str
    """The class."""
    defaults: Arguments
    """All arguments that may be changed, with their values in ``imaging train``."""
    fixed: Arguments
    """Arguments that are always the same."""
    head: str | None
    """Name of the final 1x1x1 convolution; ``None`` if the network does not end in one, or if its depth decides it."""
    blocks: tuple[str, ...]
    """Classes of the blocks whose activations are recomputed under activation checkpointing."""
    strides: str
    """Argument that decides how often the grid is halved: ``blocks_down``, ``features`` or ``strides``."""
    axes: frozenset[str] = frozenset()
    """Arguments with a number for each level, or three where the axes differ."""


_LEVELS: Arguments = {"features_per_stage": [16, 32, 64, 128], "strides": [1, 2, 2, 2], "kernel_sizes": [3]}
NETWORKS: Mapping[str, TrainableNetwork] = MappingProxyType(
    {
        "segresnet": TrainableNetwork(
            "monai.networks.nets.segresnet",
            "SegResNet",
            {"init_filters": 16, "blocks_down": [1, 2, 2], "blocks_up": [1, 1]},
            {"spatial_dims": 3},
            "conv_final.2.conv",
            ("ResBlock",),
            "blocks_down",
        ),
        "dynunet": TrainableNetwork(
            "monai.networks.nets.dynunet",
            "DynUNet",
            {"filters": [16, 32, 64, 128], "strides": [1, 2, 2, 2], "kernel_size": [3], "res_block": False},
            {"spatial_dims": 3, "norm_name": "instance"},
            "output_block.conv.conv",
            ("UnetBasicBlock",),
            "strides",
            frozenset({"strides", "kernel_size"}),
        ),
        "basicunet": TrainableNetwork(
            "monai.networks.nets.basic_unet",
            "BasicUNet",
            {"features": [16, 16, 32, 64, 128, 16]},
            {"spatial_dims": 3},
            "final_conv",
            ("TwoConv",),
            "features",
        ),
        "unet": TrainableNetwork(
            "monai.networks.nets.unet",
            "UNet",
            {"channels": [16, 32, 64, 128], "strides": [2, 2, 2], "num_res_units": 1},
            {"spatial_dims": 3},
            None,
            ("ResidualUnit",),
            "strides",
        ),
        "plainconvunet": TrainableNetwork(
            nnunet.MODULE,
            nnunet.NETWORKS["plainconvunet"],
            {**_LEVELS, "n_conv_per_stage": [2], "n_conv_per_stage_decoder": [2]},
            nnunet.LAYERS_OF_PLANS,
            None,
            ("StackedConvBlocks",),
            "strides",
            frozenset({"strides", "kernel_sizes"}),
        ),
        "residualencoderunet": TrainableNetwork(
            nnunet.MODULE,
            nnunet.NETWORKS["residualencoderunet"],
            {**_LEVELS, "n_blocks_per_stage": [2], "n_conv_per_stage_decoder": [1]},
            nnunet.LAYERS_OF_PLANS,
            None,
            ("StackedConvBlocks", "BasicBlockD"),
            "strides",
            frozenset({"strides", "kernel_sizes"}),
        ),
    }
)
LIKE_STRIDES: Mapping[str, tuple[str, int]] = MappingProxyType(
    {
        "blocks_up": ("blocks_down", -1),
        "filters": ("strides", 0),
        "channels": ("strides", 1),
        "kernel_size": ("strides", 0),
        "features_per_stage": ("strides", 0),
        "kernel_sizes": ("strides", 0),
        "n_conv_per_stage": ("strides", 0),
        "n_blocks_per_stage": ("strides", 0),
        "n_conv_per_stage_decoder": ("strides", -1),
    }
)
"""Arguments with as many numbers as another one, and some more or fewer."""
ONE_FOR_ALL = frozenset(
    {"kernel_size", "kernel_sizes", "n_conv_per_stage", "n_blocks_per_stage", "n_conv_per_stage_decoder"}
)
"""Those of which a single number counts for all levels."""


def arguments(name: str, changes: Arguments, *, in_channels: int, out_channels: int) -> dict[str, Any]:
    """Complete arguments of a network: the table's defaults, overridden by ``changes``.

    Raises
    ------
    UsageError
        An unknown network or argument, or a value of another type or out of range.
    """
    if name not in NETWORKS:
        raise UsageError(f"no network {name!r}; there are {', '.join(NETWORKS)}")
    entry = NETWORKS[name]
    for key, value in changes.items():
        if key not in entry.defaults:
            raise UsageError(f"{name} has no argument {key!r}; it has {', '.join(entry.defaults)}")
        if not _like(value, entry.defaults[key], axes=key in entry.axes):
            raise UsageError(f"{name}: {key}={value!r} is not like {entry.defaults[key]!r}")
    complete = {**entry.defaults, **changes, "in_channels": in_channels, "out_channels": out_channels}
    for key, (other, more) in LIKE_STRIDES.items():
        if key in ONE_FOR_ALL and len(complete.get(key, ())) == 1:
            complete[key] = complete[key] * (len(complete[other]) + more)
        if key in complete and len(complete[key]) != len(complete[other]) + more:
            raise UsageError(f"{name}: {key} must have {len(complete[other]) + more} numbers, as {other} has")
    if name == "basicunet" and len(complete["features"]) != 6:
        raise UsageError("basicunet: features must have 6 numbers")
    if entry.axes:
        _check_levels(name, complete, entry.axes)
    return complete if name not in nnunet.NETWORKS else _of_nnunet(complete, entry)


def _check_levels(name: str, complete: Arguments, axes: frozenset[str]) -> None:
    """Refuse strides and kernels of which the network cannot be built."""
    strides = complete["strides"]
    for key in axes - {"strides"}:
        if any(size % 2 == 0 for level in complete[key] for size in _three(level)):
            raise UsageError(f"{name}: {key}={complete[key]!r}: kernels have odd sizes")
    fewest = 3 if name == "dynunet" else 2
    if len(strides) < fewest:
        raise UsageError(f"{name}: strides={strides!r}: at least {fewest} levels")
    if set(_three(strides[0])) != {1}:
        raise UsageError(f"{name}: strides={strides!r}: the first level has the patch's own grid, stride 1")


def _of_nnunet(complete: Arguments, entry: TrainableNetwork) -> dict[str, Any]:
    """Arguments as a plan of nnU-Net has them: each stride and kernel by axis, the number of stages, the layers."""
    by_axis = {key: [list(_three(level)) for level in complete[key]] for key in entry.axes}
    return {"n_stages": len(complete["strides"]), **complete, **by_axis, **entry.fixed}


def _three(level: "int | list[int]") -> tuple[int, int, int]:
    """A level's number along each axis."""
    x, y, z = level if isinstance(level, list) else [level] * 3
    return x, y, z


def _like(value: object, example: object, *, axes: bool = False) -> bool:
    """True if a value has the type of an example, is positive, and small enough for a size in a network.

    Parameters
    ----------
    axes
        True if the items of a list may be three numbers.
    """
    if isinstance(example, list):
        return (
            isinstance(value, list)
            and 0 < len(value) <= 16
            and all(
                _like(item, example[0])
                or (axes and isinstance(item, list) and len(item) == 3 and all(_like(size, 1) for size in item))
                for item in value
            )
        )
    return type(value) is type(example) and (isinstance(value, bool) or (isinstance(value, int) and 0 < value <= 4096))


def divisor(name: str, complete: Arguments) -> int:
    """Required divisor of the sides of a cube."""
    return lcm(*divisors(name, complete))


def divisors(name: str, complete: Arguments) -> tuple[int, int, int]:
    """Required divisor of each side of a tile or patch, along the network's axes."""
    if name in nnunet.NETWORKS:
        return nnunet.divisors(complete)
    if name in monai_bundle.NETWORKS:
        return monai_bundle.divisors(name, complete)
    steps = complete[NETWORKS[name].strides]
    if NETWORKS[name].strides == "strides":
        x, y, z = map(prod, zip(*map(_three, steps), strict=True))
        return x, y, z
    return (int(2 ** (len(steps) - 1 if name == "segresnet" else len(steps) - 2)),) * 3


def smallest_tile(name: str, complete: Arguments) -> tuple[int, int, int]:
    """A tile of two voxels along each axis of the coarsest grid."""
    x, y, z = divisors(name, complete)
    return 2 * x, 2 * y, 2 * z


def is_static(name: str) -> bool:
    """True if a network is exported for tiles of one shape, its patch."""
    return name in monai_bundle.NETWORKS and monai_bundle.NETWORKS[name].static


def build(name: str, complete: Arguments) -> "torch.nn.Module":
    """Build a network with random weights; with ``members``, the mean of several; with ``reshaped``, smaller layers.

    Parameters
    ----------
    name, complete
        As in ``model.json``; the arguments are checked again, because a model folder is an input.

    Raises
    ------
    BadInput
        Arguments that do not make such a network.
    """
    from common.training.conv3d_workaround import speed_up

    return speed_up(_build(name, complete))


def _build(name: str, complete: Arguments) -> "torch.nn.Module":
    if RESHAPED in complete:
        whole = {key: value for key, value in complete.items() if key != RESHAPED}
        return reshape(_build(name, whole), complete[RESHAPED])
    if name in nnunet.NETWORKS:
        return nnunet.build(name, complete)
    if name in monai_bundle.NETWORKS:
        return monai_bundle.build(name, complete)
    if "members" in complete:
        alone = {key: value for key, value in complete.items() if key != "members"}
        return mean_of([_build(name, alone) for _ in range(_members(complete["members"]))])
    import_monai()
    from importlib import import_module

    target, checked = monai_call(name, complete)
    module, _, kind = target.rpartition(".")
    network: torch.nn.Module = getattr(import_module(module), kind)(**checked)
    return network


def _members(number: object) -> int:
    if type(number) is not int or not 1 < number <= MOST_MEMBERS:
        raise BadInput(f"network: members {number!r} is not a number from 2 to {MOST_MEMBERS}")
    return number


def monai_call(name: str, complete: Arguments) -> tuple[str, dict[str, Any]]:
    """MONAI's class of a trainable network, with its module, and the keyword arguments to call it with.

    Raises
    ------
    BadInput
        As ``build``.
    """
    if name not in NETWORKS or name in nnunet.NETWORKS:
        raise BadInput(f"no network {name!r} of MONAI's; there are {', '.join(NETWORKS)}")
    channels = {key: complete.get(key) for key in ("in_channels", "out_channels")}
    changes = {key: value for key, value in complete.items() if key not in channels}
    if not all(_like(value, 1) for value in channels.values()):
        raise BadInput(f"network {name!r}: in_channels and out_channels must be positive numbers")
    try:
        checked = arguments(name, changes, **channels)  # type: ignore[arg-type]
    except UsageError as error:
        raise BadInput(f"network: {error}") from None
    entry = NETWORKS[name]
    if name == "dynunet":
        checked |= {"upsample_kernel_size": checked["strides"][1:]}
    return f"{entry.module}.{entry.type}", {**checked, **entry.fixed}


def blocks(name: str, network: "torch.nn.Module") -> "list[torch.nn.Module]":
    """The blocks whose activations may be recomputed (``common.training.activation_checkpointing``), in the network's
    order."""
    return [module for module in network.modules() if type(module).__name__ in NETWORKS[name].blocks]


def initialise(name: str, network: "torch.nn.Module") -> None:
    """Draw the weights that a training starts from in place, where building the network has not drawn them so."""
    if name in nnunet.NETWORKS:
        nnunet.initialise(network)


def weights(network: "torch.nn.Module") -> "dict[str, torch.Tensor]":
    """All parameters and buffers by name, each once."""
    return {**dict(network.named_parameters()), **dict(network.named_buffers())}


def load_weights(network: "torch.nn.Module", state: "Mapping[str, torch.Tensor]") -> None:
    """Load tensors, by the names of ``weights``, into a network of the same kind.

    A tensor that the network uses twice, as DynUNet's blocks do, may be there under each of its names.

    Raises
    ------
    BadInput
        Names that are missing, or that the network does not have.
    """
    missing, unknown = set(weights(network)) - set(state), set(state) - set(network.state_dict())
    if different := sorted(missing | unknown):
        raise BadInput(f"weights: {different[0]!r} and {len(different) - 1} more are missing or not of this network")
    network.load_state_dict(state, strict=False)


def twin(network: "torch.nn.Module") -> "torch.nn.Module":
    """Copy a network's modules; the copy has the same tensors."""
    import copy

    memo: dict[int, Any] = {id(tensor): tensor for tensor in (*network.parameters(), *network.buffers())}
    return copy.deepcopy(network, memo)


def head_name(name: str, network: "torch.nn.Module") -> str | None:
    """Name of the final 1x1x1 convolution; ``None`` if the network does not end in one, or is an ensemble."""
    if hasattr(network, "members"):
        return None
    if name in nnunet.NETWORKS:
        return nnunet.head(network)
    return (monai_bundle.NETWORKS if name in monai_bundle.NETWORKS else NETWORKS)[name].head


def split_head(name: str, network: "torch.nn.Module") -> "tuple[torch.nn.Module, torch.nn.Conv3d] | None":
    """Split a network into the trunk and its final 1x1x1 convolution.

    The trunk shares its weights with ``network``, which stays as it is.

    Returns
    -------
    tuple or None
        ``trunk``: (B, Cin, x, y, z) -> (B, F, x, y, z) features; ``head``: weight (C, F, 1, 1, 1), bias (C,).
        ``None`` where the network does not end in such a convolution.
    """
    import torch

    path = head_name(name, network)
    if path is None:
        return None
    head = network.get_submodule(path)
    if not isinstance(head, torch.nn.Conv3d) or any(size != 1 for size in head.kernel_size):
        return None
    trunk = twin(network)
    parent, _, last = path.rpartition(".")
    setattr(trunk.get_submodule(parent), last, torch.nn.Identity())
    return trunk, head
