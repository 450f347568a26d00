"""Compare accumulated gradients with those of the full batch, over all parameters of a problem as one vector.

In float32 the yardstick is the change caused by permuting the samples of the full batch. Addition of two numbers
commutes, so two samples give no change at all; the yardstick is then float32's machine epsilon.

MKL chooses its kernel by matrix size. It therefore rounds the row of one sample differently in a batch of sixteen than
alone, which no permutation shows. ``report`` uses kernels that do not depend on the size.
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
    """A small network, a function that draws batches for it, and a loss."""

    network: Callable[[], torch.nn.Module]
    batch: Callable[[int, torch.dtype], list[Tensor]]
    """Takes the number of samples and the inputs' type, returns a batch drawn from PyTorch's generator."""
    loss: "Loss | CoupledLoss"
    inputs: int = 1


class Towers(torch.nn.Module):
    """Two towers: user queries, and keys of the positive items and of sampled negatives if the batch has them."""

    def __init__(self) -> None:
        super().__init__()
        self.users, self.items = torch.nn.Embedding(20, 6), torch.nn.Embedding(30, 6)
        self.mix = torch.nn.Sequential(torch.nn.Linear(6, 6), torch.nn.Tanh())

    def forward(self, users: Tensor, *items: Tensor) -> tuple[Tensor, ...]:
        """Map (B,) users and (B, ...) items to vectors of 6."""
        return (self.mix(self.users(users)), *(self.items(index) for index in items))


def vectors(samples: int, dtype: torch.dtype) -> list[Tensor]:
    """Return features (samples, 7) and classes (samples,)."""
    return [torch.randn(samples, 7, dtype=dtype), torch.randint(0, 4, (samples,))]


def sequences(samples: int, dtype: torch.dtype) -> list[Tensor]:
    """Return sequences (samples, 5, 8) and targets (samples, 8); each sequence has its own number of targets."""
    targets = torch.randint(0, 4, (samples, 8))
    for row in targets:
        row[int(torch.randint(0, 9, ())) :] = -1
    targets[0, 0] = 1
    return [torch.randn(samples, 5, 8, dtype=dtype), targets]


def pairs(samples: int, dtype: torch.dtype) -> list[Tensor]:
    """Return users and items, (samples,) each."""
    return [torch.randint(0, 20, (samples,)), torch.randint(0, 30, (samples,))]


def triples(samples: int, dtype: torch.dtype) -> list[Tensor]:
    """Return users (samples,), items (samples,) and sampled items (samples, 5)."""
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
    """An optimiser that stores the gradients and changes no parameter."""

    seen: Tensor

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        self.seen = torch.cat([parameter.grad.flatten() for parameter in parameters])


def gradient(problem: Problem, batch: Sequence[Tensor], micro_batch: int, dtype: torch.dtype) -> tuple[Tensor, float]:
    """Return all gradients as one vector, and the loss."""
    torch.manual_seed(1)
    network = problem.network().to(dtype)
    optimizer = _Keep(network.parameters())
    value = TrainingStep(network, optimizer, problem.loss, micro_batch, inputs=problem.inputs)(batch)
    return optimizer.seen, float(value)


def relative(one: Tensor, other: Tensor) -> float:
    """Return the norm of ``one - other`` divided by the norm of ``other``; 0 where both are zero."""
    return float((one - other).norm() / other.norm().clamp(min=torch.finfo(other.dtype).tiny))


def errors(problem: Problem, dtype: torch.dtype, *, seeds: int) -> dict[str, float]:
    """Return the largest relative error over sizes and seeds, as it is and in units of the yardstick."""
    error, ratio = 0.0, 0.0
    for seed in range(seeds):
        for samples in SAMPLES:
            torch.manual_seed(seed)
            batch = problem.batch(samples, dtype)
            full, _ = gradient(problem, batch, samples, dtype)
            yardstick = max(RESOLUTION, permuted(problem, batch, full)) if dtype == torch.float32 else 1.0
            for micro_batch in {-(-samples // accumulate) for accumulate in ACCUMULATE}:
                one = relative(gradient(problem, batch, micro_batch, dtype)[0], full)
                error, ratio = max(error, one), max(ratio, one / yardstick)
    return {"error": error, "over_yardstick": ratio}


def permuted(problem: Problem, batch: Sequence[Tensor], full: Tensor) -> float:
    """Return the largest relative change caused by permuting the batch's samples."""
    orders = [torch.randperm(len(batch[0])) for _ in range(PERMUTATIONS)]
    changed = (gradient(problem, [tensor[order] for tensor in batch], len(order), full.dtype)[0] for order in orders)
    return max(relative(vector, full) for vector in changed)


def report(problems: Mapping[str, Problem], *, seeds: int = 5) -> dict[str, Any]:
    """Return the errors of every problem in both precisions, and the worst of each, which the suite bounds.

    Call it in a fresh process: MKL reads its environment once.
    """
    os.environ.update(KERNELS_OF_ANY_SIZE)
    exact = {name: errors(problem, torch.float64, seeds=seeds) for name, problem in problems.items()}
    single = {name: errors(problem, torch.float32, seeds=seeds) for name, problem in problems.items()}
    return {
        "float64": max(result["error"] for result in exact.values()),
        "float32": max(result["error"] for result in single.values()),
        "over_yardstick": max(result["over_yardstick"] for result in single.values()),
        "problems": {name: {"float64": exact[name]["error"], **single[name]} for name in problems},
    }
