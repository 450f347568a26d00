"""Label planes of a study from finished blocks: on the network's grid or back on the file's, by the model's rule."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from apps.imaging.inference.components.filters import largest_only
from apps.imaging.inference.labeling.agreement import labels_of_block
from apps.imaging.inference.labeling.decision import LogitsToLabels
from apps.imaging.inference.labeling.planes import Array, LabelPlanes, Labels, row_depth
from apps.imaging.inference.labeling.resampling import InverseResampler
from apps.imaging.inference.network_grid import NetworkGrid, restored_channels
from apps.imaging.inference.writing.probabilities import Probabilities
from apps.imaging.volumes.volume import Shape
from common.tiling.blend import Block


def label_planes(
    grid: NetworkGrid,
    channels: int,
    blocks: Iterator[Block],
    to_labels: LogitsToLabels,
    scratch: Path = Path(),
    probabilities: Probabilities | None = None,
) -> Iterator[Labels]:
    """Label planes on the file's own grid, in order.

    Parameters
    ----------
    channels
        Channels of the blocks' values.
    scratch
        Directory on the disk where planes wait whose largest components are kept.
    probabilities
        Takes those of all classes, which filters of the labels leave as they are.

    Yields
    ------
    array (x, y, k)
        Valid until the next one.
    """
    rule = grid.inference
    if rule.largest is None:
        yield from _planes(grid, channels, blocks, to_labels, probabilities)
        return
    values = rule.largest or None
    if not (rule.largest_first and grid.resampled):
        yield from largest_only(_planes(grid, channels, blocks, to_labels, probabilities), values, scratch)
        return
    planes = largest_only(_gathered(grid, grid.tiles.shape, blocks, to_labels), values, scratch)
    kept = (Block((0, 0, number), plane[None].astype(np.float32), last=True) for number, plane in enumerate(planes))
    yield from _restored(grid, 1, 1, kept, to_labels, lambda values: values)


def _planes(
    grid: NetworkGrid,
    channels: int,
    blocks: Iterator[Block],
    to_labels: LogitsToLabels,
    probabilities: Probabilities | None,
) -> Iterator[Labels]:
    if not grid.resampled:
        yield from _gathered(grid, grid.segmented, blocks, to_labels, probabilities)
        return
    restored = grid.inference.restored

    def prepared(values: Array) -> Array:
        if restored == "logits":
            return values
        if restored == "labels":
            return to_labels(values)[None].astype(np.float32)
        return to_labels.probabilities(values, restored)

    kept = restored_channels(grid, channels, to_labels.classes)
    yield from _restored(grid, kept, grid.tiles.tile[2], blocks, to_labels, prepared, probabilities)


def _gathered(
    grid: NetworkGrid,
    shape: Shape,
    blocks: Iterator[Block],
    to_labels: LogitsToLabels,
    probabilities: Probabilities | None = None,
) -> Iterator[Labels]:
    """Label planes on the grid of the blocks."""
    planes = LabelPlanes(shape, row_depth(grid.tiles, shape), to_labels.dtype)
    for block in blocks:
        if probabilities:
            probabilities.keep(block, to_labels.probability_rows(block.values, grid.inference.activation))
        yield from planes.add(block.low, to_labels(block.values), last=block.last)
        del block  # with the engine's array that it is a view of


def _restored(
    grid: NetworkGrid,
    channels: int,
    depth: int,
    blocks: Iterator[Block],
    to_labels: LogitsToLabels,
    prepared: Callable[[Array], Array],
    probabilities: Probabilities | None = None,
) -> Iterator[Labels]:
    """Label planes on the file's grid, of blocks whose values are ``prepared`` and then resampled to it.

    Parameters
    ----------
    channels
        Of the prepared values.
    depth
        Planes of a block at most.
    """
    shape, to_file, rule = grid.segmented, grid.to_file, grid.inference
    planes = LabelPlanes(shape, row_depth(grid.tiles, shape, to_file[2]), to_labels.dtype)
    resampler = InverseResampler(channels, grid.tiles.shape, shape, depth, to_file)
    logits = rule.restored == "logits"
    decide = to_labels if logits else to_labels.of_probabilities()
    for block in blocks:
        block = replace(block, values=prepared(block.values))
        if not probabilities and rule.restored != "labels":
            for low, labels, last in labels_of_block(block, resampler, decide):
                yield from planes.add(low, labels, last=last)
            del block
            continue
        for piece in resampler(block):
            if probabilities:
                rows = to_labels.probability_rows(piece.values, rule.activation) if logits else [(0, piece.values)]
                probabilities.keep(piece, rows)
            if rule.restored == "labels":
                labels = (np.rint(piece.values[0]) if rule.interpolated else piece.values[0]).astype(to_labels.dtype)
            else:
                labels = decide(piece.values)
            yield from planes.add(piece.low, labels, last=piece.last)
            del piece  # before the next one is made
        del block
