"""Forms that the suite makes by itself: zeros where they belong, and one kernel for several convolutions."""

from pathlib import Path

import torch

from apps.imaging.bench.compression.forms import tied, write, zeroed
from apps.imaging.models.model_folder import read_model, torch_network
from apps.imaging.models.networks import registry
from common.compression.networks.reshaping import reshape
from common.errors import BadInput
from tests.apps.imaging.helpers import random_model
from tests.messages import refused


def test_zeros_are_the_smallest_weights() -> None:
    torch.manual_seed(0)
    weight = torch.randn(6, 8, 3, 3, 3)
    few = zeroed(weight, "sparse-80")
    assert int((few != 0).sum()) == weight.numel() - int(0.8 * weight.numel())
    assert float(few[few != 0].abs().min()) >= float(weight[few == 0].abs().max())
    half = zeroed(weight, "sparse-2of4")
    groups = half.reshape(6, 2, 4, 27)
    assert torch.equal((groups != 0).sum(2), torch.full((6, 2, 27), 2)) and bool(((half == 0) | (half == weight)).all())
    assert torch.equal(zeroed(weight[:, :3], "sparse-2of4"), weight[:, :3])


def test_convolutions_that_share_a_kernel_are_stored_once_and_read_again(tmp_path: Path) -> None:
    random_model(tmp_path / "model", arguments={"init_filters": 8, "blocks_down": [1, 2], "blocks_up": [1]})
    answer = write("tied", tmp_path / "model", tmp_path / "tied")
    whole = torch_network(tmp_path / "model", "logits")
    shared = tied(dict(whole.named_modules()))
    assert len(shared) == 6  # of 4 and 4 convolutions
    assert answer["parameters"] < sum(one.numel() for one in registry.weights(whole).values())
    network = torch_network(tmp_path / "tied", "logits")
    modules = dict(network.named_modules(remove_duplicate=False))
    for name, other in shared.items():
        assert modules[name] is modules[other]
    assert read_model(tmp_path / "tied").arguments["reshaped"] == {name: {"same": one} for name, one in shared.items()}
    for name in ("convInit.conv", "no.such"):
        with refused(BadInput, name):
            reshape(torch_network(tmp_path / "model", "logits"), {"down_layers.0.1.conv1.conv": {"same": name}})
