"""A pass of the network over one tile as ``common.memory.costs.trace`` measures it, for ``imaging compress``."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from common.memory.costs.trace import Prepared

PASS = "apps.imaging.compression.traced_pass:one_pass"


def one_pass(*, network: str, arguments: Mapping[str, Any], tile: tuple[int, int, int], backward: bool) -> "Prepared":
    """Prepare a pass over one tile.

    Parameters
    ----------
    network, arguments
        As ``registry.build`` takes them.
    backward
        True if gradients are computed too.
    """
    import torch

    from apps.imaging.compression.shrinking import own_loss
    from apps.imaging.models.networks import registry

    built = registry.build(network, arguments).eval()
    image = torch.zeros(1, arguments["in_channels"], *tile)

    def run() -> None:
        if backward:
            own_loss(built(image)).backward()  # type: ignore[no-untyped-call]
            built.zero_grad(set_to_none=True)
        else:
            with torch.no_grad():
                built(image)

    return built, torch.optim.SGD(built.parameters()), run
