"""Sizes of tiles and patches: as the command line writes them, and smaller ones to measure or to propose."""

from collections.abc import Iterator, Sequence

from apps.imaging.volumes.volume import Shape


def text(triple: Sequence[int]) -> str:
    """A shape as the command line writes it.

    Examples
    --------
    >>> text((96, 96, 64))
    '96,96,64'
    """
    return ",".join(map(str, triple))


def smaller(sides: Shape, divisors: Shape) -> Iterator[Shape]:
    """Shapes of about two thirds and a half of each side, as far as they differ from it and from each other.

    Parameters
    ----------
    divisors
        Required divisor of each side; no side is less than that.

    Examples
    --------
    >>> list(smaller((96, 96, 16), (16, 16, 16)))
    [(64, 64, 16), (48, 48, 16)]
    >>> list(smaller((32, 32, 16), (16, 16, 16)))
    [(16, 16, 16)]
    """
    last = sides
    for share in (2 / 3, 1 / 2):
        x, y, z = (max(step, int(share * side) // step * step) for side, step in zip(sides, divisors, strict=True))
        if (x, y, z) != last:
            yield (last := (x, y, z))


def halves(sides: Shape, divisors: Shape) -> Iterator[Shape]:
    """Shapes in which one side after the other is halved, the longest first.

    Parameters
    ----------
    divisors
        Required divisor of each side; the shapes end when no side can be halved.

    Examples
    --------
    >>> list(halves((32, 16, 8), (8, 8, 8)))
    [(16, 16, 8), (8, 16, 8), (8, 8, 8)]
    """
    while True:
        divisible = [axis for axis in range(3) if sides[axis] % (2 * divisors[axis]) == 0]
        if not divisible:
            return
        longest = max(divisible, key=sides.__getitem__)
        x, y, z = (side // 2 if axis == longest else side for axis, side in enumerate(sides))
        yield (sides := (x, y, z))
