"""Which blocks are computed again: what they keep and cost, and the choice among them."""

import gc
import weakref
from itertools import product

import torch
from hypothesis import given
from hypothesis import strategies as st

from common.training import recomputation
from common.training.recomputation import Level, Segment

FLOAT = 4


class Block(torch.nn.Module):
    """A convolution, and an activation function that keeps its result."""

    def __init__(self, channels: int, results: int) -> None:
        super().__init__()
        self.convolution = torch.nn.Conv3d(channels, results, 3, padding=1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = self.convolution(image).sigmoid()
        return made


def measured() -> list[Segment]:
    network, image = torch.nn.Sequential(Block(1, 4), torch.nn.Tanh(), Block(4, 2)), torch.zeros(1, 1, 8, 8, 8)
    return recomputation.measure(network, [network[0], network[2]], lambda: network(image))


def test_what_blocks_keep_and_cost() -> None:
    voxels = 8**3
    before, first, between, last, after = measured()
    assert (first.block, last.block) == (0, 1) and before.block is between.block is after.block is None
    # The convolution keeps the image, the sigmoid its own result; tanh keeps its result, the last block's argument.
    assert (first.inputs, first.inside, first.expensive) == tuple(FLOAT * voxels * size for size in (1, 4, 4))
    assert between.inside == FLOAT * voxels * 4 and between.levels == (Level.KEEP,)
    assert (last.inputs, last.inside, last.expensive) == (0, FLOAT * voxels * 2, FLOAT * voxels * 2)
    assert before.inside == after.inside == 0
    operations = 2 * voxels * 27 * 4
    pointwise = FLOAT * voxels * 4
    assert first.again[Level.CHEAP] == pointwise
    assert first.again[Level.RECOMPUTE] == 2 * pointwise + operations / recomputation.OPERATIONS_A_BYTE
    assert first.again[Level.KEEP] == 0


def test_hooks_are_removed_and_no_tensor_is_left() -> None:
    network, made = torch.nn.Sequential(Block(1, 2)), []

    def run() -> None:
        made.append(weakref.ref(network(torch.zeros(1, 1, 4, 4, 4)).untyped_storage()))

    gc.disable()
    try:
        recomputation.measure(network, [network[0]], run)
        assert made[0]() is None
    finally:
        gc.enable()
    assert not network[0]._forward_hooks and not network[0]._forward_pre_hooks


sizes = st.integers(0, 50)
segments = st.lists(st.tuples(st.booleans(), sizes, sizes, sizes, sizes, sizes, sizes), min_size=1, max_size=6).map(
    lambda rows: [_segment(index, *row) for index, row in enumerate(rows)]
)


def _segment(
    index: int, fixed: bool, inputs: int, inside: int, expensive: int, widest: int, cheap: int, more: int
) -> Segment:
    again = {Level.KEEP: 0.0, Level.CHEAP: float(cheap), Level.RECOMPUTE: float(cheap + more)}
    return Segment(None if fixed else index, inputs, inside, expensive, widest, again)


@given(segments, st.sampled_from([0.0, 0.3, 0.5, 0.8, 1.0]))
def test_no_other_choice_within_the_limit_takes_less_time(costs: list[Segment], share: float) -> None:
    highest = recomputation.peak(costs, [Level.KEEP] * len(costs))
    lowest = recomputation.peak(costs, [each.levels[-1] for each in costs])
    limit = highest - share * (highest - lowest)
    every = [
        sum(each.again[level] for each, level in zip(costs, levels, strict=True))
        for levels in product(*(each.levels for each in costs))
        if recomputation.peak(costs, levels) <= limit
    ]
    chosen = recomputation.choose(costs, share)
    levels = [chosen.get(each.block, Level.KEEP) if each.block is not None else Level.KEEP for each in costs]
    assert recomputation.peak(costs, levels) <= limit
    assert sum(each.again[level] for each, level in zip(costs, levels, strict=True)) == min(every)
    if share == 0:
        assert min(every) == 0


def test_the_last_block_is_spared() -> None:
    """All its activations are alive when its backward pass begins, whether it kept them or not."""
    blocks = [Block(1, 8), Block(8, 8), Block(8, 2)]
    network, image = torch.nn.Sequential(*blocks), torch.zeros(1, 1, 8, 8, 8)
    costs = recomputation.measure(network, blocks, lambda: network(image))
    levels = recomputation.choose(costs, 1.0)
    assert levels[2] is Level.KEEP and levels[0] is not Level.KEEP
