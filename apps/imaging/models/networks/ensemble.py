"""Several networks as one, whose logits are the mean of theirs."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

MOST_MEMBERS = 16


def mean_of(networks: "Sequence[torch.nn.Module]") -> "torch.nn.Module":
    """Join networks that take the same images and have the same classes.

    Parameters
    ----------
    networks
        Each (B, Cin, x, y, z) -> (B, C, x, y, z).

    Returns
    -------
    torch.nn.Module
        Has them as ``members``, and maps as each of them does.
    """
    import torch

    class Mean(torch.nn.Module):
        """Ensemble whose logits are the mean of its members'."""

        def __init__(self) -> None:
            super().__init__()
            self.members = torch.nn.ModuleList(networks)

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            first, *others = self.members
            total: torch.Tensor = first(image)
            for network in others:
                total = total + network(image)
            return total / len(self.members)

    return Mean()
