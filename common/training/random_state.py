"""torch's random state, kept and put back, so that a forward pass can be done again with the same dropout."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class RandomState:
    """The generators that a network on one device draws from: the host's, and the device's own."""

    host: "Tensor"
    device: "torch.device"
    on_device: "Tensor | None"

    @classmethod
    def now(cls, device: "torch.device") -> "RandomState":
        """As it is at this moment."""
        import torch

        on_device = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
        return cls(torch.get_rng_state(), device, on_device)

    def restore(self) -> None:
        """Make it so again."""
        import torch

        torch.set_rng_state(self.host)
        if self.on_device is not None:
            torch.cuda.set_rng_state(self.on_device, self.device)
