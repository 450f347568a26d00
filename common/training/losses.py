"""Losses that any application may use: as sums and counts, or as rows if they couple the samples of a batch."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from common.training.gradcache import Batch

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class CrossEntropy:
    """Mean cross-entropy over all targets that are not ignored; samples may have different numbers of them.

    Attributes
    ----------
    target
        Index of the batch's tensor of classes, integers (B, ...) for logits (B, C, ...).
    ignored
        Targets with this value are left out.
    """

    target: int = 1
    ignored: int = -1

    def counts(self, batch: Batch) -> tuple["Tensor"]:
        """Return the number of targets that are not ignored."""
        return ((batch[self.target] != self.ignored).sum(),)

    def sums(self, outputs: "Tensor", batch: Batch) -> tuple["Tensor"]:
        """Return the cross-entropy summed over them."""
        from torch.nn.functional import cross_entropy

        return (cross_entropy(outputs, batch[self.target], ignore_index=self.ignored, reduction="sum"),)


@dataclass(frozen=True, slots=True)
class SampledSoftmax:
    """Cross-entropy of the positive key against sampled negatives; samples share no terms, so it is a sum over them.

    The network returns queries (B, D), positive keys (B, D), and negative keys (B, N, D), or (N, D) if all queries
    share them.

    Attributes
    ----------
    temperature
        Logits are divided by it.
    """

    temperature: float = 1.0

    def counts(self, batch: Batch) -> tuple["Tensor"]:
        """Return the number of samples."""
        return (_number(batch),)

    def sums(self, outputs: "tuple[Tensor, Tensor, Tensor]", batch: Batch) -> tuple["Tensor"]:
        """Return the cross-entropy summed over queries."""
        import torch

        queries, positives, negatives = outputs
        negative_scores = (
            queries @ negatives.T if negatives.dim() == 2 else torch.einsum("bd,bnd->bn", queries, negatives)
        )
        logits = torch.cat([(queries * positives).sum(1, keepdim=True), negative_scores], 1) / self.temperature
        return ((torch.logsumexp(logits, 1) - logits[:, 0]).sum(),)


@dataclass(frozen=True, slots=True)
class InBatchSoftmax:
    """Cross-entropy of each query's own key against the keys of all other samples, which couples all samples.

    The network returns queries (B, D) and keys (B, D).

    Attributes
    ----------
    temperature
        Logits are divided by it.
    ids
        Index of the batch's tensor of key ids, if there is one: samples with the same key are then no negatives.
    """

    temperature: float = 1.0
    ids: int | None = None

    def rows(self, outputs: "tuple[Tensor, Tensor]", batch: Batch) -> "tuple[Tensor, ...]":
        """Return queries and keys."""
        return outputs

    def facts(self, batch: Batch) -> "tuple[Tensor, ...]":
        """Return the ids of the keys, if there are any."""
        return () if self.ids is None else (batch[self.ids],)

    def value(self, rows: "tuple[Tensor, ...]", facts: "tuple[Tensor, ...]") -> "Tensor":
        """Return the mean over the samples."""
        import torch

        queries, keys = rows
        logits = queries @ keys.T / self.temperature
        positives = torch.arange(len(logits), device=logits.device)
        for ids in facts:
            same = ids[:, None] == ids
            same[positives, positives] = False
            logits = logits.masked_fill(same, -torch.inf)
        return torch.nn.functional.cross_entropy(logits, positives)


def _number(batch: Batch) -> "Tensor":
    import torch

    return torch.tensor(len(batch[0]), dtype=torch.float32, device=batch[0].device)
