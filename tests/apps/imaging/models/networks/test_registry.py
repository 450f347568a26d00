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
    narrow = {"basicunet": {"features": [8, 8, 16, 32, 64, 8]}, "segresnet": {"init_filters": 8}}
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
        found = registry.blocks(name, network)
        assert found
        activation_checkpointing.apply(policy, found, lambda: costs)
        network(image).square().mean().backward()
        gradients[policy] = torch.cat([p.grad.flatten() for p in network.parameters()])
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
