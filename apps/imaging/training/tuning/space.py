"""The settings that ``imaging train --tune`` searches. Those that the command line gives are not searched."""

from collections.abc import Sequence, Set
from typing import Any

from apps.imaging.models.networks import registry
from apps.imaging.training.request import TrainRequest
from apps.imaging.volumes.volume import Shape
from common.search.space import Choice, Range, Space

WIDTHS = {"segresnet": "init_filters", "dynunet": "filters", "basicunet": "features", "unet": "channels"}
"""The argument of a network that says how many channels its layers have."""
FACTORS = (0.5, 1.0, 1.5, 2.0)
"""Widths that are tried, against the command line's."""
CHANNELS = 8
"""Channels come in multiples of this: SegResNet normalises groups of them."""
SHARES = (1.0, 0.75, 0.5)
"""Sides of patches that are tried, against the command line's."""

ALWAYS: Space = {
    "learning_rate": Range(5e-4, 8e-3),
    "weight_decay": Range(1e-5, 1e-2),
    "dice": Choice(("sample", "batch")),
    "balance": Choice((0.0, 0.25, 0.5)),
}


def of(request: TrainRequest, fixed: Set[str]) -> tuple[Space, dict[str, Any]]:
    """The space to search, and where in it the training of the command line is.

    Parameters
    ----------
    fixed
        Names of settings that the command line gives: those of ``--set``, ``patch`` and ``layers``.
    """
    recipe, whole = request.recipe, dict(ALWAYS)
    first: dict[str, Any] = {name: getattr(recipe, name) for name in ALWAYS}
    if request.data.dataset.table is None:
        whole["augment"], first["augment"] = Choice(("none", "light", "full")), recipe.augment
    steps = registry.divisors(recipe.network, recipe.arguments)
    patches = [_text(_smaller(recipe.patch, share, steps)) for share in SHARES]
    whole["patch"], first["patch"] = Choice(tuple(dict.fromkeys(patches))), patches[0]
    name = WIDTHS.get(recipe.network)
    if name is not None and request.options.init is None:
        widths = [f"{name}={_text(_scaled(recipe.arguments[name], factor))}" for factor in FACTORS]
        own = f"{name}={_text(_listed(recipe.arguments[name]))}"
        whole["layers"], first["layers"] = Choice(tuple(dict.fromkeys([own, *widths]))), own
    space = {name: dimension for name, dimension in whole.items() if name not in fixed and not _is_single(dimension)}
    return space, {name: first[name] for name in space}


def _smaller(patch: Shape, share: float, steps: Shape) -> list[int]:
    """A patch of such sides, of which two voxels are left where a network's grid is coarsest: one has no deviation."""
    sides = zip(patch, steps, strict=True)
    return [max(min(size, 2 * step), round(size * share / step) * step) for size, step in sides]


def _listed(width: int | list[int]) -> list[int]:
    return width if isinstance(width, list) else [width]


def _scaled(width: int | list[int], factor: float) -> list[int]:
    return [CHANNELS * max(1, round(size * factor / CHANNELS)) for size in _listed(width)]


def _text(numbers: Sequence[int]) -> str:
    return ",".join(map(str, numbers))


def _is_single(dimension: Choice | Range) -> bool:
    return isinstance(dimension, Choice) and len(dimension.values) == 1
