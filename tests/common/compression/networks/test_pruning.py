"""Channels are removed consistently: a smaller network computes what the larger one does with zeros in their place."""

from typing import Any

import pytest
import torch
from torch import nn

from apps.imaging.models.networks import registry
from common.compression.networks import pruning
from common.compression.networks.channels import channels_of
from common.compression.networks.reshaping import RESIDUAL, reshape
from common.errors import BadInput
from tests.messages import refused

PLANS: dict[str, Any] = {
    "n_stages": 3,
    "features_per_stage": [8, 16, 24],
    "kernel_sizes": [[1, 3, 3], [3, 3, 3], [3, 3, 3]],
    "strides": [[1, 1, 1], [1, 2, 2], [2, 2, 2]],
    "conv_op": "Conv3d",
    "conv_bias": True,
    "norm_op": "InstanceNorm3d",
    "norm_op_kwargs": {"eps": 1e-5, "affine": True},
    "nonlin": "LeakyReLU",
    "nonlin_kwargs": {"inplace": True},
    "n_conv_per_stage_decoder": [2, 2],
    "in_channels": 2,
    "out_channels": 3,
}
"""Arguments of nnU-Net's networks, anisotropic as its plans are."""


def trainable(name: str, **changes: Any) -> tuple[str, dict[str, Any]]:
    return name, registry.arguments(name, changes, in_channels=2, out_channels=3)


CASES = {
    "segresnet": trainable("segresnet"),
    "dynunet": trainable("dynunet"),
    "dynunet-residual": trainable("dynunet", res_block=True),
    "basicunet": trainable("basicunet"),
    "unet": trainable("unet"),
    "unet-2": trainable("unet", num_res_units=2),
    "nnunet": ("plainconvunet", {**PLANS, "n_conv_per_stage": [2, 2, 2]}),
    "nnunet-folds": ("plainconvunet", {**PLANS, "n_conv_per_stage": [1, 1, 1], "members": 2}),
    "nnunet-residual": ("residualencoderunet", {**PLANS, "n_blocks_per_stage": [1, 2, 2]}),
    "nnunet-batch-norm": (
        "plainconvunet",
        {**PLANS, "n_conv_per_stage": [1, 1, 1], "norm_op": "BatchNorm3d"},
    ),
}
"""Every kind of network that ``imaging train`` makes, and nnU-Net's."""


def network_of(case: str) -> tuple[str, dict[str, Any], nn.Module, torch.Tensor]:
    """A network with random weights, also in its normalisations, and an image."""
    name, arguments = CASES[case]
    torch.manual_seed(0)
    network = registry.build(name, arguments).eval()
    with torch.no_grad():
        for tensor in registry.weights(network).values():
            if tensor.ndim == 1 and tensor.is_floating_point():
                tensor.copy_(torch.rand_like(tensor) + 0.5)
    sides = [2 * step for step in registry.divisors(name, arguments)]
    return name, arguments, network, torch.randn(2, 2, *sides)


def channels(network: nn.Module, image: torch.Tensor) -> pruning.Channels:
    layout = channels_of(network, image)
    return pruning.Channels(layout, registry.weights(network), dict(network.named_modules()))


@pytest.mark.parametrize("case", CASES)
def test_a_smaller_network_computes_what_zeros_would(case: str) -> None:
    name, arguments, network, image = network_of(case)
    found = channels(network, image)
    weights = {key: tensor.clone() for key, tensor in found.weights.items()}
    pruned = pruning.prune(found, found.norms(), 0.5)
    count = sum(tensor.numel() for tensor in pruned.weights.values())
    total = sum(tensor.numel() for tensor in weights.values())
    assert 0.3 * total < count <= 0.5 * total
    smaller = registry.build(name, {**arguments, registry.RESHAPED: pruned.recipe}).eval()
    registry.load_weights(smaller, pruned.weights)
    # Zeros for the same channels in the network as it was, which is another way to the same numbers.
    kept = {unit for units in found.layout.sides.values() for unit in units} - gone(found, pruned)
    with torch.no_grad():
        for (layer, side), units in found.layout.sides.items():
            for key, axis in found.tensors(layer, side):
                mask = torch.tensor([unit in kept for unit in units])
                shape = [-1 if place == axis else 1 for place in range(weights[key].ndim)]
                if not key.endswith("running_var"):
                    found.weights[key].mul_(mask.view(shape))
        expected, answer = network(image), smaller(image)
    assert answer.shape == expected.shape
    assert torch.allclose(answer, expected, atol=1e-4), float((answer - expected).abs().max())
    assert float(expected.std()) > 1e-3  # not all zeros


def gone(found: pruning.Channels, pruned: pruning.Pruned) -> set[int]:
    """The units that were removed: those of the smallest norms at each site, as many as its layers have lost."""
    norms, missing = found.norms(), set[int]()
    for site in found.layout.sites():
        layer = site.layers[0]
        units = found.layout.sides[layer, "out"]
        left = pruned.recipe.get(layer, {}).get("out", len(units))
        size = len(units) // len(set(units)) if set(units) == set(site.units) else 1
        ranked = sorted(site.units, key=lambda unit: norms[unit])
        missing.update(ranked[: (len(units) - left) // size])
    return missing


def test_the_share_is_of_all_parameters_and_the_same_everywhere() -> None:
    _, _, network, image = network_of("unet")
    found = channels(network, image)
    pruned = pruning.prune(found, found.norms(), 0.75)
    widths = {
        name: entry["out"] / found.layers[name].out_channels for name, entry in pruned.recipe.items() if "out" in entry
    }  # type: ignore[operator]
    assert all(0.4 < share < 0.65 for share in widths.values()), widths


def test_more_than_can_go_is_refused_with_what_can() -> None:
    _, _, network, image = network_of("segresnet")
    found = channels(network, image)
    with refused(BadInput, "--prune 0.9999", "at most 0.984"):
        pruning.prune(found, found.norms(), 0.9999)


def test_groups_of_a_normalisation_go_whole() -> None:
    _, _, network, image = network_of("segresnet")
    found = channels(network, image)
    pruned = pruning.prune(found, found.norms(), 0.8)
    for name, entry in pruned.recipe.items():
        if "groups" in entry:
            norm = found.layers[name]
            assert isinstance(norm, nn.GroupNorm)
            assert entry["channels"] / entry["groups"] == norm.num_channels / norm.num_groups


class Shuffling(nn.Module):
    """A network with an operation that mixes channels in a way of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv3d(2, 4, 3, padding=1), nn.Conv3d(4, 3, 1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.last(self.first(image).roll(1, 1))
        return result


def test_an_operation_that_mixes_channels_is_named() -> None:
    with refused(BadInput, "'roll'"):
        channels_of(Shuffling(), torch.zeros(2, 2, 4, 4, 4))


@pytest.mark.parametrize(
    ("recipe", "fact"),
    [
        ({"nowhere": {"in": 2}}, "'nowhere'"),
        ({"convInit.conv": {"out": 0}}, "0 is no number of channels"),
        ({"convInit.conv": {"out": 10**9}}, "1000000000 is no number of channels"),
        ({"convInit.conv": {"channels": 4}}, "a Conv3d"),
        ({"convInit.conv": {"ranks": [4, 5]}}, "ranks 4 and 5 of 2 and 16"),
        ({"down_layers.0.1.norm1": {"channels": 6, "groups": 4}}, "divisible"),
        ({"down_layers": {"skip": True}}, "only residual blocks"),
        ([], "no table"),
    ],
)
def test_a_recipe_is_an_input(recipe: Any, fact: str) -> None:
    name, arguments = CASES["segresnet"]
    with refused(BadInput, fact):
        reshape(registry.build(name, arguments), recipe)


def test_a_block_that_is_left_out_leaves_its_input() -> None:
    name, arguments, network, image = network_of("segresnet")
    blocks = [key for key, module in network.named_modules() if type(module).__name__ in RESIDUAL]
    smaller = registry.build(name, {**arguments, registry.RESHAPED: {blocks[-1]: {"skip": True}}}).eval()
    registry.load_weights(
        smaller, {key: value for key, value in registry.weights(network).items() if not key.startswith(blocks[-1])}
    )
    with torch.no_grad():
        # A residual block whose second convolution is zero is an identity.
        network.get_submodule(blocks[-1]).conv2.conv.weight.zero_()  # type: ignore[union-attr, operator]
        assert torch.equal(smaller(image), network(image))
