"""bzip2 files: all their streams, and nothing else."""

import bz2
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.bunzip import Bunzipped


def unpacked(content: bytes, step: int = 100) -> bytes:
    reader, pieces = Bunzipped(io.BytesIO(content)), []
    while piece := reader.read(step):
        assert len(piece) <= step
        pieces.append(piece)
    return b"".join(pieces)


@given(st.lists(st.binary(max_size=400), min_size=1, max_size=4), st.integers(1, 500))
def test_all_streams_are_read(parts: list[bytes], step: int) -> None:
    assert unpacked(b"".join(map(bz2.compress, parts)), step) == b"".join(parts)


def test_a_large_stream_fills_buffers() -> None:
    values = bytes(range(256)) * 4000
    view = memoryview(bytearray(len(values) + 9))
    reader, filled = Bunzipped(io.BytesIO(bz2.compress(values))), 0
    while got := reader.readinto(view[filled:]):
        filled += got
    assert bytes(view[:filled]) == values


@pytest.mark.parametrize("more", [b"x", b"BZ2", b"\0", bz2.compress(b"b")[:-1]])
def test_what_follows_is_not_ignored(more: bytes) -> None:
    with pytest.raises((OSError, EOFError)):
        unpacked(bz2.compress(b"a" * 1000) + more)


def test_damage_and_a_cut_are_errors() -> None:
    whole = bz2.compress(b"a" * 1000)
    with pytest.raises(EOFError):
        unpacked(whole[:-5])
    with pytest.raises(OSError, match="Invalid"):
        unpacked(b"BZx" + whole[3:])
