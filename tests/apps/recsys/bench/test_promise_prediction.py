import pytest
import torch

from apps.recsys.bench import promise_prediction
from common.memory.costs import trace


@pytest.mark.parametrize("optimizer", promise_prediction.OPTIMIZERS)
def test_towers_step_and_have_a_price(optimizer: str) -> None:
    size = {"rows": 64, "factors": 16, "batch": 32, "micro_batch": 16, "negatives": 2, "amp": "off"}
    torch.manual_seed(0)
    network, _, step = promise_prediction.towers(optimizer=optimizer, **size)
    before = [parameter.detach().clone() for parameter in network.parameters()]
    assert 0.5 < float(step()) < 5  # near the logarithm of three
    assert not any(torch.equal(old, new) for old, new in zip(before, network.parameters(), strict=True))
    priced = trace.price(lambda: promise_prediction.towers(optimizer=optimizer, **size))
    assert priced["parameters"] == sum(parameter.nbytes for parameter in before)
