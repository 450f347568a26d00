"""Damage to the bytes of a file: bits, runs of bytes, numbers at which readers often fail, cuts, moved pieces."""

from collections.abc import Callable

import numpy as np

TELLING = (0, 1, 2, 127, 128, 255, 256, 32767, 32768, 65535, 65536, 2**31 - 1, 2**31, 2**32 - 2, 2**32 - 1)
"""Numbers at which readers often fail."""

Bytes = bytearray
Random = np.random.Generator


def damaged(content: bytes, random: Random, *, header: int) -> bytes:
    """Make one to three changes, most of them among the first ``header`` bytes, where they matter most."""
    changed = bytearray(content)
    for _ in range(int(random.integers(1, 4))):
        end = min(header, len(changed)) if random.random() < 0.7 else len(changed)
        if end < 16:
            break
        change = CHANGES[int(random.integers(len(CHANGES)))]
        changed = change(changed, int(random.integers(end - 8)), random)
    return bytes(changed)


def _bit(content: Bytes, at: int, random: Random) -> Bytes:
    content[at] ^= 1 << int(random.integers(8))
    return content


def _noise(content: Bytes, at: int, random: Random) -> Bytes:
    length = min(int(random.integers(1, 64)), len(content) - at)
    content[at : at + length] = random.bytes(length)
    return content


def _number(content: Bytes, at: int, random: Random) -> Bytes:
    size = int(random.choice((1, 2, 4)))
    value = TELLING[int(random.integers(len(TELLING)))] % 256**size
    content[at : at + size] = value.to_bytes(size, "big" if random.random() < 0.3 else "little")
    return content


def _float(content: Bytes, at: int, random: Random) -> Bytes:
    value = np.float32(random.choice((np.nan, np.inf, -np.inf, 0.0, 1e38, 1e-45)))
    content[at : at + 4] = value.tobytes()
    return content


def _cut(content: Bytes, at: int, random: Random) -> Bytes:
    return content[:at] if random.random() < 0.5 else content[:at] + content[at + int(random.integers(1, 200)) :]


def _moved(content: Bytes, at: int, random: Random) -> Bytes:
    start, length = int(random.integers(len(content))), int(random.integers(1, 400))
    return content[:at] + content[start : start + length] + content[at:]


def _zeros(content: Bytes, at: int, random: Random) -> Bytes:
    length = int(random.integers(1, 200))
    return content[:at] + bytes(length) + content[at + length :]


CHANGES: tuple[Callable[[Bytes, int, Random], Bytes], ...] = (_bit, _noise, _number, _float, _cut, _moved, _zeros)
