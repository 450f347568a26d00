"""Convolutions that see 8 bits in training: values on the grid, gradients as before, nothing of it elsewhere."""

import copy

import torch
from torch import nn

from common.compression.networks.fake_quantisation import round_in_training, rounded_input, rounded_weight
from common.errors import BadInput
from tests.messages import refused


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv3d(2, 4, 3, padding=1), nn.ReLU(), nn.ConvTranspose3d(4, 4, 2, stride=2), nn.Conv3d(4, 3, 1)
    )


def test_values_are_those_of_torchs_own_quantiser() -> None:
    torch.manual_seed(0)
    image = torch.randn(2, 3, 4, 5, 6) * torch.tensor([1.0, 40.0])[:, None, None, None, None]
    for ours, sample in zip(rounded_input(image), image, strict=True):
        low, high = float(sample.min()), float(sample.max())
        step = (high - low) / 255
        expected = torch.fake_quantize_per_tensor_affine(sample, step, round(-low / step), 0, 255)
        torch.testing.assert_close(ours, expected, atol=1e-6 * high, rtol=0)
        assert len(ours.unique()) <= 256
    weight = torch.randn(6, 3, 3, 3, 3)
    for axis in (0, 1):
        steps = weight.abs().amax([one for one in range(5) if one != axis]) / 127
        zeros = torch.zeros(len(steps), dtype=torch.int32)
        expected = torch.fake_quantize_per_channel_affine(weight, steps, zeros, axis, -127, 127)
        torch.testing.assert_close(rounded_weight(weight, axis), expected, atol=1e-6, rtol=0)
    assert float(rounded_input(torch.zeros(1, 2, 2, 2, 2)).abs().max()) == 0


def test_training_sees_rounded_values_and_all_else_does_not() -> None:
    plain, rounding = network(), network()
    assert round_in_training(rounding, but="3") == 2
    assert list(rounding.state_dict()) == list(plain.state_dict())
    image = torch.randn(2, 2, 4, 4, 4)
    with torch.no_grad():
        assert torch.equal(rounding.eval()(image), plain.eval()(image))
    rounding.train()
    answer = rounding(image)
    assert not torch.equal(answer, plain(image))
    with torch.no_grad():  # the same by hand
        first, _, second, head = plain
        hidden = nn.functional.conv3d(rounded_input(image), rounded_weight(first.weight, 0), first.bias, padding=1)
        hidden = nn.functional.conv_transpose3d(
            rounded_input(hidden.relu()), rounded_weight(second.weight, 1), second.bias, stride=2
        )
        torch.testing.assert_close(answer, head(hidden))
    answer.square().sum().backward()
    assert all(parameter.grad is not None and parameter.is_leaf for parameter in rounding.parameters())


def test_micro_batches_give_the_same_gradients() -> None:
    whole = network()
    round_in_training(whole)
    parts = copy.deepcopy(whole)
    image = torch.randn(3, 2, 4, 4, 4)
    whole(image).square().sum().backward()
    for sample in image:
        parts(sample[None]).square().sum().backward()
    for one, other in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-4)


def test_a_network_without_convolutions_is_refused() -> None:
    with refused(BadInput, "no convolution"):
        round_in_training(nn.Sequential(nn.Linear(2, 2)))
