"""What Dice and cross-entropy need of the class probabilities, with a backward pass written out.

Autograd would keep log-probabilities, probabilities and their products with the masks, each as large as the logits, and
pass over all of them again. Here only the probabilities are kept, and the masks are applied class by class, in pieces
that stay in the processor's cache: with 19 classes and 64 x 80 x 64 voxels the loss takes 0.4 of the processor time (34
milliseconds instead of 80 to 120), with 3 classes 0.75.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class SoftCounts(torch.autograd.Function):
    """Soft overlap, soft size and cross-entropy of each sample, differentiable in the logits."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, truth: Tensor, counted: Tensor, weights: Tensor) -> tuple[Tensor, ...]:
        """Count.

        Parameters
        ----------
        logits
            (B, C, x, y, z).
        truth
            Classes (B, x, y, z) as uint8.
        counted
            1 where a voxel counts, else 0, (B, x, y, z).
        weights
            Of the voxels' cross-entropy, 0 where none counts.

        Returns
        -------
        tuple
            Sums over a sample's voxels of the true class's probability (B, C-1), of each class's (B, C-1), both without
            background, and of the cross-entropy (B,).
        """
        probability = torch.log_softmax(logits, 1)
        index = truth[:, None].long()
        picked = probability.gather(1, index)[:, 0]
        entropy = -(picked * weights).flatten(1).sum(1)
        probability.exp_()
        hit = picked.exp_().mul_(counted)
        # In float64 the sum is the same in any order, once it is rounded.
        both = hit.new_zeros(probability.shape[:2], dtype=torch.float64)
        both.scatter_add_(1, index.flatten(1), hit.flatten(1).double())
        soft = torch.einsum("bcv,bv->bc", probability.flatten(2), counted.flatten(1))
        ctx.save_for_backward(probability, hit, truth, counted, weights)
        return both[:, 1:].to(hit.dtype), soft[:, 1:].contiguous(), entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, both: Tensor, soft: Tensor, entropy: Tensor) -> tuple[Tensor | None, ...]:
        """Derive.

        With ``p`` the probabilities and ``G`` the gradient in them, the softmax's is ``p (G - sum(p G))``; the
        cross-entropy's is ``w (p - t)``, with ``t`` 1 for the true class.
        """
        probability, hit, truth, counted, weights = ctx.saved_tensors
        index, background = truth[:, None].long(), both.new_zeros(len(both), 1)
        both, soft = torch.cat((background, both), 1), torch.cat((background, soft), 1)
        overlap = both.gather(1, index.flatten(1)).view_as(hit).mul_(hit)
        own = weights * entropy[:, None, None, None]
        common = own - overlap  # for each class; ``own`` is for the true class alone
        common -= torch.einsum("bcv,bc->bv", probability.flatten(2), soft).view_as(hit).mul_(counted)
        torch.sub(overlap, own, out=own)
        gradient = torch.empty_like(probability)
        for one in range(probability.shape[1]):
            torch.mul(counted, soft[:, one, None, None, None], out=gradient[:, one])
            gradient[:, one].add_(common).mul_(probability[:, one])
        return gradient.scatter_add_(1, index, own[:, None]), None, None, None
