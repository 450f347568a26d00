"""Tucker's decomposition: exact where a kernel has low rank, as good as promised where it has not."""

from math import prod
from typing import Any

import pytest
import torch
from torch import nn

from common.compression.networks import low_rank
from common.compression.networks.low_rank import Ranks
from common.compression.networks.reshaping import reshape
from common.errors import BadInput
from tests.messages import refused

LAYERS: dict[str, Any] = {
    "plain": lambda: nn.Conv3d(12, 20, 3, padding=1),
    "strided, no bias": lambda: nn.Conv3d(12, 20, 3, stride=2, padding=1, bias=False),
    "transposed": lambda: nn.ConvTranspose3d(12, 20, 2, stride=2),
    "transposed, odd": lambda: nn.ConvTranspose3d(12, 20, 3, stride=2, padding=1, output_padding=1),
}


def planted(layer: Any, first: int, last: int) -> None:
    """Give a layer a kernel of known ranks."""
    inputs, outputs = torch.randn(layer.in_channels, first), torch.randn(layer.out_channels, last)
    kernel = torch.einsum("ir,os,srxyz->oixyz", inputs, outputs, torch.randn(last, first, *layer.kernel_size))
    transposed = isinstance(layer, nn.ConvTranspose3d)
    layer.weight.data = (kernel.transpose(0, 1) if transposed else kernel).contiguous()


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("ranks", [(3, 5), (12, 5), (3, 20)])
def test_a_kernel_of_low_rank_becomes_three_convolutions_of_the_same_result(kind: str, ranks: tuple[int, int]) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(LAYERS[kind]())
    planted(network[0], *ranks)
    weights = dict(network.named_parameters())
    (spectrum,) = low_rank.spectra(dict(network.named_modules()), weights).values()
    found = spectrum.ranks(1 - 1e-9)
    assert (found.first, found.last) == ranks
    factors = low_rank.factors(network[0], "0", weights, found)
    count = sum(tensor.numel() for name, tensor in factors.items() if name.endswith("weight"))
    assert count == spectrum.parameters(found) < network[0].weight.numel()
    smaller = reshape(nn.Sequential(LAYERS[kind]()), {"0": {"ranks": [found.first, found.last]}})
    smaller.load_state_dict(factors)
    image = torch.randn(2, 12, 6, 8, 10)
    with torch.no_grad():
        expected, answer = network(image), smaller(image)
    assert torch.allclose(answer, expected, rtol=1e-4, atol=1e-3 * float(expected.abs().max()))


def test_no_more_energy_is_lost_than_was_said() -> None:
    torch.manual_seed(1)
    layer = nn.Conv3d(16, 16, 3)
    kernel = low_rank.kernel_of(layer, layer.weight)
    (spectrum,) = low_rank.spectra({"0": layer}, {"0.weight": layer.weight}).values()
    for energy in (0.5, 0.8, 0.95):
        ranks = spectrum.ranks(energy)
        inputs, core, outputs = low_rank.tucker(kernel, ranks)
        again = torch.einsum("srxyz,os,ir->oixyz", core, outputs, inputs)
        assert (kernel - again).square().sum() <= (1 - energy) * kernel.square().sum()
        assert torch.allclose(inputs.T @ inputs, torch.eye(ranks.first, dtype=torch.float64))


def test_iterations_are_better_than_one_decomposition_of_each_axis() -> None:
    torch.manual_seed(2)
    kernel = torch.randn(16, 12, 3, 3, 3).double()
    ranks = Ranks(4, 5)
    _, core, _ = low_rank.tucker(kernel, ranks)
    truncated = [torch.linalg.svd(kernel.movedim(axis, 0).flatten(1))[0][:, :rank] for axis, rank in ((1, 4), (0, 5))]
    plain = torch.einsum("oixyz,ir,os->srxyz", kernel, *truncated)
    assert core.square().sum() > plain.square().sum()  # the norm that is kept


def test_ranks_by_size_are_the_largest_that_fit() -> None:
    torch.manual_seed(3)
    layers = {"a": nn.Conv3d(16, 32, 3), "b": nn.Conv3d(32, 32, 3), "head": nn.Conv3d(32, 2, 1)}
    weights = {f"{name}.weight": layer.weight for name, layer in layers.items()}
    kernels = low_rank.spectra(layers, weights)
    assert set(kernels) == {"a", "b"}  # a kernel of one voxel is a matrix already
    total = sum(prod(one.shape) for one in kernels.values())
    chosen = low_rank.choose(kernels, energy=None, most=total // 3, others=64)
    size = 64 + sum(one.parameters(chosen[name]) for name, one in kernels.items())
    assert 0.8 * total / 3 < size <= total / 3
    with refused(BadInput, "--low-rank: 100 parameters are too few", "ranks of 1 leave"):
        low_rank.choose(kernels, energy=None, most=100, others=64)
    with refused(BadInput, "--low-rank: the weights are as small already", "smaller size"):
        low_rank.choose(kernels, energy=None, most=1 << 30, others=64)
    with refused(BadInput, "no convolution gets smaller"):
        low_rank.choose(kernels, energy=0.9999999, most=None, others=64)


@pytest.mark.parametrize("kind", LAYERS)
def test_a_sum_of_few_products_becomes_a_convolution_of_each_channel_alone(kind: str) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(LAYERS[kind]())
    layer, terms = network[0], 3
    parts = [torch.randn(size, terms) for size in (layer.out_channels, layer.in_channels, prod(layer.kernel_size))]
    kernel = torch.einsum("or,ir,vr->oiv", *parts).reshape(layer.out_channels, layer.in_channels, *layer.kernel_size)
    transposed = isinstance(layer, nn.ConvTranspose3d)
    layer.weight.data = (kernel.transpose(0, 1) if transposed else kernel).contiguous()
    made = low_rank.separated(layer, "0", dict(network.named_parameters()), terms)
    weights = [tensor.numel() for name, tensor in made.items() if name.endswith("weight")]
    assert sum(weights) == terms * (layer.out_channels + layer.in_channels + prod(layer.kernel_size))
    smaller = reshape(nn.Sequential(LAYERS[kind]()), {"0": {"rank": terms}})
    smaller.load_state_dict(made)
    image = torch.randn(2, 12, 6, 8, 10)
    with torch.no_grad():
        expected, answer = network(image), smaller(image)
    assert torch.allclose(answer, expected, rtol=1e-3, atol=2e-3 * float(expected.abs().max()))


def test_products_of_as_many_numbers_as_tuckers() -> None:
    layer = nn.Conv3d(32, 32, 3)
    (spectrum,) = low_rank.spectra({"0": layer}, {"0.weight": layer.weight}).values()
    ranks = Ranks(12, 10)
    rank = low_rank.cp_rank(spectrum, ranks)
    assert rank * (32 + 32 + 27) <= spectrum.parameters(ranks) < (rank + 1) * (32 + 32 + 27)
    with refused(BadInput, "groups"):
        reshape(nn.Sequential(nn.Conv3d(8, 8, 3, groups=2)), {"0": {"rank": 4}})
