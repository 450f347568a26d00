"""The table of networks: checked arguments, heads that split exactly, ONNX that says the same as torch."""

from pathlib import Path

import numpy as np
import pytest
import torch

from apps.imaging.models.networks import registry
from apps.imaging.models.onnx_export import GroupNormByReductions, export_onnx
from common.errors import BadInput, UsageError
from common.training import activation_checkpointing, recomputation
from tests.messages import refused


@pytest.mark.parametrize("name", list(registry.NETWORKS))
def test_onnx_equals_torch_on_another_size(name: str, tmp_path: Path):
    import openvino as ov

    torch.manual_seed(0)
    complete = registry.arguments(name, {}, in_channels=1, out_channels=3)
    network, step = registry.build(name, complete), registry.divisor(name, complete)
    path = tmp_path / "network.onnx"
    output = export_onnx(name, network, path, tile=(2 * step,) * 3)
    image = torch.randn(2, 1, 2 * step, 3 * step, 4 * step)
    core = ov.Core()
    compiled = core.compile_model(core.read_model(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    assert output in compiled.output(0).get_names()
    split = registry.split_head(name, network)
    assert output == ("features" if split else "logits")
    with torch.inference_mode():
        logits = network(image)
        expected = logits
        if split:
            trunk, head = split
            expected = trunk(image)
            assert torch.equal(head(expected), logits)
    assert np.abs(compiled(image.numpy())[0] - expected.numpy()).max() <= 1e-4 * float(expected.abs().max())


@pytest.mark.parametrize("name", list(registry.NETWORKS))
def test_recomputed_activations_give_the_same_gradients(name: str):
    few: dict[str, object] = {"features_per_stage": [8, 8, 12], "strides": [1, 2, 2]}
    narrow = {"basicunet": {"features": [8, 8, 16, 32, 64, 8]}, "segresnet": {"init_filters": 8}}
    narrow |= {"plainconvunet": few, "residualencoderunet": few}
    complete = registry.arguments(name, narrow.get(name, {}), in_channels=1, out_channels=3)
    side = 2 * registry.divisor(name, complete)
    torch.manual_seed(1)
    image, gradients = torch.randn(1, 1, side, side, side, dtype=torch.float64), {}
    plain = registry.build(name, complete).double()
    costs = recomputation.measure(plain, registry.blocks(name, plain), lambda: plain(image))
    policies = {*activation_checkpointing.POLICIES, *activation_checkpointing.UNIFORM}
    for policy in policies:
        torch.manual_seed(0)
        network = registry.build(name, complete).double()
        registry.initialise(name, network)
        found = registry.blocks(name, network)
        assert found
        activation_checkpointing.apply(policy, found, lambda: costs)
        network(image).square().mean().backward()
        gradients[policy] = torch.cat([p.grad.flatten() for p in network.parameters() if p.requires_grad])
    for policy in policies:
        assert torch.equal(gradients[policy], gradients["none"]), policy


def test_arguments_are_checked():
    with refused(UsageError, "'os.system'", "segresnet"):
        registry.arguments("os.system", {}, in_channels=1, out_channels=2)
    with refused(UsageError, "segresnet", "'norm'"):
        registry.arguments("segresnet", {"norm": "batch"}, in_channels=1, out_channels=2)
    with refused(UsageError, "init_filters", "'many'"):
        registry.arguments("segresnet", {"init_filters": "many"}, in_channels=1, out_channels=2)
    with refused(UsageError, "blocks_up", 2):
        registry.arguments("segresnet", {"blocks_up": [1]}, in_channels=1, out_channels=2)
    with pytest.raises(BadInput, match="init_filters"):
        registry.build("segresnet", {"init_filters": 1 << 40, "in_channels": 1, "out_channels": 2})


def test_monai_comes_without_its_optional_libraries():
    import subprocess
    import sys

    networks = "apps.imaging.models.networks.registry"
    code = f"import sys; from {networks} import import_monai; import_monai(); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"pandas", "nibabel", "scipy", "PIL", "pydicom"} & {name.partition(".")[0] for name in loaded}
    assert "monai.networks.nets" in loaded


def test_group_normalisation_by_reductions_is_as_exact_far_from_zero():
    norm = torch.nn.GroupNorm(4, 12)
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    values = torch.randn(2, 12, 24, 16, 20) + 300 * torch.randn(12, 1, 1, 1)
    exact = norm.double()(values.double())
    norm.float()
    with torch.inference_mode():
        assert (GroupNormByReductions(norm)(values) - exact).abs().max() < 2e-5
        assert (norm(values) - exact).abs().max() < 2e-5


def test_weights_are_loaded_by_any_name_of_a_shared_tensor() -> None:
    """DynUNet's blocks have two names each; both a folder with one and a folder with all names are read."""
    complete = registry.arguments(
        "dynunet", {"filters": [4, 4, 8], "strides": [1, 2, 2]}, in_channels=1, out_channels=2
    )
    network, other = (registry.build("dynunet", complete) for _ in range(2))
    assert len(registry.weights(network)) < len(network.state_dict())
    for state in (registry.weights(network), network.state_dict()):
        registry.load_weights(other, state)
        assert all(bool((a == b).all()) for a, b in zip(network.parameters(), other.parameters(), strict=True))
    with pytest.raises(BadInput, match="weights"):
        registry.load_weights(other, {**state, "another": next(network.parameters())})
    with pytest.raises(BadInput, match="weights"):
        registry.load_weights(other, dict(list(registry.weights(network).items())[1:]))


LEVELS = {"strides": [1, [2, 2, 1], 2], "features": [4, 6, 8], "kernels": [[3, 3, 1], 3, 3]}


@pytest.mark.parametrize("name", ["dynunet", "plainconvunet", "residualencoderunet"])
def test_strides_and_kernels_that_differ_by_axis(name: str, tmp_path: Path) -> None:
    import openvino as ov

    names = {"features": "filters" if name == "dynunet" else "features_per_stage"}
    names["kernels"] = "kernel_size" if name == "dynunet" else "kernel_sizes"
    changes = {names.get(key, key): value for key, value in LEVELS.items()}
    complete = registry.arguments(name, changes, in_channels=2, out_channels=3)
    assert registry.divisors(name, complete) == (4, 4, 2) and registry.divisor(name, complete) == 4
    torch.manual_seed(0)
    network = registry.build(name, complete)
    registry.initialise(name, network)
    first = next(module for module in network.modules() if isinstance(module, torch.nn.Conv3d))
    assert first.kernel_size[-1] in (1, (3, 3, 1), 3) and tuple(first.kernel_size) == (3, 3, 1)
    path = tmp_path / "network.onnx"
    export_onnx(name, network, path, tile=registry.smallest_tile(name, complete))
    image = torch.randn(1, 2, 8, 12, 6)
    split = registry.split_head(name, network)
    assert split is not None
    with torch.inference_mode():
        assert network(image).shape == (1, 3, 8, 12, 6)
        expected = split[0](image).numpy()
    core = ov.Core()
    compiled = core.compile_model(core.read_model(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    assert np.abs(compiled(image.numpy())[0] - expected).max() <= 1e-4 * float(np.abs(expected).max())


@pytest.mark.parametrize("name", ["plainconvunet", "residualencoderunet"])
def test_nnunets_networks_are_initialised_as_its_trainer_does(name: str) -> None:
    from dynamic_network_architectures.architectures import unet

    complete = registry.arguments(name, {}, in_channels=1, out_channels=3)
    torch.manual_seed(3)
    ours = registry.build(name, complete)
    registry.initialise(name, ours)
    torch.manual_seed(3)
    blocks = {"n_conv_per_stage": [2] * 4} if name == "plainconvunet" else {"n_blocks_per_stage": [2] * 4}
    theirs = getattr(unet, "PlainConvUNet" if name == "plainconvunet" else "ResidualEncoderUNet")(
        input_channels=1,
        n_stages=4,
        features_per_stage=[16, 32, 64, 128],
        conv_op=torch.nn.Conv3d,
        kernel_sizes=3,
        strides=[1, 2, 2, 2],
        num_classes=3,
        n_conv_per_stage_decoder=2 if name == "plainconvunet" else 1,
        conv_bias=True,
        norm_op=torch.nn.InstanceNorm3d,
        norm_op_kwargs={"eps": 1e-5, "affine": True},
        nonlin=torch.nn.LeakyReLU,
        nonlin_kwargs={"inplace": True},
        **blocks,
    )
    theirs.apply(theirs.initialize)
    weights = registry.weights(ours)
    assert weights.keys() == registry.weights(theirs).keys()
    assert all(torch.equal(weights[key], value) for key, value in registry.weights(theirs).items())


@pytest.mark.parametrize(
    ("name", "changes", "facts"),
    [
        ("dynunet", {"strides": [1, [2, 2], 2]}, ("strides", "not like")),
        ("dynunet", {"strides": [[2, 2, 1], 2, 2, 2]}, ("strides", "stride 1")),
        ("dynunet", {"strides": [1, 2], "filters": [8, 8]}, ("strides", "3")),
        ("dynunet", {"kernel_size": [3, 3, 2, 3]}, ("kernel_size", "odd")),
        ("plainconvunet", {"kernel_sizes": [3, 3]}, ("kernel_sizes", "4")),
        ("residualencoderunet", {"n_blocks_per_stage": [1, 2, 3]}, ("n_blocks_per_stage", "4")),
        ("unet", {"strides": [[2, 2, 1], 2, 2]}, ("strides", "not like")),
    ],
)
def test_levels_of_which_no_network_can_be_built(name: str, changes: dict[str, list[int]], facts: tuple[str, ...]):
    with refused(UsageError, name, *facts):
        registry.arguments(name, changes, in_channels=1, out_channels=2)
