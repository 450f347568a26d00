"""Accumulation is exact, and a failed allocation changes nothing but the micro-batch."""

import copy
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from apps.imaging.training.losses.labels import IGNORED, BatchDiceCrossEntropy, DiceCrossEntropy
from common.training.step import TrainingStep

Tensor = torch.Tensor


class MaskedCrossEntropy:
    """Mean over the tokens that count, of which each sample has another number."""

    def counts(self, batch: Sequence[Tensor]) -> tuple[Tensor]:
        return ((batch[1] >= 0).sum(),)

    def sums(self, outputs: Tensor, batch: Sequence[Tensor]) -> tuple[Tensor]:
        return (torch.nn.functional.cross_entropy(outputs, batch[1], ignore_index=-1, reduction="sum"),)


class Keep(torch.optim.SGD):
    """Remembers the gradients it was given."""

    def step(self, closure=None):  # type: ignore[no-untyped-def]
        parameters = [p for group in self.param_groups for p in group["params"]]
        self.seen = torch.cat([p.grad.flatten().clone() for p in parameters])
        return super().step(closure)


def network(classes: int = 3) -> torch.nn.Module:
    torch.manual_seed(1)
    layers = (
        torch.nn.Conv3d(1, 4, 3, padding=1),
        torch.nn.InstanceNorm3d(4),
        torch.nn.Tanh(),
        torch.nn.Conv3d(4, classes, 1),
    )
    return torch.nn.Sequential(*layers).double()


def gradient(batch: Sequence[Tensor], micro_batch: int, loss: object, net: torch.nn.Module) -> tuple[Tensor, Tensor]:
    optimizer = Keep(net.parameters(), lr=0.1)
    value = TrainingStep(net, optimizer, loss, micro_batch)(batch)  # type: ignore[arg-type]
    return optimizer.seen, value


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm().clamp(min=torch.finfo(b.dtype).tiny))  # nothing over nothing is no error


@settings(max_examples=25, deadline=None)
@given(samples=st.integers(1, 9), micro_batch=st.integers(1, 9), masked=st.booleans(), seed=st.integers(0, 99))
def test_accumulated_dice_and_cross_entropy_equal_the_full_batch(samples, micro_batch, masked, seed):
    torch.manual_seed(seed)
    images = torch.randn(samples, 1, 4, 5, 6, dtype=torch.float64)
    classes = torch.randint(0, 3, (samples, 4, 5, 6)).to(torch.uint8)
    if masked:
        classes[torch.rand(classes.shape) < torch.rand(samples, 1, 1, 1)] = IGNORED
    full, value = gradient([images, classes], samples, DiceCrossEntropy(), network())
    parts, same = gradient([images, classes], min(micro_batch, samples), DiceCrossEntropy(), network())
    assert relative(parts, full) <= 1e-12
    assert abs(float(same - value)) <= 1e-12 * max(1, abs(float(value)))


@settings(max_examples=25, deadline=None)
@given(lengths=st.lists(st.integers(0, 7), min_size=1, max_size=9), micro_batch=st.integers(1, 9))
def test_accumulated_masked_cross_entropy_equals_the_full_batch(lengths, micro_batch):
    torch.manual_seed(len(lengths))
    lengths[0] += 1
    inputs = torch.randn(len(lengths), 5, 8, dtype=torch.float64)
    targets = torch.randint(0, 4, (len(lengths), 8))
    for row, length in zip(targets, lengths, strict=True):
        row[length:] = -1
    net = torch.nn.Conv1d(5, 4, 1).double()
    same = copy.deepcopy(net)
    full, _ = gradient([inputs, targets], len(lengths), MaskedCrossEntropy(), net)
    parts, _ = gradient([inputs, targets], micro_batch, MaskedCrossEntropy(), same)
    assert relative(parts, full) <= 1e-12


def test_losses_equal_monai():
    from monai.losses import DiceCELoss

    torch.manual_seed(0)
    logits, classes = torch.randn(3, 4, 6, 6, 6, dtype=torch.float64), torch.randint(0, 4, (3, 6, 6, 6))
    batch = [logits, classes.to(torch.uint8)]
    ours, coupled = DiceCrossEntropy(), BatchDiceCrossEntropy()
    of_samples = sum(s / c for s, c in zip(ours.sums(logits, batch), ours.counts(batch), strict=True))
    of_batch = coupled.value(coupled.rows(logits, batch), coupled.facts(batch))
    for value, together in ((of_samples, False), (of_batch, True)):
        reference = DiceCELoss(to_onehot_y=True, softmax=True, include_background=False, batch=together)
        # MONAI's smoothing constants are float32.
        assert abs(float(value - reference(logits, classes[:, None]))) < 1e-4
    assert abs(float(of_samples - of_batch)) > 1e-4


def test_ignored_voxels_change_nothing():
    torch.manual_seed(0)
    logits, classes = torch.randn(1, 3, 4, 4, 4), torch.randint(0, 3, (1, 4, 4, 4)).to(torch.uint8)
    classes[:, :2] = IGNORED
    loss, other = DiceCrossEntropy(), logits.clone()
    other[:, :, :2] = 17.0
    for a, b in zip(loss.sums(logits, [logits, classes]), loss.sums(other, [logits, classes]), strict=True):
        assert torch.equal(a, b)


class Fails(torch.nn.Module):
    """Raises as an allocator does when it sees more than ``fits`` samples at once."""

    def __init__(self, inner: torch.nn.Module, fits: int) -> None:
        super().__init__()
        self.inner, self.fits = inner, fits

    def forward(self, image: Tensor) -> Tensor:
        if len(image) > self.fits:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp:119] DefaultCPUAllocator: can't allocate memory")
        return self.inner(image)


def test_a_failed_allocation_repeats_the_step_with_smaller_micro_batches():
    torch.manual_seed(0)
    batch = [torch.randn(5, 1, 4, 4, 4, dtype=torch.float64), torch.randint(0, 3, (5, 4, 4, 4)).to(torch.uint8)]
    plain, failing = network(), Fails(network(), 2)
    shrunk: list[int] = []
    for net in (plain, failing):
        optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
        step = TrainingStep(net, optimizer, DiceCrossEntropy(), 5, clip=1.0, on_shrink=shrunk.append)
        for _ in range(3):
            step(batch)
    assert shrunk == [3, 2] and step.micro_batch == 2
    for a, b in zip(plain.parameters(), failing.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10)


def test_other_errors_and_single_samples_that_do_not_fit_are_raised():
    batch = [torch.randn(2, 1, 4, 4, 4, dtype=torch.float64), torch.zeros(2, 4, 4, 4, dtype=torch.uint8)]
    net = Fails(network(), 0)
    with pytest.raises(RuntimeError, match="allocate"):
        TrainingStep(net, torch.optim.SGD(net.parameters()), DiceCrossEntropy(), 2)(batch)
    broken = torch.nn.Conv3d(7, 3, 1).double()
    with pytest.raises(RuntimeError, match="channels"):
        TrainingStep(broken, torch.optim.SGD(broken.parameters()), DiceCrossEntropy(), 2)(batch)
