"""Accumulated gradients are the full batch's: over all parameters, for every loss, however the batch is cut."""

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from apps.imaging.losses import IGNORED, BatchDiceCrossEntropy, DiceCrossEntropy
from common.training.losses import CrossEntropy, InBatchSoftmax, SampledSoftmax
from common.training.step import TrainingStep

Tensor = torch.Tensor


class Towers(torch.nn.Module):
    """Queries and keys of users and items; sampled keys where the batch has some."""

    def __init__(self) -> None:
        super().__init__()
        self.users, self.items = torch.nn.Embedding(20, 6), torch.nn.Embedding(30, 6)
        self.mix = torch.nn.Sequential(torch.nn.Linear(6, 6), torch.nn.Tanh())

    def forward(self, *indices: Tensor) -> tuple[Tensor, ...]:
        return (self.mix(self.users(indices[0])), *(self.items(index) for index in indices[1:]))


def segmenter() -> torch.nn.Module:
    layers = (
        torch.nn.Conv3d(1, 4, 3, padding=1),
        torch.nn.InstanceNorm3d(4, affine=True),
        torch.nn.Tanh(),
        torch.nn.Conv3d(4, 3, 1),
    )
    return torch.nn.Sequential(*layers)


def volumes(samples: int, dtype: torch.dtype, masked: bool = False) -> list[Tensor]:
    images = torch.randn(samples, 1, 4, 5, 6, dtype=dtype)
    classes = torch.randint(0, 3, (samples, 4, 5, 6)).to(torch.uint8)
    if masked:
        classes[torch.rand(classes.shape) < torch.rand(samples, 1, 1, 1)] = IGNORED
    return [images, classes]


def sequences(samples: int, dtype: torch.dtype) -> list[Tensor]:
    targets = torch.randint(0, 4, (samples, 8))
    for row in targets:
        row[torch.randint(0, 9, ()) :] = -1
    targets[0, 0] = 1
    return [torch.randn(samples, 5, 8, dtype=dtype), targets]


def pairs(samples: int, dtype: torch.dtype, sampled: int = 0) -> list[Tensor]:
    batch = [torch.randint(0, 20, (samples,)), torch.randint(0, 30, (samples,))]
    return batch + ([torch.randint(0, 30, (samples, sampled))] if sampled else [])


CASES = {
    "cross-entropy": (
        lambda: torch.nn.Linear(7, 4),
        lambda n, t: [torch.randn(n, 7, dtype=t), torch.randint(0, 4, (n,))],
        CrossEntropy(),
        1,
    ),
    "masked cross-entropy": (lambda: torch.nn.Conv1d(5, 4, 3, padding=1), sequences, CrossEntropy(), 1),
    "sample Dice": (segmenter, volumes, DiceCrossEntropy(), 1),
    "masked sample Dice": (segmenter, lambda n, t: volumes(n, t, True), DiceCrossEntropy(), 1),
    "batch Dice": (segmenter, volumes, BatchDiceCrossEntropy(), 1),
    "masked batch Dice": (segmenter, lambda n, t: volumes(n, t, True), BatchDiceCrossEntropy(), 1),
    "in-batch softmax": (Towers, pairs, InBatchSoftmax(0.5, ids=1), 2),
    "sampled softmax": (Towers, lambda n, t: pairs(n, t, 5), SampledSoftmax(0.5), 3),
}


class Keep(torch.optim.SGD):
    """Remembers the gradients that it was given."""

    seen: Tensor

    def step(self, closure=None):  # type: ignore[no-untyped-def]
        self.seen = torch.cat([p.grad.flatten().clone() for group in self.param_groups for p in group["params"]])


def gradient(case: str, batch: Sequence[Tensor], micro_batch: int, dtype: torch.dtype) -> tuple[Tensor, float]:
    """All gradients as one vector, and the loss."""
    make, _, loss, inputs = CASES[case]
    torch.manual_seed(1)
    network = make().to(dtype)
    optimizer = Keep(network.parameters())
    value = TrainingStep(network, optimizer, loss, micro_batch, inputs=inputs)(batch)
    return optimizer.seen, float(value)


def relative(a: Tensor, b: Tensor) -> float:
    """Error over size; nothing over nothing is no error."""
    return float((a - b).norm() / b.norm().clamp(min=torch.finfo(b.dtype).tiny))


@pytest.mark.parametrize("case", list(CASES))
@settings(max_examples=12, deadline=None)
@given(samples=st.integers(1, 17), accumulate=st.integers(1, 16), seed=st.integers(0, 99))
def test_accumulation_is_exact(case: str, samples: int, accumulate: int, seed: int):
    torch.manual_seed(seed)
    batch = CASES[case][1](samples, torch.float64)
    full, value = gradient(case, batch, samples, torch.float64)
    micro_batch = -(-samples // accumulate)
    parts, same = gradient(case, batch, micro_batch, torch.float64)
    assert relative(parts, full) <= 1e-12
    assert abs(same - value) <= 1e-12 * max(1, abs(value))
