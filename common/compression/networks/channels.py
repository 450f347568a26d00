"""Which channels of a network belong together: found by running it once and following each channel through it.

Every channel that a convolution makes gets a number. The number goes on through normalisations, activations and
changes of the grid; a sum of two tensors makes their channels one; a concatenation keeps both lists. Afterwards each
side of each layer has a list of numbers, and channels with the same number can only be removed together: from all
layers that make them, and from all that read them.

Channels of one group of a group normalisation are one unit too. Removing whole groups leaves the means and deviations
of the others as they are.

Torch-Pruning (1.6.1) answers the same question from autograd's graph, and fails on MONAI's UNet with PReLU, and on
BasicUNet and DynUNet with instance normalisation; hence this module.
"""

import weakref
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from common.compression.networks.reshaping import CHANNELS, IN, OUT
from common.errors import BadInput

Side = tuple[str, str]
"""A layer's name, and which of its sides."""
CONVOLUTIONS = frozenset({"conv3d", "conv_transpose3d"})
GROUP = "group_norm"
NORMALISATIONS = frozenset({"instance_norm", "batch_norm", GROUP})
ACTIVATIONS = frozenset(
    {"relu", "relu_", "leaky_relu", "leaky_relu_", "prelu", "elu", "elu_", "selu", "celu", "gelu", "silu", "mish"}
    | {"relu6", "hardtanh", "sigmoid", "tanh", "softplus"}
)
SPATIAL = frozenset(
    {"interpolate", "pad", "avg_pool3d", "max_pool3d", "adaptive_avg_pool3d", "contiguous", "clone", "float", "detach"}
    | {"dropout", "dropout3d", "feature_dropout", "feature_alpha_dropout", "to"}
)
"""Operations that leave every channel where it is."""
JOINING = frozenset(
    {"add", "add_", "__add__", "__radd__", "__iadd__", "sub", "__sub__", "mul", "mul_", "__mul__", "__rmul__"}
    | {"__imul__", "div", "truediv", "__truediv__", "true_divide", "maximum", "minimum"}
)
"""Operations on two tensors, channel by channel."""


@dataclass(slots=True)
class Layout:
    """The channels of a network."""

    sides: dict[Side, list[int]] = field(default_factory=dict)
    """The unit of each channel of each side of a layer."""
    fixed: set[int] = field(default_factory=set)
    """Units that stay: of the image and of the classes."""
    activated: list[list[int]] = field(default_factory=list)
    """Units of the channels of each activation's input, in the order of the calls."""
    voxels: dict[str, int] = field(default_factory=dict)
    """Voxels of the output of each convolution."""

    def sites(self) -> list["Site"]:
        """The places where channels can be removed, each with its units, in the network's order.

        Units that are made by the same convolutions form a site: all of a residual stream, or the inner channels of one
        block.
        """
        makers: dict[int, list[str]] = {}
        for (layer, side), units in self.sides.items():
            if side == OUT:
                for unit in dict.fromkeys(units):
                    makers.setdefault(unit, []).append(layer)
        found: dict[tuple[str, ...], list[int]] = {}
        for unit, layers in makers.items():
            if unit not in self.fixed:
                found.setdefault(tuple(layers), []).append(unit)
        return [
            Site(layers, units, max(self.voxels[layer] for layer in layers))
            for layers, units in found.items()
            if len(units) > 1
        ]


@dataclass(frozen=True, slots=True)
class Site:
    """A place where channels can be removed."""

    layers: tuple[str, ...]
    """The convolutions that make them."""
    units: list[int]
    voxels: int
    """Of the largest tensor that has these channels, in the traced tile."""


class _Sets:
    """Disjoint sets of numbers."""

    def __init__(self) -> None:
        self.parents: list[int] = []

    def new(self, count: int) -> list[int]:
        first = len(self.parents)
        self.parents.extend(range(first, first + count))
        return list(range(first, first + count))

    def root(self, one: int) -> int:
        while self.parents[one] != one:
            self.parents[one] = self.parents[self.parents[one]]
            one = self.parents[one]
        return one

    def join(self, one: int, other: int) -> None:
        low, high = sorted((self.root(one), self.root(other)))
        self.parents[high] = low


def channels_of(network: nn.Module, image: Tensor) -> Layout:
    """Run a network once and follow its channels.

    Parameters
    ----------
    network
        Maps (B, Cin, x, y, z) to (B, C, x, y, z).
    image
        A small one; two samples, because single ones take another way through some convolutions.

    Raises
    ------
    BadInput
        An operation through which channels cannot be followed, with its name.
    """
    walk = _Walk()
    names = {layer: name for name, layer in network.named_modules() if not list(layer.children())}
    hooks = []
    for layer in names:
        hooks.append(layer.register_forward_pre_hook(lambda one, _: walk.enter(names[one])))
        hooks.append(layer.register_forward_hook(lambda *_: walk.enter("")))
    try:
        with torch.no_grad(), walk:
            walk.label(image, walk.sets.new(image.shape[1]))
            result = network(image)
    finally:
        for hook in hooks:
            hook.remove()
    return walk.layout(image, result)


class _Walk(TorchFunctionMode):
    """Gives each tensor the numbers of its channels while a network runs."""

    def __init__(self) -> None:
        super().__init__()
        self.sets = _Sets()
        self._found = Layout()
        self._layer = ""
        self._labels: dict[int, tuple[weakref.ref[Tensor], list[int]]] = {}
        """By the tensor's ``id``, as long as the tensor lives."""

    def enter(self, layer: str) -> None:
        """Note which layer runs; empty: none."""
        self._layer = layer

    def label(self, tensor: Tensor, numbers: list[int]) -> None:
        """Note a tensor's numbers."""
        key = id(tensor)
        self._labels[key] = (weakref.ref(tensor, lambda _: self._labels.pop(key, None)), numbers)

    def layout(self, image: Tensor, result: Tensor) -> Layout:
        """What was found, with one number for all channels that belong together."""
        if id(result) not in self._labels:
            raise BadInput("network: its output is no tensor that channels were followed to")
        root, found = self.sets.root, self._found
        return Layout(
            {side: [root(one) for one in numbers] for side, numbers in found.sides.items()},
            {root(one) for one in (*self._numbers(image), *self._numbers(result))},
            [[root(one) for one in numbers] for numbers in found.activated],
            found.voxels,
        )

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        tensors = [one for one in _flat((args, kwargs)) if id(one) in self._labels]
        if tensors and isinstance(result, Tensor) and result.ndim == 5:
            name = getattr(func, "__name__", "")
            numbers = self._follow(name, tensors, args, kwargs, result)
            if result.shape[1] != len(numbers):
                raise BadInput(f"network: {name!r} changes the number of channels")
            self.label(result, numbers)
        return result

    def _numbers(self, tensor: Tensor) -> list[int]:
        return self._labels[id(tensor)][1]

    def _follow(self, name: str, tensors: list[Tensor], args: Any, kwargs: Any, result: Tensor) -> list[int]:
        """The numbers of a result's channels."""
        numbers = self._numbers(tensors[0])
        if name in CONVOLUTIONS:
            self._side(IN, numbers)
            self._found.voxels[self._layer] = prod(result.shape[2:])
            return self._side(OUT, self.sets.new(result.shape[1]))
        if name == "cat":
            if _argument(args, kwargs, 1, "dim", 0) not in (1, -4):
                raise BadInput("network: tensors are joined along another axis than that of channels")
            return [number for tensor in tensors for number in self._numbers(tensor)]
        if name in JOINING:
            self._join(name, tensors)
        elif name in NORMALISATIONS:
            self._normalise(numbers, int(_argument(args, kwargs, 1, "num_groups", 0)) if name == GROUP else 0)
        elif name in ACTIVATIONS:
            self._found.activated.append(numbers)
            if name == "prelu" and _argument(args, kwargs, 1, "weight", None).numel() > 1:
                self._side(CHANNELS, numbers)
        elif name not in SPATIAL:
            raise BadInput(f"network: its channels cannot be followed through {name!r}")
        return numbers

    def _side(self, side: str, numbers: list[int]) -> list[int]:
        """Note the channels of a side of the present layer; a layer that runs twice has one list."""
        if not self._layer:
            raise BadInput("network: a convolution outside of a layer")
        before = self._found.sides.setdefault((self._layer, side), numbers)
        self._same(before, numbers, self._layer)
        return before

    def _same(self, some: list[int], others: list[int], name: str) -> None:
        if len(some) != len(others):
            raise BadInput(f"network: different numbers of channels in {name!r}")
        for one, other in zip(some, others, strict=True):
            self.sets.join(one, other)

    def _join(self, name: str, tensors: list[Tensor]) -> None:
        for tensor in tensors[1:]:
            self._same(self._numbers(tensors[0]), self._numbers(tensor), name)

    def _normalise(self, numbers: list[int], groups: int) -> None:
        """Note a normalisation, of groups if there are some, whose channels become units."""
        size = len(numbers) // groups if groups else 1
        for index, number in enumerate(numbers):
            self.sets.join(number, numbers[index - index % size])
        if self._layer:
            self._side(CHANNELS, numbers)


def _flat(values: Any) -> Iterator[Any]:
    """All that stands in nested lists, tuples and dictionaries, in order."""
    if isinstance(values, list | tuple):
        for one in values:
            yield from _flat(one)
    elif isinstance(values, dict):
        yield from _flat(list(values.values()))
    else:
        yield values


def _argument(args: Any, kwargs: Any, place: int, name: str, default: Any) -> Any:
    return args[place] if len(args) > place else kwargs.get(name, default)
