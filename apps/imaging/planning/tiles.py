"""Sizes of tiles and patches: as the command line writes them, and smaller ones to try or to propose."""

from collections.abc import Iterator, Sequence

from apps.imaging.volumes.volume import Shape


def text(triple: Sequence[int]) -> str:
    """A shape as the command line writes it."""
    return ",".join(map(str, triple))


def smaller(sides: Shape, steps: Shape) -> Iterator[Shape]:
    """Shapes of about two thirds and a half of each side, in whole steps."""
    for share in (2 / 3, 1 / 2):
        x, y, z = (max(step, int(share * side) // step * step) for side, step in zip(sides, steps, strict=True))
        yield x, y, z


def halves(sides: Shape, steps: Shape) -> Iterator[Shape]:
    """Shapes with one side after the other halved, the longest first, as long as that is whole steps."""
    while True:
        halved = [axis for axis in range(3) if sides[axis] % (2 * steps[axis]) == 0]
        if not halved:
            return
        longest = max(halved, key=sides.__getitem__)
        x, y, z = (side // 2 if axis == longest else side for axis, side in enumerate(sides))
        yield (sides := (x, y, z))
