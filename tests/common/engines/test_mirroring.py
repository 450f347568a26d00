"""Mirroring against its definition, with an engine that is not symmetric."""

import numpy as np
import pytest

from common.engines.mirroring import MirrorEngine, mirror_bytes


class Shifting:
    """Weighs voxels by where they are, so that a mirrored input gives something else."""

    in_channels, out_channels, output, each_alone = 1, 2, "logits", False

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.weights = np.random.default_rng(0).standard_normal((2, *shape)).astype(np.float32)
        self.calls = 0

    def __call__(self, tiles: np.ndarray) -> np.ndarray:
        assert tiles.flags.c_contiguous
        self.calls += 1
        return tiles * self.weights


@pytest.mark.parametrize("axes", [[], [0], [0, 2], [0, 1, 2]])
def test_the_mean_over_all_mirrorings(axes: list[int]) -> None:
    shape = (4, 5, 6)
    tile = np.random.default_rng(1).standard_normal((1, 1, *shape)).astype(np.float32)
    inner = Shifting(shape)
    engine = MirrorEngine(inner, axes)
    found = engine(tile)
    # Mirroring the input and the output is mirroring the weights.
    weights = [inner.weights]
    for axis in axes:
        weights += [np.flip(each, axis + 1) for each in weights]
    np.testing.assert_allclose(found, tile * np.mean(weights, axis=0), atol=1e-5)
    assert inner.calls == 2 ** len(axes) == len(weights)
    assert np.shares_memory(engine(tile), found)


def test_the_price_is_what_it_holds() -> None:
    assert mirror_bytes(batch=1, in_channels=1, out_channels=2, voxels=120) == 4 * 120 * 3
