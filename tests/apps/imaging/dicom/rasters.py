"""Masks from outlines."""

import numpy as np


def filled(points: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Voxels whose centre is inside, by the even-odd rule: each vertical edge turns over what is to its right."""
    mask = np.zeros(shape, bool)
    for (x, y), (x_next, y_next) in zip(points, np.roll(points, -1, axis=0), strict=True):
        assert x == x_next or y == y_next
        if x == x_next:
            mask[min(y, y_next) : max(y, y_next), x:] ^= True
    return mask
