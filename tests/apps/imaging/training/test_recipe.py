"""The step of a recipe: networks of nnU-Net continue from a checkpoint to the same weights, bit for bit."""

from pathlib import Path

import numpy as np
import pytest
import torch

from apps.imaging.models.networks import registry
from apps.imaging.training.recipe import Recipe, make_step
from common.training import checkpoint


@pytest.mark.parametrize("name", ["plainconvunet", "residualencoderunet"])
def test_a_network_of_nnunet_continues_to_the_same_weights(name: str, tmp_path: Path) -> None:
    layers = {"features_per_stage": [4, 6, 8], "strides": [1, [2, 2, 1], 2]}
    recipe = Recipe(
        network=name,
        arguments=registry.arguments(name, layers, in_channels=1, out_channels=3),
        patch=(16, 16, 8),
        batch=2,
        steps=4,
        seconds=None,
        learning_rate=1e-2,
        weight_decay=1e-3,
        clip=1.0,
        mirror="",
        validation_cases=0,
        fold=None,
        seed=0,
    )
    random = np.random.default_rng(0)
    images = torch.from_numpy(random.standard_normal((2, 1, 16, 16, 8), np.float32))
    batch = [images, (images[:, 0] > 0.5).to(torch.uint8)]

    def made() -> tuple[torch.nn.Module, torch.optim.Optimizer, object]:
        return make_step(recipe, micro_batch=1, amp="off", checkpoint="4/8")

    torch.manual_seed(0)
    network, optimizer, step = made()
    first = {name: tensor.clone() for name, tensor in registry.weights(network).items()}
    losses = [float(step(batch)) for _ in range(2)]
    checkpoint.save(tmp_path / "last", network=network, optimizer=optimizer, state={}, more={})
    losses += [float(step(batch)) for _ in range(2)]
    assert losses[-1] < losses[0]
    changed = {name for name, tensor in registry.weights(network).items() if not torch.equal(tensor, first[name])}
    unused = {"decoder.seg_layers.0.weight", "decoder.seg_layers.0.bias"}  # of a coarser level
    assert changed == first.keys() - unused

    torch.manual_seed(1)
    again, other, step = made()
    tensors = checkpoint.read_tensors(tmp_path / "last")
    checkpoint.apply(tensors, tmp_path / "last", network=again, optimizer=other)
    assert [float(step(batch)) for _ in range(2)] == losses[2:]
    assert all(torch.equal(tensor, registry.weights(again)[name]) for name, tensor in registry.weights(network).items())


@pytest.mark.parametrize("name", ["dynunet", "plainconvunet"])
def test_a_checkpoint_has_each_tensor_once(name: str, tmp_path: Path) -> None:
    """They have their modules under two and four names."""
    network = registry.build(name, registry.arguments(name, {}, in_channels=1, out_channels=3))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    checkpoint.save(tmp_path / "last", network=network, optimizer=optimizer, state={})
    size = sum(tensor.nbytes for tensor in registry.weights(network).values())
    assert len(network.state_dict()) >= 2 * len(registry.weights(network)) * 0.9
    written = (tmp_path / "last").stat().st_size - torch.get_rng_state().nbytes
    assert size < written < 1.02 * size + 20_000
