"""What ``imaging train`` is priced by: its own step and its own validation, for ``common.memory.costs.trace``."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from apps.imaging.training.recipe import Recipe
    from common.memory.costs.trace import Prepared

STEP, TILE = "apps.imaging.training.traced_step:step", "apps.imaging.training.traced_step:tile"


def step(
    *, recipe: Mapping[str, Any], micro_batch: int, parts: int, step_in_backward: str = "off", **knobs: Any
) -> "Prepared":
    """A training step.

    Parameters
    ----------
    recipe
        ``apps.imaging.training.recipe.Recipe`` as a dictionary.
    parts
        Micro-batches: 1, or 2 where gradients are held while another one runs.
    knobs
        The plan's other knobs that ``make_step`` takes.
    """
    import torch

    from apps.imaging.training.recipe import make_step

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

    from apps.imaging.models.networks import registry

    what = _recipe(recipe)
    network = registry.build(what.network, what.arguments).eval()
    image = torch.zeros(1, what.arguments["in_channels"], *what.patch)

    def infer() -> None:
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=amp == "bf16"):
            network(image).float()

    return network, torch.optim.SGD(network.parameters()), infer


def _recipe(recipe: Mapping[str, Any]) -> "Recipe":
    from apps.imaging.training.recipe import Recipe

    return Recipe(**{**recipe, "patch": tuple(recipe["patch"])})
