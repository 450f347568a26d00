"""Accumulated gradients are the full batch's: over all parameters, for every loss, however the batch is cut."""

import json
import logging
import os
import subprocess
import sys
from collections.abc import Mapping

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from apps.imaging.bench.promise.training_problems import DICE
from common.bench.exactness import KERNELS_OF_ANY_SIZE, PROBLEMS, RESOLUTION, gradient, permuted, relative
from common.training import batch_norm
from common.training.gradcache import backward
from common.training.losses import CrossEntropy, InBatchSoftmax
from common.training.step import TrainingStep

ALL = {**PROBLEMS, **DICE}


@pytest.mark.parametrize("name", list(ALL))
@settings(max_examples=10, deadline=None)
@given(samples=st.integers(1, 17), accumulate=st.integers(1, 16), seed=st.integers(0, 99))
def test_accumulation_is_exact(name: str, samples: int, accumulate: int, seed: int):
    torch.manual_seed(seed)
    problem, dtype = ALL[name], torch.float64
    batch = problem.batch(samples, dtype)
    full, value = gradient(problem, batch, samples, dtype)
    parts, same = gradient(problem, batch, -(-samples // accumulate), dtype)
    assert relative(parts, full) <= 1e-12
    assert abs(same - value) <= 1e-12 * max(1, abs(value))


def single_precision(name: str, samples: int, micro_batch: int) -> tuple[float, float]:
    """Error of the accumulated gradient, and the yardstick."""
    torch.manual_seed(3)
    problem, dtype = ALL[name], torch.float32
    batch = problem.batch(samples, dtype)
    full, _ = gradient(problem, batch, samples, dtype)
    error = relative(gradient(problem, batch, micro_batch, dtype)[0], full)
    return error, max(RESOLUTION, permuted(problem, batch, full))


SIZES = ((5, 2), (16, 1))


@pytest.fixture(scope="module")
def single_errors() -> Mapping[str, tuple[float, float]]:
    """By problem and sizes, from a process in which MKL rounds a row alike in batches of any size."""
    done = subprocess.run(
        [sys.executable, "-m", __name__],
        env=os.environ | KERNELS_OF_ANY_SIZE,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", list(ALL))
@pytest.mark.parametrize(("samples", "micro_batch"), SIZES)
def test_single_precision_errs_as_a_permutation_of_the_samples_does(
    single_errors: Mapping[str, tuple[float, float]], name: str, samples: int, micro_batch: int
):
    error, yardstick = single_errors[f"{name} {samples} {micro_batch}"]
    assert error <= 1e-4
    assert error <= 2 * yardstick


def test_naive_accumulation_of_coupled_losses_is_not_exact():
    """The mean over micro-batches of their own losses is off by far more than rounding: the extra pass is needed."""
    torch.manual_seed(0)
    for name in ("in-batch softmax", "batch Dice"):
        problem, dtype = ALL[name], torch.float64
        batch = problem.batch(8, dtype)
        full, _ = gradient(problem, batch, 8, dtype)
        naive = sum(gradient(problem, [t[i : i + 2] for t in batch], 2, dtype)[0] for i in range(0, 8, 2)) / 4
        assert relative(naive, full) > 1e-3


class Dropping(torch.nn.Module):
    """Two towers with dropout: the second pass must draw what the first one drew."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = torch.nn.Linear(5, 4), torch.nn.Linear(5, 4)
        self.drop = torch.nn.Dropout(0.5)

    def forward(self, queries: torch.Tensor, keys: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.one(self.drop(queries)), self.drop(self.two(keys))


def test_random_numbers_are_drawn_again():
    torch.manual_seed(0)
    net, loss = Dropping().double(), InBatchSoftmax()
    batch = [torch.randn(7, 5, dtype=torch.float64), torch.randn(7, 5, dtype=torch.float64)]
    parts = [[tensor[i : i + 3] for tensor in batch] for i in range(0, 7, 3)]
    torch.manual_seed(1)
    value = backward(net, lambda part: net(*part), loss, batch, parts, lambda value: value)
    after = torch.get_rng_state()
    cached = [p.grad.clone() for p in net.parameters()]

    net.zero_grad()
    torch.manual_seed(1)
    rows = tuple(torch.cat(pieces) for pieces in zip(*(net(*part) for part in parts), strict=True))
    whole = loss.value(rows, loss.facts(batch))  # one graph over all micro-batches
    whole.backward()
    assert torch.equal(torch.get_rng_state(), after)
    assert abs(float(whole.detach() - value)) <= 1e-15
    for found, parameter in zip(cached, net.parameters(), strict=True):
        assert relative(found, parameter.grad) <= 1e-14


def normed() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(5, 6), torch.nn.BatchNorm1d(6), torch.nn.ReLU(), torch.nn.Linear(6, 3))


def test_batch_norm_is_flagged_where_it_is_not_exact(caplog: pytest.LogCaptureFixture):
    batch = [torch.randn(4, 5), torch.randint(0, 3, (4,))]
    for micro_batch, eval_mode, flagged in ((4, False, False), (2, True, False), (2, False, True)):
        net = normed().train(not eval_mode)
        caplog.clear()
        with caplog.at_level(logging.WARNING, "peakline"):
            TrainingStep(net, torch.optim.SGD(net.parameters(), lr=0.1), CrossEntropy(), micro_batch)(batch)
        assert ("micro-batches" in caplog.text) is flagged


def test_batch_norm_replaced_is_exact():
    torch.manual_seed(0)
    batch = [torch.randn(5, 5, dtype=torch.float64), torch.randint(0, 3, (5,))]
    net = normed().double()
    assert batch_norm.active(net) == ["1"] and batch_norm.replace(net) == ["1"] and not batch_norm.active(net)
    assert isinstance(net[1], torch.nn.GroupNorm) and net[1].num_groups == 2
    before = [p.detach().clone() for p in net.parameters()]
    found = []
    for micro_batch in (5, 2):
        for p, old in zip(net.parameters(), before, strict=True):
            p.data.copy_(old)
        TrainingStep(net, torch.optim.SGD(net.parameters(), lr=0.1), CrossEntropy(), micro_batch)(batch)
        found.append(torch.cat([p.detach().flatten() for p in net.parameters()]))
    assert relative(*found) <= 1e-14


def test_a_second_forward_pass_updates_no_running_average():
    """Neither where activations are computed again, nor in gradient caching's second pass (pytorch#96136)."""
    from common.training import activation_checkpointing

    torch.manual_seed(0)
    image = torch.randn(4, 5)
    states = []
    for policy in ("none", "blocks", "cheap"):
        net = normed()
        activation_checkpointing.set_levels([net], [activation_checkpointing.UNIFORM[policy]])
        net(image).square().mean().backward()
        states.append((net[1].running_mean.clone(), net[1].running_var.clone(), int(net[1].num_batches_tracked)))
    for mean, variance, tracked in states[1:]:
        assert torch.equal(mean, states[0][0]) and torch.equal(variance, states[0][1]) and tracked == 1


if __name__ == "__main__":
    found = {
        f"{name} {samples} {micro}": single_precision(name, samples, micro) for name in ALL for samples, micro in SIZES
    }
    sys.stdout.write(json.dumps(found))
