"""Grids for property tests."""

from hypothesis import strategies as st

from common.tiling.grid import TileGrid, count


@st.composite
def grids(draw: st.DrawFn, *, size: int, tile: int, least: int = 1, overlaps: tuple[float, ...], most: int) -> TileGrid:
    """Grids of at most ``most`` tiles of ``least`` to ``tile`` voxels, over sides of 1 to ``size`` voxels.

    Tiles are no smaller than that leaves; which axis has many of them is drawn, so none has to be discarded.
    """
    overlap = draw(st.sampled_from(overlaps))
    shape = draw(st.tuples(*[st.integers(1, size)] * 3))
    fewest = [count(side, tile, overlap) for side in shape]
    sides, left = [0, 0, 0], most
    for axis in draw(st.permutations(range(3))):
        others = 1
        for other in range(3):
            others *= fewest[other] if other != axis and not sides[other] else 1
        smallest = next(side for side in range(least, tile + 1) if count(shape[axis], side, overlap) * others <= left)
        sides[axis] = draw(st.integers(smallest, tile))
        left //= count(shape[axis], sides[axis], overlap)
    flips = draw(st.tuples(*[st.booleans()] * 3))
    return TileGrid(shape, (sides[0], sides[1], sides[2]), overlap, flips)
