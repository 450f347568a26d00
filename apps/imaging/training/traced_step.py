"""The step and the validation of ``imaging train`` as ``common.memory.costs.trace`` measures them."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from apps.imaging.training.recipe import Recipe
    from common.memory.costs.trace import Prepared

STEP, TILE = "apps.imaging.training.traced_step:step", "apps.imaging.training.traced_step:tile"


def step(
    *, recipe: Mapping[str, Any], micro_batch: int, parts: int, step_in_backward: str = "off", **knobs: Any
) -> "Prepared":
    """Prepare a training step.

    Parameters
    ----------
    recipe
        ``apps.imaging.training.recipe.Recipe`` as a dictionary.
    parts
        Micro-batches: 1, or 2 if gradients remain in memory while another one runs.
    knobs
        The plan's other knobs that ``make_step`` takes.

    Returns
    -------
    tuple
        Network, optimiser, and a function that makes the step.
    """
    import torch

    from apps.imaging.training.recipe import make_step

    made = _recipe(recipe)
    network, optimizer, one = make_step(
        made, micro_batch=micro_batch, step_in_backward=step_in_backward == "on", **knobs
    )
    samples, channels = micro_batch * parts, made.arguments["in_channels"]
    images = torch.zeros(samples, channels, *made.patch)
    classes = torch.zeros(samples, *made.patch, dtype=torch.uint8)
    return network, optimizer, lambda: one([images, classes])


def tile(*, recipe: Mapping[str, Any], amp: str) -> "Prepared":
    """Prepare the forward pass of one tile, as in validation; the same kinds of values as ``step``."""
    import torch

    from apps.imaging.models.networks import registry

    made = _recipe(recipe)
    network = registry.build(made.network, made.arguments).eval()
    image = torch.zeros(1, made.arguments["in_channels"], *made.patch)

    def infer() -> None:
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=amp == "bf16"):
            network(image).float()

    return network, torch.optim.SGD(network.parameters()), infer


def _recipe(recipe: Mapping[str, Any]) -> "Recipe":
    from apps.imaging.training.recipe import Recipe

    return Recipe(**{**recipe, "patch": tuple(recipe["patch"])})
