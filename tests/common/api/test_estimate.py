"""``common.estimate``: its terms, what it leaves alone, and its peak against a fresh process with the same step."""

import doctest
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from common import Estimate, estimate
from common.api import estimate as module
from common.api.step_trace import trace
from common.errors import DoesNotFit, UsageError
from common.memory.process import glibc
from tests.common.api import steps

MIB = 1 << 20
Batch = tuple[torch.Tensor, torch.Tensor]


@pytest.fixture(scope="module")
def measured() -> dict[str, int]:
    """Bytes that each step adds to a process which has loaded PyTorch; its allocator returns what is freed."""
    environment = os.environ | glibc.environment(torch.get_num_threads())
    command = [sys.executable, steps.__file__, "tame", *steps.NAMES]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return dict(zip(steps.NAMES, map(int, done.stdout.split()), strict=True))


@pytest.mark.parametrize("name", steps.NAMES)
def test_the_peak_is_that_of_a_fresh_process(name: str, measured: dict[str, int]) -> None:
    predicted, real = estimate(*steps.make(name)).peak_bytes, measured[name]
    assert real > 64 * MIB
    # 1.3 to 1.7 % over where it is 177 to 490 MiB, 3.5 MiB where it is 117: the allowance for small blocks is the same.
    assert -0.005 * real <= predicted - real <= 0.01 * real + 4 * MIB, (predicted / MIB, real / MIB)


BATCH = (torch.zeros(64, 1024), torch.zeros(64, dtype=torch.int64))
LOSS = nn.functional.cross_entropy


def sizes(found: Estimate) -> dict[str, int]:
    return {term.name: term.bytes for term in found.terms}


def test_terms_add_up_and_have_the_names_of_the_field() -> None:
    network = nn.Linear(1024, 512)
    found = estimate((network, LOSS, torch.optim.Adam(network.parameters())), BATCH)
    weights = 4 * (1024 * 512 + 512)
    for name, times in (("parameters", 1), ("gradients", 1), ("optimizer states", 2)):
        assert times * weights <= found[name] <= times * weights + 32768, name
    assert found["batch"] >= 4 * 64 * 1024 and found["buffers"] == 0 and found["none of these"] == 0
    assert found.peak_bytes == sum(sizes(found).values()) and not found.unmeasured
    assert found.process_bytes == found.peak_bytes + found.baseline_bytes and found.baseline_bytes > 100 * MIB
    text = str(found)
    assert all(name in text for name in sizes(found)) and "MiB" in text


def test_all_forms_of_a_step_agree() -> None:
    network = nn.Sequential(nn.Linear(256, 1024), nn.BatchNorm1d(1024), nn.ReLU(), nn.Linear(1024, 10))
    optimizer = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9)

    def step(batch: Batch) -> float:
        optimizer.zero_grad()
        loss = LOSS(network(batch[0]), batch[1])
        loss.backward()
        optimizer.step()
        return loss.item()

    class Trainer:
        def __init__(self) -> None:
            self.count = 0

        def step(self, batch: Batch) -> None:
            self.count += 1
            step(batch)

    batch = (torch.zeros(512, 256), torch.zeros(512, dtype=torch.int64))
    first = estimate(step, batch)
    assert first["buffers"] == 2 * (4096 + 80) + 8 + 80  # mean, variance, and a count
    assert estimate(Trainer().step, batch) == first
    assert estimate((network, LOSS, optimizer), batch) == first
    with torch.device("meta"):
        light = nn.Sequential(nn.Linear(256, 1024), nn.BatchNorm1d(1024), nn.ReLU(), nn.Linear(1024, 10))
        sketch = (torch.zeros(512, 256), torch.zeros(512, dtype=torch.int64))
    descent = torch.optim.SGD(light.parameters(), 0.1, momentum=0.9)
    assert estimate((light, LOSS, descent), sketch) == first
    assert light[0].weight.is_meta and descent.param_groups[0]["params"][0] is light[0].weight and not descent.state
    inference = estimate(network, batch[0])
    assert inference["gradients"] == inference["optimizer states"] == 0 and inference.peak_bytes < first.peak_bytes


def test_modules_optimisers_and_random_numbers_are_left_as_they_were() -> None:
    network = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3))
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=0.5)
    batch = (torch.ones(4, 8), torch.zeros(4, dtype=torch.int64))
    LOSS(network(batch[0]), batch[1]).backward()
    optimizer.step()
    optimizer.zero_grad()
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)

    def step(batch: Batch) -> None:
        LOSS(network(batch[0]), batch[1]).backward()
        network[0].weight.data *= 2
        network[0].calls = getattr(network[0], "calls", 0) + 1
        network[1].running_mean = network[1].running_mean * 2
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()

    before = {name: value.clone() for name, value in network.state_dict().items()}
    states = {key: {name: value.clone() for name, value in state.items()} for key, state in optimizer.state.items()}
    random = torch.get_rng_state()
    estimate(step, batch)
    after = network.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items()) and after.keys() == before.keys()
    assert all(type(value) is torch.Tensor for value in network.buffers())
    assert all(parameter.grad is None for parameter in network.parameters()) and not hasattr(network[0], "calls")
    assert optimizer.state.keys() == states.keys()
    for key, state in optimizer.state.items():
        assert all(torch.equal(state[name], value) for name, value in states[key].items())
    assert optimizer.param_groups[0]["lr"] == 0.001 and torch.equal(random, torch.get_rng_state())
    assert not network[0].weight._post_accumulate_grad_hooks
    step(batch)  # and it still works


def test_bare_tensors_and_hooks_are_followed() -> None:
    weight = torch.zeros(1024, 1024, requires_grad=True)
    penalty = torch.ones(1024)
    optimizer = torch.optim.SGD([weight], 0.1)

    def step(batch: torch.Tensor) -> None:
        ((batch @ weight).square() * penalty).sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    found = estimate(step, torch.zeros(16, 1024))
    assert found["parameters"] >= 4 * MIB and found["gradients"] >= 4 * MIB and 4096 <= found["other tensors"] < 8192
    assert weight.grad is None and weight.sum() == 0

    def in_backward(parameter: torch.Tensor) -> None:
        optimizer.step()
        parameter.grad = None

    handle = weight.register_post_accumulate_grad_hook(in_backward)
    estimate(lambda batch: (batch @ weight).sum().backward(), torch.zeros(16, 1024))
    handle.remove()
    assert weight.grad is None and weight.sum() == 0


def test_tensors_that_the_step_makes_of_arrays_do_not_pile_up() -> None:
    import numpy as np

    made = np.ones((512, 1024), np.float32)
    history, trains = trace(lambda batch: batch + torch.from_numpy(made.copy()), torch.zeros(512, 1024))
    assert not trains and max(kinds["other tensors"] for kinds, _ in history) < 2 * made.nbytes


def decides(batch: torch.Tensor) -> torch.Tensor:
    return batch[batch > 0]


@pytest.mark.parametrize(
    ("step", "arguments", "error", "facts"),
    [
        (7, {}, UsageError, ("int", "module", "optimizer")),
        ((nn.Linear(2, 2), LOSS), {}, UsageError, ("tuple", "module", "loss", "optimizer")),
        (nn.Linear(3, 3), {}, UsageError, ("RuntimeError", "shape")),
        (decides, {}, UsageError, ("without data", "shape")),
        (lambda batch: None, {}, UsageError, ("makes no tensor",)),
        (lambda batch: batch + torch.zeros(2, device="meta"), {}, UsageError, ("meta", "CPU")),
        (nn.Linear(2, 2), {"memory": "banana"}, UsageError, ("'banana'", "size")),
        (nn.Linear(2, 2), {"threads": 1, "memory": "2MiB"}, DoesNotFit, ("PyTorch",)),
    ],
)
def test_what_is_no_step_is_refused(
    step: Any,
    arguments: dict[str, Any],
    error: type[Exception],
    facts: tuple[object, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if error is DoesNotFit:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))  # what is in the cache fits under any ceiling
    with pytest.raises(error) as caught:
        estimate(step, torch.zeros(2, 2), **arguments)
    assert all(str(fact) in str(caught.value) for fact in facts), caught.value


def test_an_operator_too_large_to_measure_is_named() -> None:
    found = estimate(nn.Linear(4096, 4096), torch.zeros(200_000, 4096, device="meta"), memory="700MiB")
    assert found.unmeasured == ("aten.addmm.default",) and "addmm" in str(found) and found["operator workspace"] == 0


def test_the_example() -> None:
    assert doctest.testmod(module) == (0, 8)
