"""How far accumulated gradients are from the full batch's: over all parameters of a problem, as one vector.

The yardstick in float32 is what merely permuting the samples of the full batch changes. A sum of two commutes, so that
for two samples a permutation changes nothing at all; the yardstick is then float32's own resolution.

MKL picks its kernel by a matrix' size, and so rounds a sample's own row one way among sixteen and another way alone: a
difference that no permutation shows. A report is therefore made with kernels that do not depend on the size.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from common.training.losses import CrossEntropy, InBatchSoftmax, SampledSoftmax
from common.training.step import TrainingStep

if TYPE_CHECKING:
    from common.training.gradcache import CoupledLoss
    from common.training.step import Loss

SAMPLES = (1, 2, 3, 4, 7, 16)
ACCUMULATE = (1, 2, 3, 5, 8, 16)
PERMUTATIONS = 8
KERNELS_OF_ANY_SIZE = {"MKL_CBWR": "AUTO,STRICT"}
"""In the environment before MKL's first product: "Conditional Numerical Reproducibility", oneMKL Developer Guide."""
RESOLUTION = torch.finfo(torch.float32).eps


@dataclass(frozen=True, slots=True)
class Problem:
    """A small network, batches for it, and a loss."""

    network: Callable[[], torch.nn.Module]
    batch: Callable[[int, torch.dtype], list[Tensor]]
    """Samples and the inputs' type to a batch, drawn from torch's generator."""
    loss: "Loss | CoupledLoss"
    inputs: int = 1


class Towers(torch.nn.Module):
    """Queries of users and keys of items: wanted ones, and sampled ones where the batch has some."""

    def __init__(self) -> None:
        super().__init__()
        self.users, self.items = torch.nn.Embedding(20, 6), torch.nn.Embedding(30, 6)
        self.mix = torch.nn.Sequential(torch.nn.Linear(6, 6), torch.nn.Tanh())

    def forward(self, users: Tensor, *items: Tensor) -> tuple[Tensor, ...]:
        """(B,) users and (B, ...) items to vectors."""
        return (self.mix(self.users(users)), *(self.items(index) for index in items))


def vectors(samples: int, dtype: torch.dtype) -> list[Tensor]:
    """Features and a class each."""
    return [torch.randn(samples, 7, dtype=dtype), torch.randint(0, 4, (samples,))]


def sequences(samples: int, dtype: torch.dtype) -> list[Tensor]:
    """Sequences of 8 steps, of which each has another number of targets."""
    targets = torch.randint(0, 4, (samples, 8))
    for row in targets:
        row[int(torch.randint(0, 9, ())) :] = -1
    targets[0, 0] = 1
    return [torch.randn(samples, 5, 8, dtype=dtype), targets]


def pairs(samples: int, dtype: torch.dtype) -> list[Tensor]:
    """Users and items."""
    return [torch.randint(0, 20, (samples,)), torch.randint(0, 30, (samples,))]


def triples(samples: int, dtype: torch.dtype) -> list[Tensor]:
    """Users, items, and five sampled items each."""
    return [*pairs(samples, dtype), torch.randint(0, 30, (samples, 5))]


PROBLEMS: Mapping[str, Problem] = MappingProxyType(
    {
        "cross-entropy": Problem(lambda: torch.nn.Linear(7, 4), vectors, CrossEntropy()),
        "masked cross-entropy": Problem(lambda: torch.nn.Conv1d(5, 4, 3, padding=1), sequences, CrossEntropy()),
        "in-batch softmax": Problem(Towers, pairs, InBatchSoftmax(0.5, ids=1), 2),
        "sampled softmax": Problem(Towers, triples, SampledSoftmax(0.5), 3),
    }
)


class _Keep(torch.optim.SGD):
    """Keeps the gradients that it was given, and changes nothing."""

    seen: Tensor

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        self.seen = torch.cat([parameter.grad.flatten() for parameter in parameters])


def gradient(problem: Problem, batch: Sequence[Tensor], micro_batch: int, dtype: torch.dtype) -> tuple[Tensor, float]:
    """All gradients as one vector, and the loss."""
    torch.manual_seed(1)
    network = problem.network().to(dtype)
    optimizer = _Keep(network.parameters())
    value = TrainingStep(network, optimizer, problem.loss, micro_batch, inputs=problem.inputs)(batch)
    return optimizer.seen, float(value)


def relative(one: Tensor, other: Tensor) -> float:
    """Norm of the difference over the norm; nothing over nothing is no error."""
    return float((one - other).norm() / other.norm().clamp(min=torch.finfo(other.dtype).tiny))


def errors(problem: Problem, dtype: torch.dtype, *, seeds: int) -> dict[str, float]:
    """Largest error over sizes and seeds, and in units of the yardstick."""
    error, ratio = 0.0, 0.0
    for seed in range(seeds):
        for samples in SAMPLES:
            torch.manual_seed(seed)
            batch = problem.batch(samples, dtype)
            full, _ = gradient(problem, batch, samples, dtype)
            yardstick = max(RESOLUTION, permuted(problem, batch, full)) if dtype == torch.float32 else 1.0
            for micro_batch in {-(-samples // accumulate) for accumulate in ACCUMULATE}:
                found = relative(gradient(problem, batch, micro_batch, dtype)[0], full)
                error, ratio = max(error, found), max(ratio, found / yardstick)
    return {"error": error, "over_yardstick": ratio}


def permuted(problem: Problem, batch: Sequence[Tensor], full: Tensor) -> float:
    """The most that permutations of the batch's samples change."""
    orders = [torch.randperm(len(batch[0])) for _ in range(PERMUTATIONS)]
    changed = (gradient(problem, [tensor[order] for tensor in batch], len(order), full.dtype)[0] for order in orders)
    return max(relative(found, full) for found in changed)


def report(problems: Mapping[str, Problem], *, seeds: int = 5) -> dict[str, Any]:
    """Every problem in both precisions, and the worst of all: what the suite bounds. For a process of its own."""
    os.environ.update(KERNELS_OF_ANY_SIZE)
    exact = {name: errors(problem, torch.float64, seeds=seeds) for name, problem in problems.items()}
    single = {name: errors(problem, torch.float32, seeds=seeds) for name, problem in problems.items()}
    return {
        "float64": max(found["error"] for found in exact.values()),
        "float32": max(found["error"] for found in single.values()),
        "over_yardstick": max(found["over_yardstick"] for found in single.values()),
        "problems": {name: {"float64": exact[name]["error"], **single[name]} for name in problems},
    }
