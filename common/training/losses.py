"""Losses that any application may use, as sums and counts, or as rows where they couple the samples of a batch."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from common.training.gradcache import Batch

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class CrossEntropy:
    """Mean over the targets that count, of which each sample may have another number.

    Attributes
    ----------
    target
        Which tensor of a batch holds the classes: (B, ...) integers, for logits (B, C, ...).
    ignored
        A target with this value does not count.
    """

    target: int = 1
    ignored: int = -1

    def counts(self, batch: Batch) -> tuple["Tensor"]:
        """Targets that count."""
        return ((batch[self.target] != self.ignored).sum(),)

    def sums(self, outputs: "Tensor", batch: Batch) -> tuple["Tensor"]:
        """Their cross-entropy."""
        from torch.nn.functional import cross_entropy

        return (cross_entropy(outputs, batch[self.target], ignore_index=self.ignored, reduction="sum"),)


@dataclass(frozen=True, slots=True)
class SampledSoftmax:
    """Cross-entropy of the wanted key against sampled ones; a sum over samples, because samples share no terms.

    The network returns queries (B, D), wanted keys (B, D), and sampled keys (B, N, D), or (N, D) where all queries
    share them.
    """

    temperature: float = 1.0

    def counts(self, batch: Batch) -> tuple["Tensor"]:
        """Samples."""
        return (_number(batch),)

    def sums(self, outputs: "tuple[Tensor, Tensor, Tensor]", batch: Batch) -> tuple["Tensor"]:
        """Sum of each query's cross-entropy."""
        import torch

        queries, wanted, sampled = outputs
        others = queries @ sampled.T if sampled.dim() == 2 else torch.einsum("bd,bnd->bn", queries, sampled)
        logits = torch.cat([(queries * wanted).sum(1, keepdim=True), others], 1) / self.temperature
        return ((torch.logsumexp(logits, 1) - logits[:, 0]).sum(),)


@dataclass(frozen=True, slots=True)
class InBatchSoftmax:
    """Cross-entropy of each query's own key against the keys of all other samples: every sample depends on every other.

    The network returns queries (B, D) and keys (B, D).

    Attributes
    ----------
    ids
        Which tensor of a batch says what the keys are, if any: a sample with the same key is then no negative.
    """

    temperature: float = 1.0
    ids: int | None = None

    def rows(self, outputs: "tuple[Tensor, Tensor]", batch: Batch) -> "tuple[Tensor, ...]":
        """Queries and keys."""
        return outputs

    def value(self, rows: "tuple[Tensor, ...]", batch: Batch) -> "Tensor":
        """Mean over the samples."""
        import torch

        queries, keys = rows
        logits = queries @ keys.T / self.temperature
        own = torch.arange(len(logits), device=logits.device)
        if self.ids is not None:
            same = batch[self.ids][:, None] == batch[self.ids]
            same[own, own] = False
            logits = logits.masked_fill(same, -torch.inf)
        return torch.nn.functional.cross_entropy(logits, own)


def _number(batch: Batch) -> "Tensor":
    import torch

    return torch.tensor(len(batch[0]), dtype=torch.float32, device=batch[0].device)
