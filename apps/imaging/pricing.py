"""What ``imaging train`` is priced by: its own step and its own validation, for ``common.memory.trace``."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from apps.imaging.train import Recipe
    from common.memory.trace import Prepared

STEP, TILE = "apps.imaging.pricing:step", "apps.imaging.pricing:tile"


def step(
    *, recipe: Mapping[str, Any], micro_batch: int, parts: int, step_in_backward: str = "off", **knobs: Any
) -> "Prepared":
    """A training step.

    Parameters
    ----------
    recipe
        ``apps.imaging.train.Recipe`` as a dictionary.
    parts
        Micro-batches: 1, or 2 where gradients are held while another one runs.
    knobs
        The plan's other knobs that ``make_step`` takes.
    """
    import torch

    from apps.imaging.train import make_step

    what = _recipe(recipe)
    network, optimizer, one = make_step(
        what, micro_batch=micro_batch, step_in_backward=step_in_backward == "on", **knobs
    )
    samples, channels = micro_batch * parts, what.arguments["in_channels"]
    images = torch.zeros(samples, channels, *what.patch)
    classes = torch.zeros(samples, *what.patch, dtype=torch.uint8)
    return network, optimizer, lambda: one([images, classes])


def tile(*, recipe: Mapping[str, Any], amp: str) -> "Prepared":
    """The forward pass of one tile, as in validation."""
    import torch

    from apps.imaging import networks

    what = _recipe(recipe)
    network = networks.build(what.network, what.arguments).eval()
    image = torch.zeros(1, what.arguments["in_channels"], *what.patch)

    def infer() -> None:
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=amp == "bf16"):
            network(image).float()

    return network, torch.optim.SGD(network.parameters()), infer


def _recipe(recipe: Mapping[str, Any]) -> "Recipe":
    from apps.imaging.train import Recipe

    return Recipe(**{**recipe, "patch": tuple(recipe["patch"])})
