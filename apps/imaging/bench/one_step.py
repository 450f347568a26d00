"""The recipe of a single training step, of which only bytes or values are looked at."""

from collections.abc import Mapping
from typing import Any

from apps.imaging.models.networks import registry
from apps.imaging.training.recipe import Recipe

CLASSES = 3


def one_step(network: str, layers: Mapping[str, Any], *, side: int, batch: int = 1) -> Recipe:
    """Train a network once on patches of one channel: plain AdamW, without clipping, augmentation or validation.

    Parameters
    ----------
    layers
        Arguments of the network that differ from its defaults.
    side
        Voxels of a patch along each axis.
    """
    return Recipe(
        network=network,
        arguments=registry.arguments(network, layers, in_channels=1, out_channels=CLASSES),
        patch=(side, side, side),
        batch=batch,
        steps=1,
        seconds=None,
        learning_rate=1e-3,
        weight_decay=0.0,
        clip=0.0,
        mirror="",
        validation_cases=0,
        fold=None,
        seed=0,
    )
