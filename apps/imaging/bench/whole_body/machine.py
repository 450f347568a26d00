"""How fast this machine multiplies: the yardstick for bounds in seconds."""

import time
from collections.abc import Callable

REPEATS = 5


def multiplications(threads: int) -> dict[str, float]:
    """Measure 10^9 multiplications and additions a second in float32.

    Parameters
    ----------
    threads
        Of PyTorch.

    Returns
    -------
    dict
        ``product``: of two matrices of 2048 x 2048; ``convolution``: 3x3x3, 32 to 32 channels, 64x64x64 voxels;
        ``peak``: the larger of the two. Each is the fastest of ``REPEATS``.
    """
    import torch
    from torch.nn.functional import conv3d

    torch.set_num_threads(threads)
    generator = torch.Generator().manual_seed(0)
    one, other = (torch.randn(2048, 2048, generator=generator) for _ in range(2))
    image = torch.randn(1, 32, 64, 64, 64, generator=generator)
    kernel = torch.randn(32, 32, 3, 3, 3, generator=generator)
    with torch.inference_mode():
        product = 2048**3 / _fastest(lambda: one @ other) / 1e9
        convolution = 64**3 * 32 * 32 * 27 / _fastest(lambda: conv3d(image, kernel, padding=1)) / 1e9
    return {"product": product, "convolution": convolution, "peak": max(product, convolution)}


def _fastest(work: Callable[[], object]) -> float:
    """Seconds of the fastest run after one that is not counted."""
    work()
    seconds = []
    for _ in range(REPEATS):
        began = time.monotonic()
        work()
        seconds.append(time.monotonic() - began)
    return min(seconds)
