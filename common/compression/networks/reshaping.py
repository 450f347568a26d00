"""Change the sizes of a network's layers by a recipe of plain numbers, which JSON holds and no code has to run to read.

A recipe has an entry for each layer that differs from the network as it is built:

- ``{"in": 6, "out": 12}``: channels of a convolution, either or both;
- ``{"channels": 12, "groups": 4}``: channels of a normalisation or of a PReLU, and groups of a group normalisation;
- ``{"ranks": [4, 5]}``: a convolution as three, of which the middle one has so many input and output channels
  (``common.compression.networks.low_rank``);
- ``{"rank": 40}``: a convolution as three, of which the middle one has as many channels and convolves each alone;
- ``{"same": "down.conv"}``: a layer that is another one of its kind and sizes, with the same weights;
- ``{"skip": true}``: a residual block that is left out, so that only its input goes on.
"""

from collections import OrderedDict
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from common.errors import BadInput

if TYPE_CHECKING:
    from torch import nn

Recipe = Mapping[str, Mapping[str, Any]]
"""Entries by the layer's name in the network."""
IN, OUT, CHANNELS, GROUPS, RANKS, RANK, SAME, SKIP = "in", "out", "channels", "groups", "ranks", "rank", "same", "skip"
LARGEST = 4096
"""Largest number of channels in a recipe."""
MOST_LAYERS = 4096
RESIDUAL = frozenset({"ResBlock", "BasicBlockD", "BottleneckD"})
"""Classes of residual blocks, of MONAI and nnU-Net, that may be left out."""


def reshape(network: "nn.Module", recipe: Recipe) -> "nn.Module":
    """Replace layers by others of the recipe's sizes, with random weights.

    Parameters
    ----------
    network
        As it is built; it is changed in place. A layer that is registered under several names is replaced everywhere.
    recipe
        Of a model folder, so an input.

    Returns
    -------
    torch.nn.Module
        ``network`` itself.

    Raises
    ------
    BadInput
        A layer that the network does not have, or an entry that its kind of layer cannot have.
    """
    if not isinstance(recipe, Mapping) or len(recipe) > MOST_LAYERS:
        raise BadInput("network: the recipe of its sizes is no table of layers")
    layers = dict(network.named_modules())
    made: dict[int, nn.Module] = {}
    for name, entry in recipe.items():
        if name not in layers or not isinstance(entry, Mapping) or not entry:
            raise BadInput(f"network: the recipe of its sizes names {name!r}, which it does not have")
        try:
            if entry.keys() == {SAME}:
                made[id(layers[name])] = _other(layers, layers[name], entry[SAME])
            else:
                made[id(layers[name])] = _made(layers[name], entry)
        except (ValueError, TypeError, AttributeError) as error:
            raise BadInput(f"network: the recipe of {name!r} does not fit it ({error})") from None
    for module in list(network.modules()):
        for child, layer in list(module.named_children()):
            if id(layer) in made:
                replaced = made[id(layer)]
                setattr(module, child, made.get(id(replaced), replaced))
    return network


def _made(layer: "nn.Module", entry: Mapping[str, Any]) -> "nn.Module":
    """The layer of an entry's sizes."""
    from torch import nn
    from torch.nn.modules.batchnorm import _BatchNorm
    from torch.nn.modules.instancenorm import _InstanceNorm

    keys = set(entry)
    if keys == {SKIP}:
        if entry[SKIP] is not True or type(layer).__name__ not in RESIDUAL:
            raise ValueError("only residual blocks are left out")
        return nn.Identity()
    if isinstance(layer, nn.Conv3d | nn.ConvTranspose3d) and (keys <= {IN, OUT, RANKS} or keys <= {IN, OUT, RANK}):
        sizes = [_size(entry.get(key, has)) for key, has in ((IN, layer.in_channels), (OUT, layer.out_channels))]
        if RANK in entry:
            return separated(layer, sizes[0], sizes[1], _size(entry[RANK]))
        if RANKS not in entry:
            return convolution(layer, sizes[0], sizes[1])
        first, last = entry[RANKS]
        return factors(layer, sizes[0], sizes[1], _size(first), _size(last))
    if isinstance(layer, nn.GroupNorm) and keys == {CHANNELS, GROUPS}:
        return nn.GroupNorm(_size(entry[GROUPS]), _size(entry[CHANNELS]), layer.eps, layer.affine)
    if keys != {CHANNELS}:
        raise ValueError(", ".join(sorted(keys)))
    channels = _size(entry[CHANNELS])
    if isinstance(layer, _BatchNorm | _InstanceNorm):
        kind: Any = type(layer)
        norm: nn.Module = kind(channels, layer.eps, layer.momentum, layer.affine, layer.track_running_stats)
        return norm
    if isinstance(layer, nn.PReLU):
        return nn.PReLU(channels)
    raise ValueError(f"a {type(layer).__name__}")


def _other(layers: "Mapping[str, nn.Module]", layer: "nn.Module", name: Any) -> "nn.Module":
    """The layer that takes another one's place."""
    other = layers.get(name) if isinstance(name, str) else None
    shapes = [{key: tensor.shape for key, tensor in one.named_parameters()} for one in (layer, other or layer)]
    if other is None or other is layer or str(other) != str(layer) or shapes[0] != shapes[1]:
        raise ValueError(f"{name!r} is no other layer of its kind and sizes")
    return other


def _size(value: object) -> int:
    if type(value) is not int or not 0 < value <= LARGEST:
        raise ValueError(f"{value!r} is no number of channels")
    return value


def convolution(
    like: "nn.Conv3d | nn.ConvTranspose3d", inputs: int, outputs: int, *, bias: bool | None = None
) -> "nn.Conv3d | nn.ConvTranspose3d":
    """A convolution of the same kind with other channels; ``bias`` as the other has it if it is not given."""
    from torch import nn

    if like.groups != 1:
        raise ValueError("a convolution of groups")
    has = (like.bias is not None) if bias is None else bias
    space: Any = {"kernel_size": like.kernel_size, "stride": like.stride, "padding": like.padding}
    space |= {"dilation": like.dilation, "bias": has}
    if isinstance(like, nn.ConvTranspose3d):
        return nn.ConvTranspose3d(inputs, outputs, output_padding=like.output_padding, **space)  # type: ignore[arg-type]
    return nn.Conv3d(inputs, outputs, padding_mode=like.padding_mode, **space)


def factors(
    like: "nn.Conv3d | nn.ConvTranspose3d", inputs: int, outputs: int, first: int, last: int
) -> "nn.Sequential":
    """A convolution as three: 1x1x1 to ``first`` channels, the kernel to ``last`` channels, 1x1x1 with the bias.

    An outer one is left out where it would not lower the number of channels.
    """
    from torch import nn

    if not (first <= inputs and last <= outputs) or (first, last) == (inputs, outputs):
        raise ValueError(f"ranks {first} and {last} of {inputs} and {outputs} channels")
    bias = like.bias is not None
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    if first < inputs:
        parts["first"] = nn.Conv3d(inputs, first, 1, bias=False)
    parts["core"] = convolution(like, first, last, bias=bias and last == outputs)
    if last < outputs:
        parts["last"] = nn.Conv3d(last, outputs, 1, bias=bias)
    return nn.Sequential(parts)


def separated(like: "nn.Conv3d | nn.ConvTranspose3d", inputs: int, outputs: int, rank: int) -> "nn.Sequential":
    """A convolution as three: 1x1x1 to ``rank`` channels, the kernel on each alone, 1x1x1 with the bias."""
    from torch import nn

    if like.groups != 1:
        raise ValueError("a convolution of groups")
    space: Any = {"kernel_size": like.kernel_size, "stride": like.stride, "padding": like.padding}
    space |= {"dilation": like.dilation, "bias": False, "groups": rank}
    core: nn.Module
    if isinstance(like, nn.ConvTranspose3d):
        core = nn.ConvTranspose3d(rank, rank, output_padding=like.output_padding, **space)  # type: ignore[arg-type]
    else:
        core = nn.Conv3d(rank, rank, padding_mode=like.padding_mode, **space)
    first, last = nn.Conv3d(inputs, rank, 1, bias=False), nn.Conv3d(rank, outputs, 1, bias=like.bias is not None)
    return nn.Sequential(OrderedDict({"first": first, "core": core, "last": last}))
