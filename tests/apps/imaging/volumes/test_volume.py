"""One contract for every volume, whatever file it comes from: what ``apps.imaging.volumes.volume`` promises.

``tests/apps/imaging/volumes/subjects.py`` has one of each kind, with the values that nibabel, pydicom or SciPy give.
"""

import os
import shutil
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from apps.imaging.volumes import volume as volumes
from apps.imaging.volumes.geometry import resample
from apps.imaging.volumes.nonzero_crop import Cropped
from apps.imaging.volumes.spline import Limits, SplineReader
from apps.imaging.volumes.streaming import ResamplingReader
from apps.imaging.volumes.volume import PlaneReader, Volume, block_planes, blocks, scaled, spacing
from common.errors import BadInput
from tests.apps.imaging.dicom_files import NAME
from tests.apps.imaging.volumes.subjects import SUBJECTS, Subject

SHAPE = (40, 33, 6)


@pytest.fixture(scope="module", params=SUBJECTS)
def subject(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Subject:
    """One volume of each kind."""
    return SUBJECTS[request.param](tmp_path_factory.mktemp("subject"), SHAPE, 0)


def stored(volume: Volume, planes: int | None = None) -> npt.NDArray[Any]:
    """An array for planes (z, y, x), filled with what no volume here holds, so that a voxel left out shows."""
    x, y, z = volume.shape
    return np.full((z if planes is None else planes, y, x), 77, volume.dtype)


def whole(volume: Volume) -> npt.NDArray[Any]:
    """All stored planes (z, y, x), in one piece."""
    out = stored(volume)
    with volume.open() as reader:
        reader.read(out)
    return out


def in_pieces(reader: PlaneReader, out: npt.NDArray[Any], sizes: list[int]) -> npt.NDArray[Any]:
    """Planes read in pieces of these sizes, the last one as often as is needed."""
    start = 0
    while start < len(out):
        size = min(sizes[0] if len(sizes) == 1 else sizes.pop(0), len(out) - start)
        reader.read(out[start : start + size])
        start += size
    return out


def test_the_header_says_what_the_contract_asks_for(subject: Subject) -> None:
    volume = subject.open()
    assert isinstance(volume.shape, tuple) and [type(size) for size in volume.shape] == [int] * 3
    assert volume.shape == subject.values.shape
    assert volume.affine.shape == (4, 4) and volume.affine.dtype == np.float64
    assert volume.affine[3].tolist() == [0, 0, 0, 1] and np.isfinite(volume.affine).all()
    assert abs(np.linalg.det(volume.affine)) > 1e-6
    assert isinstance(volume.dtype, np.dtype) and volume.dtype.kind in "iuf"
    assert isinstance(volume.slope, float) and volume.slope != 0 and isinstance(volume.intercept, float)
    assert isinstance(volume.reader_bytes, int) and volume.reader_bytes > 0


def test_voxels_lie_where_the_file_says(subject: Subject) -> None:
    volume = subject.open()
    np.testing.assert_allclose(volume.affine, subject.affine, atol=1e-4)
    np.testing.assert_allclose(spacing(volume.affine), np.linalg.norm(subject.affine[:3, :3], axis=0), rtol=1e-4)


def test_values_are_those_of_other_libraries(subject: Subject) -> None:
    """In their order along x, y and z; what is not finite comes as it is stored."""
    volume = subject.open()
    found = scaled(volume, whole(volume)).transpose(2, 1, 0)
    assert found.dtype == np.float32
    if subject.exact:
        np.testing.assert_array_equal(found, subject.values.astype(np.float32))
    else:
        np.testing.assert_allclose(found, subject.values, rtol=1e-5, atol=1e-2)


@pytest.mark.parametrize("sizes", [[1], [2], [5], [1, 3, 1]], ids=str)
def test_pieces_are_the_whole(subject: Subject, sizes: list[int]) -> None:
    volume = subject.open()
    expected = whole(volume)
    with volume.open() as reader:
        found = in_pieces(reader, stored(volume), list(sizes))
    assert found.tobytes() == expected.tobytes()


def test_planes_go_into_part_of_a_larger_array(subject: Subject) -> None:
    """As the ring of planes under a row of tiles asks for: the rest of it stays as it was."""
    volume = subject.open()
    ring = stored(volume, volume.shape[2] + 2)
    with volume.open() as reader:
        reader.read(ring[1:-1])
    assert ring[1:-1].tobytes() == whole(volume).tobytes()
    assert (ring[[0, -1]] == 77).all()


def test_reading_again_gives_the_same(subject: Subject) -> None:
    """After a reader that was left in the middle, and while another one is open."""
    volume = subject.open()
    first = whole(volume)
    with volume.open() as abandoned:
        abandoned.read(stored(volume, 1))
    one, other = stored(volume), stored(volume)
    with volume.open() as left, volume.open() as right:
        for z in range(volume.shape[2]):
            left.read(one[z : z + 1])
            right.read(other[z : z + 1])
    for found in (one, other, whole(volume), whole(subject.open())):
        assert found.tobytes() == first.tobytes()


def test_blocks_are_the_values(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    volume = subject.open()
    x, y, z = volume.shape
    plane = x * y * volume.dtype.itemsize
    for size in (1, 2 * plane, 2 * plane + 1, 1 << 30):
        monkeypatch.setattr(volumes, "BLOCK_BYTES", size)
        assert block_planes(volume) == min(z, max(1, size // plane))
        found = list(blocks(volume))
        assert {block.dtype for block in found} == {np.dtype(np.float32)}
        assert max(len(block) for block in found) == block_planes(volume)
        np.testing.assert_array_equal(np.concatenate(found), scaled(volume, whole(volume)))


@pytest.mark.parametrize(("low", "high"), [((0, 0, 0), (1, 1, 1)), ((1, 0, 2), (4, 3, 5)), ((0, 2, 1), (3, 6, 6))])
def test_any_box_is_a_part_of_the_whole(subject: Subject, low: Any, high: Any) -> None:
    volume = subject.open()
    low = tuple(min(start, size - 1) for start, size in zip(low, volume.shape, strict=True))
    high = tuple(min(max(stop, start + 1), size) for start, stop, size in zip(low, high, volume.shape, strict=True))
    box = Cropped(volume, low, high)
    x, y, z = (slice(start, stop) for start, stop in zip(low, high, strict=True))
    assert box.shape == tuple(stop - start for start, stop in zip(low, high, strict=True))
    assert whole(box).tobytes() == whole(volume)[z, y, x].tobytes()
    np.testing.assert_allclose(box.affine @ [0, 0, 0, 1], volume.affine @ [*low, 1])
    np.testing.assert_array_equal(box.affine[:3, :3], volume.affine[:3, :3])


@pytest.mark.parametrize("kind", ["linear", "spline"])
def test_pieces_of_another_grid_are_the_whole(subject: Subject, kind: str) -> None:
    volume = subject.open()
    values = scaled(volume, whole(volume)).transpose(2, 1, 0)
    if not np.isfinite(values).all():
        pytest.skip("between values that are not finite nothing is defined")
    shape = tuple(size + 3 for size in volume.shape)
    limits = Limits.of([values.transpose(2, 1, 0)], None)

    def reader(planes: PlaneReader) -> PlaneReader:
        if kind == "linear":
            return ResamplingReader(volume, planes, shape)
        return SplineReader(volume, planes, shape, (), nearest=None, limits=limits)

    found = []
    for sizes in ([shape[2]], [1], [2, 1, 4]):
        with volume.open() as planes:
            found.append(in_pieces(reader(planes), np.full(shape[::-1], 77, np.float32), sizes))
    assert found[0].tobytes() == found[1].tobytes() == found[2].tobytes()
    if kind == "linear":
        np.testing.assert_allclose(found[0].transpose(2, 1, 0), resample(values, shape), rtol=1e-5, atol=1e-2)


def test_the_same_content_has_the_same_identity_wherever_it_lies(subject: Subject, tmp_path: Path) -> None:
    copy = tmp_path / f"DOE_JANE{''.join(subject.path.suffixes)}"
    (shutil.copytree if subject.path.is_dir() else shutil.copyfile)(subject.path, copy)
    identity = subject.open().identity()
    assert len(identity) == 64 and int(identity, 16) >= 0
    assert subject.reopen(copy).identity() == subject.open().identity() == identity


def test_a_description_names_nobody(subject: Subject, tmp_path: Path) -> None:
    copy = tmp_path / f"DOE_JANE{''.join(subject.path.suffixes)}"
    (shutil.copytree if subject.path.is_dir() else shutil.copyfile)(subject.path, copy)
    lines = subject.reopen(copy).describe()
    assert lines and all(line and "\n" not in line for line in lines)
    assert not [line for line in lines for name in ("DOE", NAME.split("^")[0], "nobody", str(tmp_path)) if name in line]


@pytest.mark.parametrize("kind", SUBJECTS)
def test_another_content_has_another_identity(kind: str, tmp_path: Path) -> None:
    found = set()
    for seed in (0, 1):
        folder = tmp_path / str(seed)
        folder.mkdir()
        found.add(SUBJECTS[kind](folder, SHAPE, seed).open().identity())
    assert len(found) == 2


@pytest.mark.parametrize("kind", SUBJECTS)
def test_a_file_cut_short_under_the_reader_is_bad_input(kind: str, tmp_path: Path) -> None:
    """After its header was read: the defect is told in one line, whose public form has no path."""
    subject = SUBJECTS[kind](tmp_path, SHAPE, 0)
    volume = subject.open()
    files = sorted(subject.path.iterdir()) if subject.path.is_dir() else [subject.path]
    for path in files:
        os.truncate(path, path.stat().st_size // 3)
    with pytest.raises(BadInput) as caught:
        whole(volume)
    assert str(subject.path) in str(caught.value) and "\n" not in str(caught.value)
    assert str(tmp_path) not in caught.value.public


LARGE = (
    "nifti plain", "nifti int16", "nifti scaled", "nifti >f8", "dicom axial", "dicom 12 bits", "dicom inverted",
    "dicom scaled by slice", "dicom ExplicitVRBigEndian", "dicom DeflatedExplicitVRLittleEndian", "dicom RLELossless",
    "dicom JPEGLSLossless", "dicom JPEG2000Lossless", "dicom enhanced", "dicom enhanced zip", "dicom zip",
    "dicom tilted", "dicom uneven", "box of nifti", "box of dicom", "box of a repaired series",
)  # fmt: skip
"""Kinds whose readers hold something else; planes are so large that they count."""


@pytest.mark.parametrize("kind", LARGE)
def test_a_reader_holds_what_it_is_priced_at(kind: str, tmp_path: Path) -> None:
    """Python and NumPy allocate no more than the price, not counting the planes; decoders' own memory is priced."""
    volume = SUBJECTS[kind](tmp_path, (700, 600, 5), 0).open()
    out = stored(volume)
    with volume.open() as reader:  # whatever is loaded at the first use
        reader.read(out[:1])
    tracemalloc.start()
    for sizes in ([1], [volume.shape[2]]):
        with volume.open() as reader:
            in_pieces(reader, out, sizes)
        del reader
    used = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert used <= volume.reader_bytes <= 4 * used + (8 << 20)
