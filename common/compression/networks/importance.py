"""Importance of channels and of residual blocks, measured on images."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from common.compression.networks.channels import ACTIVATIONS, Layout
from common.compression.networks.pruning import Channels
from common.compression.networks.reshaping import RESIDUAL

Tiles = Callable[[], Iterable[Tensor]]
"""Makes the images, each of shape (1, channels, x, y, z); they are valid until the next."""


def positive_shares(network: nn.Module, layout: Layout, tiles: Tiles) -> dict[int, float]:
    """Share of values above zero in front of an activation, by unit: what a ReLU does not make zero.

    Channels whose activations are mostly zero are the first to go (Hu et al., Network Trimming, arXiv 1607.03250).
    Units in front of several activations have the mean; those in front of none are not in the result.
    """
    counting = _Counting(layout)
    with torch.no_grad():
        for tile in tiles():
            counting.start()
            with counting:
                network(tile)
    return counting.shares()


class _Counting(TorchFunctionMode):
    """Counts values above zero at each activation, whose calls come in the layout's order."""

    def __init__(self, layout: Layout) -> None:
        super().__init__()
        self._layout, self._call = layout, 0
        self._sums: dict[int, list[float]] = {}

    def start(self) -> None:
        """Begin another run of the network."""
        self._call = 0

    def shares(self) -> dict[int, float]:
        """The mean of each unit."""
        return {unit: total / count for unit, (total, count) in self._sums.items()}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in ACTIVATIONS and args[0].ndim == 5:
            units = self._layout.activated[self._call]
            self._call += 1
            above = (args[0] > 0).float().mean((0, 2, 3, 4)).tolist()
            for unit, share in zip(units, above, strict=True):
                entry = self._sums.setdefault(unit, [0.0, 0.0])
                entry[0] += share
                entry[1] += 1
        return func(*args, **(kwargs or {}))


def taylor(network: nn.Module, channels: Channels, tiles: Tiles, loss: Callable[[Tensor], Tensor]) -> dict[int, float]:
    """Squared change of the loss, to first order, if a unit were zero, summed over the tiles.

    The products of each weight with its gradient are added up over all weights of the unit (Molchanov et al., CVPR
    2019, arXiv 1906.10771).

    Parameters
    ----------
    loss
        Of the network's output, a scalar.
    """
    named, sums = dict(network.named_parameters()), dict[int, float]()
    for tile in tiles():
        network.zero_grad(set_to_none=True)
        loss(network(tile)).backward()  # type: ignore[no-untyped-call]

        def product(tensor: Tensor, name: str) -> Tensor:
            gradient = named[name].grad if name in named else None
            return tensor * gradient if gradient is not None else torch.zeros_like(tensor)

        for unit, change in channels.summed(product).items():
            sums[unit] = sums.get(unit, 0.0) + change * change
    network.zero_grad(set_to_none=True)
    return sums


def block_effects(network: nn.Module, tiles: Tiles) -> dict[str, float]:
    """How much each residual block that keeps its input's shape changes it: norm of the change over norm of the input.

    Returns
    -------
    dict
        By the block's name; only blocks that may be left out are in it.
    """
    effects: dict[str, list[float]] = {}
    hooks = []
    for name, block in network.named_modules():
        if type(block).__name__ in RESIDUAL:

            def before(_: nn.Module, inputs: tuple[Tensor, ...], name: str = name) -> None:
                kept[name] = inputs[0].clone()  # the block may work in place

            def after(_: nn.Module, __: Any, output: Tensor, name: str = name) -> None:
                image = kept.pop(name)
                if image.shape == output.shape:
                    effects.setdefault(name, []).append(float((output - image).norm() / image.norm().clamp(min=1e-12)))

            hooks += [block.register_forward_pre_hook(before), block.register_forward_hook(after)]
    kept: dict[str, Tensor] = {}
    try:
        with torch.no_grad():
            for tile in tiles():
                network(tile)
    finally:
        for hook in hooks:
            hook.remove()
    return {name: sum(values) / len(values) for name, values in effects.items()}
