"""Remove whole channels of a network: as many at every site, the least important of each, and smaller tensors after it.

The share that is kept is the same everywhere, so that activations, which decide the peak of a training or a tile, get
smaller as well. A threshold over the whole network would mostly empty its deep layers, which have the weights, and
leave the peak where it was.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

from common.compression.networks import reshaping
from common.compression.networks.reshaping import CHANNELS, IN
from common.errors import BadInput

if TYPE_CHECKING:
    from torch import Tensor, nn

    from common.compression.networks.channels import Layout, Site

PER_CHANNEL = ("weight", "bias", "running_mean", "running_var")
"""Tensors of a normalisation or a PReLU."""


@dataclass(frozen=True, slots=True)
class Pruned:
    """A network after channels were removed."""

    recipe: dict[str, dict[str, Any]]
    """Entries of ``reshaping.reshape`` for the layers that changed."""
    weights: "dict[str, Tensor]"


@dataclass(frozen=True, slots=True)
class Channels:
    """The channels of a network and the weights that have an entry for each."""

    layout: "Layout"
    weights: "Mapping[str, Tensor]"
    """Parameters and buffers by name."""
    layers: "Mapping[str, nn.Module]"
    """Modules by name."""

    def tensors(self, layer: str, side: str) -> list[tuple[str, int]]:
        """Names of weights with an entry for each channel of a layer's side, and the axis of these entries."""
        from torch.nn import ConvTranspose3d

        if side == CHANNELS:
            return [(name, 0) for kind in PER_CHANNEL if (name := f"{layer}.{kind}") in self.weights]
        reading = side == IN
        axis = int(reading != isinstance(self.layers[layer], ConvTranspose3d))
        bias = [] if reading or f"{layer}.bias" not in self.weights else [(f"{layer}.bias", 0)]
        return [(f"{layer}.weight", axis), *bias]

    def norms(self) -> dict[int, float]:
        """Importance of each unit: the root of the summed squares of all weights that make, scale or read its channels.

        The group norm of DepGraph (Fang et al., CVPR 2023).
        """
        return {unit: value**0.5 for unit, value in self.summed(lambda tensor, _: tensor.square()).items()}

    def summed(self, measure: Any) -> dict[int, float]:
        """Sum over all weights of each unit.

        Parameters
        ----------
        measure
            Of a weight's tensor and its name, elementwise.
        """
        sums = {unit: 0.0 for units in self.layout.sides.values() for unit in units}
        for (layer, side), units in self.layout.sides.items():
            for name, axis in self.tensors(layer, side):
                values = (
                    measure(self.weights[name].detach().double(), name).movedim(axis, 0).reshape(len(units), -1).sum(1)
                )
                for unit, value in zip(units, values.tolist(), strict=True):
                    sums[unit] += value
        return sums

    def parameters(self, gone: set[int]) -> int:
        """Number of parameters without some units."""
        sizes = {name: list(tensor.shape) for name, tensor in self.weights.items()}
        for (layer, side), units in self.layout.sides.items():
            for name, axis in self.tensors(layer, side):
                sizes[name][axis] = sum(unit not in gone for unit in units)
        return sum(map(prod, sizes.values()))

    def without(self, gone: set[int]) -> Pruned:
        """Cut units out of all weights."""
        import torch

        cut, recipe = dict(self.weights), dict[str, dict[str, Any]]()
        for (layer, side), units in self.layout.sides.items():
            kept = [place for place, unit in enumerate(units) if unit not in gone]
            if len(kept) == len(units):
                continue
            entry = recipe.setdefault(layer, {})
            entry[side] = len(kept)
            if isinstance(norm := self.layers[layer], torch.nn.GroupNorm):
                entry[reshaping.GROUPS] = len(kept) * norm.num_groups // len(units)
            for name, axis in self.tensors(layer, side):
                cut[name] = cut[name].index_select(axis, torch.tensor(kept))
        return Pruned(recipe, cut)


def prune(network: Channels, importance: Mapping[int, float], share: float) -> Pruned:
    """Remove at least a share of the parameters.

    Parameters
    ----------
    importance
        Of each unit; compared within a site only.
    share
        Of all parameters, between 0 and 1.

    Raises
    ------
    BadInput
        If no such share can be removed with a unit left at each site; the largest that can is named.
    """
    sites = network.layout.sites()
    total = network.parameters(set())
    goal = int((1 - share) * total)
    ranked = [sorted(site.units, key=lambda unit: -importance[unit]) for site in sites]

    def gone(counts: Sequence[int]) -> set[int]:
        return {unit for units, count in zip(ranked, counts, strict=True) for unit in units[count:]}

    def at(kept: float) -> list[int]:
        return [max(1, int(kept * len(site.units) + 1e-9)) for site in sites]

    def fits(counts: Sequence[int]) -> bool:
        return network.parameters(gone(counts)) <= goal

    if not fits(at(0)):
        most = 1 - network.parameters(gone(at(0))) / total
        raise BadInput(f"--prune {share:g}: at most {int(1000 * most) / 1000:g} of this network's parameters can go")
    # Shares at which a site loses a unit.
    steps = sorted({count / len(site.units) for site in sites for count in range(len(site.units))})
    low, high = 0, len(steps)  # the first fits, the last does not or is beyond
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(at(steps[middle])) else (low, middle)
    return network.without(gone(_filled(at(steps[low]), sites, fits)))


def _filled(counts: list[int], sites: "Sequence[Site]", fits: Any) -> list[int]:
    """Give back a unit where the goal allows it, first on the coarsest grids, whose channels take the least memory."""
    for index in sorted(range(len(sites)), key=lambda one: sites[one].voxels):
        more = [count + (place == index) for place, count in enumerate(counts)]
        if more[index] < len(sites[index].units) and fits(more):
            counts = more
    return counts
