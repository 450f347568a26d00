"""Dice of held-out cases, whose overlapping tiles are blended as in inference."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from apps.imaging.training.data.patch_sampling import Volumes
from apps.imaging.training.losses.labels import IGNORED
from apps.imaging.training.recipe import OVERLAP, Recipe
from apps.imaging.volumes.volume import Shape
from common.tiling.blend import BoundedBlend
from common.tiling.grid import importance
from common.training.amp import precision
from common.training.distributed.group import ALONE, Group
from common.training.oom_retry import repeated

if TYPE_CHECKING:
    import torch

Dice = npt.NDArray[np.float64]


def mean_dice(
    network: "torch.nn.Module", held_out: Volumes, recipe: Recipe, classes: int, amp: str, group: Group = ALONE
) -> float:
    """Mean Dice of as many held-out cases as the recipe says."""
    some = range(min(len(held_out), recipe.validation_cases))
    dice = repeated(lambda: validate(network, held_out, some, recipe.patch, classes, amp, group))
    network.train()
    return float(np.nanmean(dice))


def validate(
    network: "torch.nn.Module",
    volumes: Volumes,
    indices: Sequence[int],
    patch: Shape,
    classes: int,
    amp: str,
    group: Group = ALONE,
) -> Dice:
    """Dice of cases whose overlapping tiles are blended as in inference.

    Parameters
    ----------
    volumes, indices
        The cases, and which of them.
    patch
        Voxels of a tile.
    amp
        Precision of the network: ``off``, ``bf16`` or ``fp16``.
    group
        The ranks that share the cases out; each gets the Dice of all.

    Returns
    -------
    array (len(indices), classes - 1)
        NaN where neither reference nor prediction has the class.
    """
    import torch

    network.eval()
    device = next(network.parameters()).device
    weights = importance(patch)
    counts = np.zeros((2, len(indices), classes))
    overlap, sizes = counts
    for row, index in enumerate(indices):
        if row % group.world.size != group.world.rank:
            continue
        shape = volumes.shapes[index]
        blend = BoundedBlend(shape, patch, OVERLAP, classes, weights)
        for number, position in enumerate(blend.grid):
            tile = torch.from_numpy(_tile(volumes, index, position, blend))[None].to(device)
            with torch.inference_mode(), torch.autocast(device.type, precision(amp), enabled=amp != "off"):
                logits = network(tile).float()[0].cpu().numpy()
            for block in blend.add(number, logits):
                truth = volumes.read_classes(index, block.low, block.high)
                counted = truth != IGNORED
                truth, guess = truth[counted], block.values.argmax(0)[counted]
                overlap[row] += np.bincount(truth[guess == truth], minlength=classes)
                sizes[row] += np.bincount(guess, minlength=classes) + np.bincount(truth, minlength=classes)
    group.added(torch.from_numpy(counts))
    with np.errstate(invalid="ignore"):
        return (2 * overlap / sizes)[:, 1:]


def _tile(volumes: Volumes, index: int, position: Shape, blend: BoundedBlend) -> npt.NDArray[np.float32]:
    """One tile (channels, x, y, z) of the padded volume; outside of it zeros, which are the mean."""
    tile = np.zeros((volumes.channels, *blend.grid.tile), np.float32)
    corner = [first - before for first, before in zip(position, blend.grid.before, strict=True)]
    start = [max(0, low) for low in corner]
    stop = [
        min(size, low + edge) for size, low, edge in zip(volumes.shapes[index], corner, blend.grid.tile, strict=True)
    ]
    inside = tuple(slice(a - low, b - low) for a, b, low in zip(start, stop, corner, strict=True))
    tile[:, *inside] = volumes.read(index, (start[0], start[1], start[2]), (stop[0], stop[1], stop[2]))[0]
    return tile
