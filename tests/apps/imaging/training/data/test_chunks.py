"""Prepared cases as compressed chunks: what is read is what was written, in fewer bytes, and damage is named."""

import os
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from apps.imaging.training.data import chunks
from apps.imaging.training.data.dataset import read_dataset
from apps.imaging.training.data.patch_sampling import STORES, Sampler, Volumes
from apps.imaging.training.data.prepared import load_case
from common.errors import BadInput
from tests.messages import refused

SHAPE = (70, 33, 40)
KEY = "key"


def written(folder: Path, store: str = "float32") -> tuple[Volumes, np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    image = random.standard_normal((2, *SHAPE), np.float32).cumsum(1)
    classes = (image[0] > 2).astype(np.uint8)
    volumes = Volumes(store=store, folder=folder)
    volumes.add(image, classes, key=KEY)
    return volumes, image, classes


@pytest.mark.parametrize("store", STORES)
def test_any_region_is_read_back(store: str, tmp_path: Path) -> None:
    volumes, image, classes = written(tmp_path, store)
    random = np.random.default_rng(1)
    for _ in range(30):
        low = [int(random.integers(size)) for size in SHAPE]
        high = [int(random.integers(first + 1, size + 1)) for first, size in zip(low, SHAPE, strict=True)]
        box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
        values, members = volumes.read(0, tuple(low), tuple(high))  # type: ignore[arg-type]
        assert values.dtype == np.float32 and np.array_equal(values, image.astype(store)[:, *box])
        assert np.array_equal(members, classes[box])
        assert np.array_equal(volumes.read_classes(0, tuple(low), tuple(high)), members)  # type: ignore[arg-type]


def test_training_on_chunks_is_training_on_the_same_patches_in_fewer_bytes(
    dataset: Callable[[str], Path], tmp_path: Path
) -> None:
    found = read_dataset(dataset("msd-hippocampus"))
    stores = Volumes(), Volumes(tmp_path / "cache"), Volumes(folder=tmp_path), Volumes(None, "float16", tmp_path)
    for case in found.cases[:4]:
        prepared = load_case(case, found, [[{"op": "zscore"}]])
        for number, volumes in enumerate(stores):
            volumes.add(*prepared, key=f"{case.name}-{number}")
    batches = [Sampler(volumes, (40, 56, 40), 2, 0, "xyz", augment="full") for volumes in stores]
    for step in range(10):
        in_memory, in_a_file, compressed, in_half = (batch(step) for batch in batches)
        for one, other, third, half in zip(in_memory, in_a_file, compressed, in_half, strict=True):
            assert one.numpy().tobytes() == other.numpy().tobytes() == third.numpy().tobytes()
            assert (one.float() - half.float()).abs().max() < 0.02  # a noise or a gamma curve may enlarge it
    plain = (tmp_path / "cache").stat().st_size
    sizes = [sum(path.stat().st_size for path in tmp_path.glob(f"*-{number}.case")) for number in (2, 3)]
    assert 0.55 * plain < sizes[0] < 0.8 * plain and 0.2 * plain < sizes[1] < 0.45 * plain
    assert sum(sizes) == chunks.disk_bytes(tmp_path)


def test_a_later_run_finds_the_case_and_not_one_of_another_version(tmp_path: Path) -> None:
    first, image, _ = written(tmp_path)
    again = Volumes(folder=tmp_path)
    assert again.reuse(KEY) is True and again.reuse("other") is False
    assert again.shapes == first.shapes and again.channels == 2
    assert np.array_equal(again.points[0], first.points[0]) and len(again.points[0]) == 256
    assert np.array_equal(again.read(0, (0, 0, 0), SHAPE)[0], image)
    path = tmp_path / f"{KEY}.case"
    whole = path.read_bytes()
    for broken in (whole.replace(b'"version": 1', b'"version": 2', 1), whole[:-1], whole[:100], b"", b"\xff" * 9000):
        path.write_bytes(broken)
        assert again.reuse(KEY) is None
    assert len(again) == 1


def test_damage_is_named(tmp_path: Path) -> None:
    volumes, *_ = written(tmp_path)
    path = tmp_path / f"{KEY}.case"
    whole = path.read_bytes()
    cut, flipped, index = whole[:-5], bytearray(whole), bytearray(whole)
    flipped[-40] ^= 1
    index[chunks._HEAD + 3] ^= 0x40
    for broken in (cut, flipped, index, whole[: chunks._HEAD + 8], b""):
        path.write_bytes(broken)
        with refused(BadInput, path, "damaged", "remove", tmp_path):
            volumes.read(0, (0, 0, 0), SHAPE)
    path.unlink()
    with refused(BadInput, path, "damaged"):
        volumes.read(0, (0, 0, 0), SHAPE)
    path.write_bytes(whole)
    volumes.read(0, (0, 0, 0), SHAPE)


def test_a_chunk_that_says_it_is_larger_is_not_unpacked_beyond(tmp_path: Path) -> None:
    """A whole chunk in the wrong place passes the check sum only if the index is of it too."""
    volumes, *_ = written(tmp_path)
    header = volumes._headers[0]
    box = (slice(0, 32), slice(0, 32), slice(0, 32))
    with refused(BadInput, "damaged"):
        chunks.read_chunks(tmp_path / f"{KEY}.case", replace(header, shape=(33, 32, 32)), 0, box, np.empty((32,) * 3))


def test_a_case_that_cannot_be_written_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int, view: memoryview, offset: int) -> None:
        os.pwrite(descriptor, view[:10], offset)
        if offset > chunks._HEAD + 500:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(chunks, "write_at", full)
    with pytest.raises(OSError, match="No space"):
        written(tmp_path)
    assert not [*tmp_path.iterdir()]


def test_a_key_is_of_the_files_and_of_what_is_made_of_them(dataset: Callable[[str], Path]) -> None:
    found = read_dataset(dataset("msd-hippocampus"))
    first, second = found.cases[:2]
    keys = {
        chunks.case_key(case, data, chosen)
        for case in (first, second)
        for data in (found, replace(found, spacing=(2.0, 1.0, 1.0)), replace(found, labels={0: "background", 1: "a"}))
        for chosen in (["float32"], ["float16"])
    }
    assert len(keys) == 12
    assert chunks.case_key(first, found, ["float32"]) in keys


def test_the_check_sum_is_zlibs(tmp_path: Path) -> None:
    """The file's form, read without the module: JSON, the index, the chunks."""
    _, image, _ = written(tmp_path)
    whole = (tmp_path / f"{KEY}.case").read_bytes()
    index = np.frombuffer(whole[chunks._HEAD :], chunks._ROW, count=3 * 3 * 2 * 2)
    start = chunks._HEAD + index.nbytes
    end = int(index["end"][0])
    assert zlib.crc32(whole[start:end]) == index["crc"][0] and index["end"][-1] == len(whole)
    import blosc

    first = np.frombuffer(blosc.decompress(whole[start:end]), np.float32).reshape(32, 32, 32)
    assert np.array_equal(first, image[0, :32, :32, :32])
