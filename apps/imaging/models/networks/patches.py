"""Patches and tiles that a network cannot take."""

from apps.imaging.models.networks import registry
from common.errors import UsageError


def check_patch(place: str, patch: tuple[int, int, int], name: str, complete: registry.Arguments) -> None:
    """Refuse a patch that a network cannot halve as often as it does.

    Parameters
    ----------
    place
        Of the patch, for the message.

    Raises
    ------
    UsageError
        With the numbers of which the sides must be multiples, or a patch of one voxel on the coarsest grid.
    """
    steps = registry.divisors(name, complete)
    sides = ",".join(map(str, patch))
    if any(size % step for size, step in zip(patch, steps, strict=True)):
        multiples = str(steps[0]) if len(set(steps)) == 1 else ",".join(map(str, steps))
        raise UsageError(f"{place} {sides}: each side must be a multiple of {multiples} for {name}")
    if has_one_voxel(name, patch, complete):
        raise UsageError(
            f"{place} {sides}: one voxel on the coarsest grid of {name}, which has no deviation to normalise by;"
            f" take {2 * steps[0]},{steps[1]},{steps[2]} or more"
        )


def has_one_voxel(name: str, patch: tuple[int, int, int], complete: registry.Arguments) -> bool:
    """True if a patch is one voxel where the grid is coarsest, which instance normalisation refuses."""
    return name in registry.NETWORKS and name != "segresnet" and patch == registry.divisors(name, complete)
