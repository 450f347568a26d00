"""Make the kernel refuse allocations in the middle of a training, and compare the result with an undisturbed one.

A short training in float64 runs once undisturbed, and then again for each failure. At some operator of the forward
pass, the backward pass, the optimiser's step or the validation the soft limit falls. For a transient failure it falls
to the present size of the process and is lifted when memory is released. For a lasting failure it leaves a fraction of
the memory that a step takes, so that only smaller micro-batches fit.
``python -m apps.imaging.bench.promise.training recoveries`` prints the result.
"""

import copy
import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from apps.imaging.models.networks import registry
from apps.imaging.training.data.patch_sampling import Volumes
from apps.imaging.training.recipe import Recipe, make_step
from apps.imaging.training.validation import validate
from common.memory.process import glibc, guard, meter
from common.memory.process.budget import KIB, MIB
from common.training import oom_retry
from common.training.step import TrainingStep

FAILURES = 50
PHASES = ("forward", "backward", "step", "validation")
SIDE, BATCH, STEPS, CLASSES = 16, 4, 2, 3
NETWORK = {"init_filters": 16, "blocks_down": [1, 1, 1], "blocks_up": [1, 1]}
ROOM = 256 * KIB
"""Bytes a transient failure leaves: enough for Python, less than a tensor of this network."""
SHARE = 0.45
"""Share of a step's memory that a lasting failure leaves: too little for the whole batch, enough for one sample."""
FILLING = 64 * KIB
"""Size of the blocks that fill the heap: below glibc's mmap threshold, and less than a tensor of this network."""
TRIES = 100
"""Trainings tried until an allocation fails: late in a phase the remaining allocations may fit."""


class FilledHeap:
    """Allocates the heap's free addresses without touching them, so that only the kernel can provide a tensor's memory.

    After one refused mapping glibc grows its heap instead, and a later limit would never be reached.
    """

    def __init__(self) -> None:
        libc, before = glibc.libc(), glibc.statistics()
        assert libc is not None and before is not None
        self._free, libc.malloc.restype = libc.free, ctypes.c_void_p
        self._blocks: list[int] = []
        while (now := glibc.statistics()) and now.arena == before.arena and (block := libc.malloc(FILLING)):
            self._blocks.append(block)

    def free(self) -> None:
        """Free the blocks."""
        while self._blocks:
            self._free(ctypes.c_void_p(self._blocks.pop()))


@dataclass
class Failure(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Lowers the soft limit before the ``at``-th operator; counts operators throughout."""

    at: int
    wall: Callable[[], int]
    """Returns the bytes that the process may then hold."""
    seen: int = 0
    filled: FilledHeap | None = None

    def __post_init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operator, after lowering the limit if it is the ``at``-th."""
        self.seen += 1
        if self.seen == self.at:
            self.filled = FilledHeap()
            guard.soft_wall(self.wall(), threads=0, slack=0)
        return func(*args, **(kwargs or {}))


@dataclass(slots=True)
class Outcome:
    """The result of a training."""

    weights: torch.Tensor
    dice: Any
    micro_batch: int
    failures: int
    """Allocations that the kernel refused."""
    taken: int
    """Peak bytes of the last step above the size of the process before it."""
    marks: list[int] = field(default_factory=list)
    """Operators run by the end of the last step's forward pass, backward pass and update, and of the validation."""


def recipe() -> Recipe:
    """Return the recipe: network, optimiser and loss."""
    complete = registry.arguments("segresnet", NETWORK, in_channels=1, out_channels=CLASSES)
    return Recipe("segresnet", complete, (SIDE,) * 3, BATCH, STEPS, None, 1e-3, 1e-2, 1.0, "", 1, None, 0, "adafactor")


@contextmanager
def counted_failures(lasting: bool) -> Iterator[list[str]]:
    """Collect the refused allocations' messages; unless ``lasting``, each release lifts the soft limit."""
    messages: list[str] = []
    original = guard.is_out_of_memory

    def recognised(error: BaseException) -> bool:
        if is_one := original(error):
            messages.append(str(error).splitlines()[0][:80])
        return is_one

    def release() -> None:
        if not lasting:
            guard.lift_soft_wall()
        guard.release()

    with mock.patch.object(oom_retry, "is_out_of_memory", recognised), mock.patch.object(oom_retry, "release", release):
        yield messages


def train(at: int, *, lasting: int = 0) -> Outcome:
    """Run two steps and a validation with one failure.

    Parameters
    ----------
    at
        Number of the operator after the first step at which the failure comes; 0: none.
    lasting
        Bytes that the rest of the step may take; 0: a transient failure.
    """
    torch.manual_seed(0)
    network, _, step = make_step(recipe(), micro_batch=BATCH, amp="off", checkpoint="none")
    network.double()
    images = torch.randn(BATCH, 1, SIDE, SIDE, SIDE, dtype=torch.float64)
    classes = torch.randint(0, CLASSES, (BATCH, SIDE, SIDE, SIDE)).to(torch.uint8)
    volumes = Volumes()
    volumes.add(images[0].float().numpy(), classes[0].numpy())
    for _ in range(STEPS - 1):
        step([images, classes])
    base = meter.resident()
    failure = Failure(at, lambda: base + lasting if lasting else meter.resident() + ROOM)
    marks = _marked(step, failure)
    meter.reset_peak()
    with counted_failures(bool(lasting)) as messages:
        with failure:
            step([images, classes])
        marks.append(failure.seen)
        taken = meter.lifetime_peak() - base
        guard.lift_soft_wall()
        single = copy.deepcopy(network).float()
        with failure:
            dice = oom_retry.repeated(lambda: validate(single, volumes, [0], (SIDE,) * 3, CLASSES, "off"))
        marks.append(failure.seen)
        guard.lift_soft_wall()
    if failure.filled is not None:
        failure.filled.free()
    weights = torch.cat([parameter.detach().flatten() for parameter in network.parameters()])
    return Outcome(weights, dice, step.micro_batch, len(messages), taken, marks)


def _marked(step: TrainingStep, failure: Failure) -> list[int]:
    """Return a list that will hold the operators run by the end of the last forward and of the backward pass."""
    marks: list[int] = []
    sums, update = step.loss.sums, step.optimizer.step  # type: ignore[union-attr]

    class Loss:
        counts = staticmethod(step.loss.counts)  # type: ignore[union-attr]

        @staticmethod
        def sums(*arguments: Any) -> Any:
            answer = sums(*arguments)
            marks[:] = [failure.seen]
            return answer

    def marked_update() -> Any:
        marks[1:] = [failure.seen]
        return update()

    step.loss = Loss()
    step.optimizer.step = marked_update  # type: ignore[assignment, method-assign]
    return marks


def report() -> dict[str, Any]:
    """Run all failures and return the numbers that the suite bounds."""
    torch.set_num_threads(1)
    train(0)  # loads code
    undisturbed = train(0)
    random, starts = np.random.default_rng(0), (0, *undisturbed.marks)
    counts = dict.fromkeys(PHASES, 0)
    error, differ, same, left = 0.0, 0, 0, 0
    guard.release()
    base = meter.resident()
    for number in range(FAILURES):
        phase = number % len(PHASES)
        # Every second failure of a forward or backward pass leaves memory for smaller micro-batches only.
        lasting = int(SHARE * undisturbed.taken) if phase < 2 and number // len(PHASES) % 2 else 0
        for _ in range(TRIES):
            done = train(int(random.integers(starts[phase] + 1, starts[phase + 1] + 1)), lasting=lasting)
            if done.failures:
                break
        else:
            raise RuntimeError(f"no allocation of {PHASES[phase]} failed in {TRIES} trainings")
        counts[PHASES[phase]] += 1
        weights = undisturbed.weights
        error = max(error, float((done.weights - weights).norm() / weights.norm()))
        if done.micro_batch == BATCH:
            same += 1
            same_dice = np.array_equal(done.dice, undisturbed.dice, equal_nan=True)
            differ += not (torch.equal(done.weights, weights) and same_dice)
        del done
        guard.release()
        left = max(left, meter.resident() - base)
    return {
        "recovered": sum(counts.values()),
        "by_phase": counts,
        "error": error,
        "same_micro_batch": same,
        "bits_differ": differ,
        "left_mib": round(left / MIB, 2),
    }
