"""Whatever allocation fails: the step is done again, to the weights of an undisturbed run, and the memory is back."""

import copy
import gc
import subprocess
import sys
import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from common.training import optimizers
from common.training.losses import CrossEntropy, InBatchSoftmax
from common.training.oom_retry import Failure, attempt, repeated
from common.training.step import TrainingStep
from tests.common.training.failing import MESSAGE, Failing

Tensor = torch.Tensor


def network() -> torch.nn.Module:
    torch.manual_seed(0)
    layers = (
        torch.nn.Conv1d(2, 6, 3, padding=1),
        torch.nn.GroupNorm(2, 6),
        torch.nn.Dropout(0.3),
        torch.nn.Conv1d(6, 3, 1),
    )
    return torch.nn.Sequential(*layers).double()


def trained(nth: int, name: str, accumulate: int, clip: float = 0.5) -> tuple[Tensor, TrainingStep, bool]:
    """Weights after three steps, of which the second meets a failure at its ``nth`` allocation."""
    net = network()
    optimizer = optimizers.build(name, net.parameters(), learning_rate=1e-2, weight_decay=0.1)
    step = TrainingStep(net, optimizer, CrossEntropy(), -(-4 // accumulate), clip=clip)
    torch.manual_seed(1)
    batch = [torch.randn(4, 2, 8, dtype=torch.float64), torch.randint(0, 3, (4, 8))]
    raised = False
    for turn in range(3):
        with Failing(nth if turn == 1 else 0) as failing:
            step(batch)
        raised |= failing.raised
    return torch.cat([p.detach().flatten() for p in net.parameters()]), step, raised


@pytest.mark.parametrize("name", optimizers.NAMES)
@settings(max_examples=15, deadline=None)
@given(nth=st.integers(1, 180), accumulate=st.sampled_from([1, 3]))
def test_one_failure_changes_no_bit(name: str, nth: int, accumulate: int):
    """Forward, backward, clipping, update: the same half is done again, with the same random numbers."""
    calm, _, _ = trained(0, name, accumulate)
    found, step, _ = trained(nth, name, accumulate)
    assert torch.equal(found, calm)
    assert step.micro_batch == -(-4 // accumulate)


def test_failures_are_met_everywhere():
    """The property above is about something: failures do happen, in the gradients and in the update."""
    met = [trained(nth, "adafactor", 1)[2] for nth in (1, 15, 30, 45, 60)]
    assert all(met)


class Fails(torch.nn.Module):
    """Raises as an allocator does, for more than ``fits`` samples, or as often as told."""

    def __init__(self, inner: torch.nn.Module, *, fits: int = 99, times: int = 0) -> None:
        super().__init__()
        self.inner, self.fits, self.times = inner, fits, times

    def forward(self, *inputs: Tensor) -> Tensor:
        if len(inputs[0]) > self.fits or self.times > 0:
            self.times -= 1
            raise RuntimeError(MESSAGE)
        return self.inner(*inputs)


BATCH = [torch.randn(4, 2, 8, dtype=torch.float64), torch.randint(0, 3, (4, 8))]


def test_a_second_failure_halves_the_micro_batch():
    net, shrunk = Fails(network(), times=2), []
    step = TrainingStep(net, torch.optim.SGD(net.parameters()), CrossEntropy(), 4, on_shrink=shrunk.append)
    step(BATCH)
    assert shrunk == [2]


def test_failures_in_one_step_after_the_other_halve_it_too():
    net, shrunk = Fails(network()), []
    step = TrainingStep(net, torch.optim.SGD(net.parameters()), CrossEntropy(), 4, on_shrink=shrunk.append)
    for _ in range(3):
        net.times = 1
        step(BATCH)
    assert shrunk == [2]


def test_a_coupled_loss_goes_on_with_smaller_micro_batches():
    class Towers(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = torch.nn.Linear(5, 4), torch.nn.Linear(5, 4)

        def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
            return self.one(a), self.two(b)

    torch.manual_seed(0)
    batch, found = [torch.randn(6, 5, dtype=torch.float64), torch.randn(6, 5, dtype=torch.float64)], []
    towers = Towers().double()
    for fits in (6, 2):
        net = Fails(copy.deepcopy(towers), fits=fits)
        step = TrainingStep(net, torch.optim.SGD(net.parameters(), lr=0.1), InBatchSoftmax(), 6, inputs=2)
        step(batch)
        found.append(torch.cat([p.detach().flatten() for p in net.parameters()]))
    assert step.micro_batch == 2
    torch.testing.assert_close(*found, rtol=1e-12, atol=1e-14)


def test_a_parameter_updated_in_backward_is_not_updated_twice():
    """Then the failure is final, and says what it was."""
    net = network()
    optimizer = optimizers.build("sgd", net.parameters(), learning_rate=0.1)
    step = TrainingStep(net, optimizer, CrossEntropy(), 4, step_in_backward=True)
    next(net.parameters()).register_hook(lambda gradient: (_ for _ in ()).throw(RuntimeError(MESSAGE)))
    with pytest.raises(RuntimeError, match="allocate"):
        step(BATCH)


def test_nothing_of_failed_work_is_kept():
    kept: list[weakref.ref[Tensor]] = []

    def work() -> None:
        large = torch.zeros(1000)
        kept.append(weakref.ref(large))
        raise RuntimeError(MESSAGE)

    failure = attempt(work)
    gc.collect()
    assert isinstance(failure, Failure) and "allocate" in str(failure.error) and kept[0]() is None
    with pytest.raises(RuntimeError, match="allocate"):
        repeated(work)
    assert len(kept) == 3 and all(one() is None for one in kept)
    with pytest.raises(ValueError, match="else"):
        attempt(lambda: (_ for _ in ()).throw(ValueError("something else")))


def test_fp16_scales_clips_and_recovers(monkeypatch: pytest.MonkeyPatch):
    """Scale, backward x k, unscale once, clip, step, update; a failure in between changes nothing."""
    results = []
    for times in (0, 1):
        torch.manual_seed(0)
        net = Fails(torch.nn.Linear(5, 3), times=0)
        optimizer = optimizers.build("adamw", net.parameters(), learning_rate=1e-2)
        step = TrainingStep(net, optimizer, CrossEntropy(), 2, amp="fp16", clip=0.1)
        assert step.scaler is not None
        batch = [torch.randn(4, 5), torch.randint(0, 3, (4,))]
        step(batch)
        net.times = times
        step(batch)
        inf = [torch.full((4, 5), 1e30), batch[1]]
        before, scale = net.inner.weight.detach().clone(), step.scaler.get_scale()
        step(inf)  # overflows float16: skipped, and the scale is halved
        assert torch.equal(net.inner.weight, before) and step.scaler.get_scale() == scale / 2
        state = step.state_dict()
        results.append((before, state))
        other = TrainingStep(net, optimizer, CrossEntropy(), 2, amp="fp16")
        other.load_state_dict(state)
        assert other.state_dict() == state
    assert torch.equal(results[0][0], results[1][0]) and results[0][1] == results[1][1]


WALLED = """
import resource, torch
from common.memory.process import glibc, guard, meter
glibc.pin_thresholds()
torch.set_num_threads(1)
from common.training import optimizers
from common.training.losses import CrossEntropy
from common.training.step import TrainingStep
torch.manual_seed(0)
batch = [torch.randn(32, 8, 16, 16, 16), torch.randint(0, 3, (32, 16, 16, 16))]

def train(wall):
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Conv3d(8, 64, 3, padding=1), torch.nn.Conv3d(64, 3, 1))
    step = TrainingStep(net, optimizers.build("adamw", net.parameters(), learning_rate=1e-3), CrossEntropy(), 32)
    guard.release()
    # Anonymous pages alone: library pages come and go with the memory that the machine has.
    held = meter.anonymous()
    base = meter.resident()
    for turn in range(3):
        if turn == 1 and wall:  # the ceiling falls in mid-training: 32 samples no longer fit
            assert guard.soft_wall(base + wall, threads=0, slack=0)
        step(batch)
    guard.lift_soft_wall()
    weights = torch.cat([p.detach().flatten() for p in net.parameters()])
    del net
    guard.release()
    return weights, step.micro_batch, meter.anonymous() - held

train(0)
calm, whole, _ = train(0)
# One sample needs 12 MiB, 8 need 25, and 32 more than 90.
found, fits, left = train(40 << 20)
assert whole == 32 and fits < 32, fits
assert (found - calm).norm() <= 1e-5 * calm.norm(), float((found - calm).norm())
assert left <= 10 << 20, left
"""


def test_a_wall_of_the_kernel_is_recovered_from():
    done = subprocess.run([sys.executable, "-c", WALLED], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
