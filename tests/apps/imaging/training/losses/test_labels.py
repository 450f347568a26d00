"""The balanced cross-entropy: torch's with weights of each sample's classes, exact in parts, and unchanged at 0."""

import pytest
import torch
from torch.nn.functional import cross_entropy

from apps.imaging.training.losses.labels import IGNORED, BatchDiceCrossEntropy, DiceCrossEntropy, dice_cross_entropy


def sample(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (3, 5, 4, 5, 6) and classes, of which 3 is rare, 4 does not occur, and some voxels are ignored."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(3, 5, 4, 5, 6, generator=generator, dtype=torch.float64)
    drawn = torch.rand(3, 4, 5, 6, generator=generator)
    target = torch.bucketize(drawn, torch.tensor([0.6, 0.8, 0.95])).to(torch.uint8)
    target[1, 0] = IGNORED
    return logits, target


@pytest.mark.parametrize("balance", [0.0, 0.5, 1.0])
def test_a_voxel_weighs_by_its_classs_share_of_the_sample(balance: float) -> None:
    logits, target = sample()
    _, entropy = DiceCrossEntropy(balance).sums(logits, [logits, target])
    expected = torch.zeros((), dtype=torch.float64)
    for one, classes in zip(logits, target, strict=True):
        sizes = torch.bincount(classes[classes != IGNORED].long(), minlength=5).double()
        weights = torch.where(sizes > 0, sizes.clamp(min=1) ** -balance, 0)
        mean = cross_entropy(one[None], classes[None].long(), weight=weights, ignore_index=IGNORED)
        expected += mean * sizes.sum()
    assert entropy.item() == pytest.approx(expected.item(), rel=1e-6)


def test_all_classes_count_alike_at_1_and_all_voxels_at_0() -> None:
    logits, target = sample()
    logits[:, :, target[0] == 3] = 0  # a uniform guess, log 5, at the voxels of the rare class
    one, classes = logits[:1], target[:1]
    _, entropy = DiceCrossEntropy(1.0).sums(one, [one, classes])
    each = [cross_entropy(one[0].flatten(1).T[classes.flatten() == k], classes[classes == k].long()) for k in range(4)]
    assert (entropy / classes.numel()).item() == pytest.approx(torch.stack(each).mean().item(), rel=1e-6)
    _, plain = dice_cross_entropy("sample").sums(one, [one, classes])
    assert (plain / classes.numel()).item() == pytest.approx(cross_entropy(one, classes.long()).item(), rel=1e-6)


@pytest.mark.parametrize("kind", [DiceCrossEntropy, BatchDiceCrossEntropy])
def test_parts_of_a_batch_add_up(kind: type) -> None:
    logits, target = sample()
    loss = kind(0.5)
    if kind is DiceCrossEntropy:
        whole = loss.sums(logits, [logits, target])
        parts = [loss.sums(logits[k : k + 1], [logits[k : k + 1], target[k : k + 1]]) for k in range(3)]
        for number, total in enumerate(whole):
            assert total.item() == pytest.approx(sum(part[number].item() for part in parts), rel=1e-12)
    else:
        whole = loss.rows(logits, [logits, target])
        for number, rows in enumerate(whole):
            part = torch.cat(
                [loss.rows(logits[k : k + 1], [logits[k : k + 1], target[k : k + 1]])[number] for k in range(3)]
            )
            assert torch.allclose(rows, part, rtol=1e-12)


def test_a_patch_without_a_counted_voxel_has_no_cross_entropy() -> None:
    logits, target = sample()
    target[:] = IGNORED
    logits.requires_grad_()
    _, entropy = DiceCrossEntropy(0.5).sums(logits, [logits, target])
    entropy.backward()
    assert entropy.item() == 0 and logits.grad is not None and logits.grad.abs().max() == 0
