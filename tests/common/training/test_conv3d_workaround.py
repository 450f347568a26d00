"""Single samples go to oneDNN, the result is the same, and nothing else changes. Kernels are counted, not timed."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from apps.imaging.models.networks import registry
from common.training.conv3d_workaround import speed_up

OWN, ONEDNN = "aten::slow_conv3d_forward", "aten::mkldnn_convolution"


def ran(network: torch.nn.Module, image: torch.Tensor) -> dict[str, int]:
    """Convolutions of a forward pass by who did them."""
    with torch.profiler.profile() as profile:
        network(image)
    counts = {event.key: event.count for event in profile.key_averages()}
    return {kernel: counts.get(kernel, 0) for kernel in (OWN, ONEDNN)}


def layers() -> torch.nn.Sequential:
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Conv3d(1, 8, 3, padding=1),  # few channels: torch's own is faster
        torch.nn.Conv3d(8, 8, 3, padding=1, stride=2),  # strided: left alone
        torch.nn.Conv3d(8, 8, 3, padding=1, bias=False),
        torch.nn.Conv3d(8, 8, 3, padding=1, groups=2),  # always oneDNN's
        torch.nn.Conv3d(8, 4, 1),  # torch's own is faster
    )


def test_single_samples_go_to_onednn():
    image = torch.randn(1, 1, 16, 20, 24)
    assert ran(layers(), image) == {OWN: 4, ONEDNN: 1}  # if this fails, torch's rule has changed
    assert ran(speed_up(layers()), image) == {OWN: 3, ONEDNN: 2}


@settings(max_examples=50, deadline=None)
@given(st.tuples(*[st.integers(1, 12)] * 3), st.booleans())
def test_the_result_and_its_gradients_are_the_same(shape, bias):
    found = []
    for change in (lambda layer: layer, speed_up):
        torch.manual_seed(0)
        layer = change(torch.nn.Conv3d(5, 4, 3, padding=1, bias=bias))
        image = torch.randn(1, 5, *shape, requires_grad=True)
        result = layer(image)
        assert result.is_contiguous()
        result += 1  # blocks add what went around them, in place
        result.square().sum().backward()
        assert image.grad.is_contiguous()
        found.append([result, image.grad, *(p.grad for p in layer.parameters())])
    for one, other in zip(*found, strict=True):
        assert one.shape == other.shape and (one - other).norm() <= 1e-5 * one.norm()


def test_the_halves_are_not_kept():
    layer, kept = speed_up(torch.nn.Conv3d(8, 4, 3, padding=1)), []
    image = torch.ones(1, 8, 6, 6, 6, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda saved: kept.append(saved) or saved, lambda saved: saved):
        result = layer(image)
    assert [saved.untyped_storage().nbytes() for saved in kept] == [4 * 8 * 6**3, 4 * 4 * 8 * 3**3]
    assert result.untyped_storage().nbytes() == 4 * 4 * 6**3
    result.sum().backward()
    assert image.grad.untyped_storage().nbytes() == 4 * 8 * 6**3


@pytest.mark.parametrize(
    "image",
    [torch.ones(2, 8, 12, 12, 12), torch.ones(1, 8, 52, 52, 4), torch.ones(1, 8, 12, 12, 12, dtype=torch.float64)],
    ids=["two samples", "a large sample", "another precision"],
)
def test_others_are_left_alone(image: torch.Tensor):
    shapes = []
    network = torch.nn.Conv3d(8, 8, 3, padding=1).to(image.dtype)
    plain = network.forward
    network.forward = lambda image: shapes.append(image.shape) or plain(image)
    expected = plain(image)
    assert torch.equal(speed_up(network)(image), expected)
    assert shapes == [image.shape]
    with torch.autocast("cpu", torch.bfloat16, enabled=image.dtype == torch.float32):
        network(image[:1])
    assert shapes[1:] == [image[:1].shape]


def test_a_padding_that_is_named_is_left_alone():
    network = torch.nn.Conv3d(8, 8, 3, padding="same")
    image = torch.ones(1, 8, 6, 6, 6, requires_grad=True)
    assert ran(speed_up(network), image) == {OWN: 1, ONEDNN: 0}


@pytest.mark.parametrize("name", list(registry.NETWORKS))
def test_names_weights_and_what_is_traced_stay(name: str):
    complete = registry.arguments(name, {}, in_channels=1, out_channels=2)
    network, side = registry.build(name, complete).eval(), 2 * registry.divisor(name, complete)
    image = torch.randn(1, 1, side, side, side)
    with torch.no_grad():
        traced = torch.jit.trace(network, image)
        assert torch.allclose(traced(image), network(image), rtol=1e-4, atol=1e-5)
        assert ran(network, image)[OWN] < ran(traced, image)[OWN]
