"""Compressed files and encodings: the same rows, whatever a file is packed in."""

import bz2
import codecs
import gzip
from pathlib import Path

import pyarrow as pa
import pytest

from apps.recsys.data import readers
from apps.recsys.data.formats import unpacked
from common.errors import BadInput
from tests.messages import refused

TEXT = "user,item,rating\n" + "".join(f"u{n % 50},Ä{n},{n % 5 + 1}\n" for n in range(3000))


def zstd(content: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    return bytes(sink.getvalue())


PACKINGS = {"": bytes, ".gz": gzip.compress, ".bz2": bz2.compress, ".zst": zstd}


@pytest.mark.parametrize("suffix", PACKINGS)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be"])
def test_packings_and_encodings(tmp_path: Path, suffix: str, encoding: str) -> None:
    path = tmp_path / f"a.csv{suffix}"
    mark = codecs.BOM_UTF16_BE if encoding == "utf-16-be" else b""
    path.write_bytes(PACKINGS[suffix](mark + TEXT.encode(encoding)))
    source = readers.open_source(path, readers.Columns())
    assert source.columns == readers.Columns("user", "item", "rating")
    rows = [row for batch in readers.batches(source, ["item", "rating"], number="rating") for row in batch.to_pylist()]
    assert rows == [{"item": f"Ä{n}", "rating": n % 5 + 1} for n in range(3000)]
    with unpacked.open_text(path) as stream:
        assert stream.read() == TEXT


def test_a_window_that_is_too_large_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.csv.zst"
    content = bytearray(zstd(TEXT.encode()))
    content[4:6] = bytes([content[4] & ~32, (27 - 10) << 3])  # 128 MiB, as with --long
    path.write_bytes(content)
    with refused(BadInput, path, "128 MiB", 8, "--long"):
        readers.open_source(path, readers.Columns())


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    for suffix in (".gz", ".bz2", ".zst"):
        path = tmp_path / f"a.csv{suffix}"
        path.write_bytes(b"user,item\n1,2\n")
        with refused(BadInput, path):
            readers.open_source(path, readers.Columns())


def test_bytes_behind_packed_data_are_refused(tmp_path: Path) -> None:
    for suffix in (".gz", ".bz2"):
        path = tmp_path / f"a.csv{suffix}"
        path.write_bytes(PACKINGS[suffix](b"user,item\n1,2\n") + b"3,4\n")
        with refused(BadInput, path):
            source = readers.open_source(path, readers.Columns())
            list(readers.batches(source, ["item"]))


def test_unpacking_is_priced_by_the_files_own_window(tmp_path: Path) -> None:
    paths = {}
    for suffix, pack in PACKINGS.items():
        paths[suffix] = tmp_path / f"a.csv{suffix}"
        paths[suffix].write_bytes(pack(TEXT.encode()))
    prices = {suffix: unpacked.unpacking_bytes(path) for suffix, path in paths.items()}
    assert prices[""] == 0 < prices[".gz"] < prices[".zst"] < prices[".bz2"] < 8 << 20
    content = bytearray(paths[".zst"].read_bytes())
    content[4:6] = bytes([content[4] & ~32, (23 - 10) << 3])  # 8 MiB
    paths[".zst"].write_bytes(content)
    assert unpacked.unpacking_bytes(paths[".zst"]) > 8 << 20
    assert readers.open_source(paths[".zst"], readers.Columns()).unpacking_bytes > 8 << 20
