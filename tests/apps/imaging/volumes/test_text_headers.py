"""NRRD, MetaImage, pairs of files, MGH and Zstandard: the voxels and the place of the same image as NIfTI."""

import bz2
import gzip
import zlib
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from apps.imaging.inference.discovery import find_studies, open_volume
from common.errors import BadInput
from tests.apps.imaging.helpers import output_file, random_model, read_labels, write_nifti
from tests.messages import refused
from tests.promise import kept

TURN = np.array([[0.8, -0.6, 0.0], [0.6, 0.8, 0.0], [0.0, 0.0, -1.0]])
"""Directions of the image's axes, one a column, in right, anterior, superior."""
EDGES = (1.5, 2.0, 3.25)
ORIGIN = (-10.0, 20.0, 5.5)
LPS = np.array([-1.0, -1.0, 1.0])


def affine() -> np.ndarray:
    """Of all images here."""
    matrix = np.eye(4)
    matrix[:3, :3] = TURN * EDGES
    matrix[:3, 3] = ORIGIN
    return matrix


def voxels(dtype: str = "i2") -> np.ndarray:
    return np.random.default_rng(0).normal(100, 20, (11, 9, 7)).astype(dtype)


def whole(path: Path) -> np.ndarray:
    """Voxels (x, y, z)."""
    volume = open_volume(path)
    planes = np.empty(volume.shape[::-1], volume.dtype)
    with volume.open() as reader:
        reader.read(planes[:3])
        reader.read(planes[3:])
    return planes.transpose(2, 1, 0)


def nrrd(path: Path, values: np.ndarray, packed: bytes | None = None, *, data: str = "", **changes: str) -> Path:
    """Write an NRRD file; ``changes`` replace or remove fields."""
    vectors = " ".join(f"({','.join(f'{x:.9g}' for x in column * LPS)})" for column in affine()[:3, :3].T)
    names = {"i2": "short", "u1": "unsigned char", "f4": "float", ">i2": "int16"}
    fields = {
        "type": names[values.dtype.str.lstrip("<|=")],
        "dimension": "3",
        "space": "left-posterior-superior",
        "sizes": " ".join(map(str, values.shape)),
        "space_directions": vectors,
        "kinds": "domain domain domain",
        "endian": "big" if values.dtype.str[0] == ">" else "little",
        "encoding": "raw",
        "space_origin": f"({','.join(f'{x:.9g}' for x in np.array(ORIGIN) * LPS)})",
        **changes,
        **({"data_file": data} if data else {}),
    }
    lines = [f"{name.replace('_', ' ')}: {value}" for name, value in fields.items() if value]
    content = values.tobytes("F") if packed is None else packed
    header = "\n".join(["NRRD0004", "# a comment", *lines, "a key:=a value", "", ""]).encode()
    path.write_bytes(header + (b"" if data else content))
    if data and "/" not in data:
        path.with_name(data).write_bytes(content)
    return path


def meta(path: Path, values: np.ndarray, packed: bytes | None = None, *, data: str = "LOCAL", **changes: str) -> Path:
    """Write a MetaImage file."""
    fields = {
        "ObjectType": "Image",
        "NDims": "3",
        "BinaryData": "True",
        "BinaryDataByteOrderMSB": str(values.dtype.str[0] == ">"),
        "CompressedData": str(packed is not None),
        "TransformMatrix": " ".join(f"{x:.9g}" for x in (TURN * LPS[:, None]).T.ravel()),
        "Offset": " ".join(f"{x:.9g}" for x in np.array(ORIGIN) * LPS),
        "ElementSpacing": " ".join(map(str, EDGES)),
        "DimSize": " ".join(map(str, values.shape)),
        "ElementType": {"i2": "MET_SHORT", "u1": "MET_UCHAR", "f4": "MET_FLOAT"}[values.dtype.str[1:]],
        **changes,
        "ElementDataFile": data,
    }
    content = values.tobytes("F") if packed is None else packed
    header = "".join(f"{name} = {value}\n" for name, value in fields.items()).encode()
    path.write_bytes(header + (content if data == "LOCAL" else b""))
    if data != "LOCAL" and "/" not in data and "%" not in data:
        path.with_name(data).write_bytes(content)
    return path


@pytest.mark.parametrize("dtype", ["<i2", "|u1", "<f4", ">i2"])
def test_every_format_has_the_same_voxels_at_the_same_place(tmp_path: Path, dtype: str) -> None:
    values = voxels(dtype)
    raw = values.tobytes("F")
    paths = [
        nrrd(tmp_path / "a.nrrd", values),
        nrrd(tmp_path / "b.nrrd", values, gzip.compress(raw), encoding="gzip"),
        nrrd(tmp_path / "c.nrrd", values, bz2.compress(raw), encoding="bzip2"),
        nrrd(tmp_path / "d.nhdr", values, data="d.raw"),
        nrrd(tmp_path / "e.nrrd", values, b"skipped" + raw, byte_skip="-1"),
        meta(tmp_path / "f.mha", values),
        meta(tmp_path / "g.mha", values, zlib.compress(raw)),
        meta(tmp_path / "h.mhd", values, data="h.raw"),
        meta(tmp_path / "i.mhd", values, zlib.compress(raw), data="i.zraw"),
        meta(tmp_path / "j.mhd", values, b"skipped" + raw, data="j.raw", HeaderSize="-1", CompressedData="False"),
    ]
    for path in paths:
        assert open_volume(path).dtype == np.dtype(dtype)
        np.testing.assert_array_equal(whole(path), values)
        np.testing.assert_allclose(open_volume(path).affine, affine(), atol=1e-6)
    assert len({open_volume(path).identity() for path in paths}) == len(paths)
    found, left_out = find_studies([tmp_path])
    assert [Path(study.input).name for study in found] == sorted(path.name for path in paths) and not left_out


def test_pairs_mgh_and_zstandard(tmp_path: Path) -> None:
    zstandard = pytest.importorskip("zstandard")
    values, place = voxels("<f4"), affine()
    nib.save(nib.Nifti1Pair(values, place), tmp_path / "pair.hdr")
    nib.save(nib.MGHImage(values, place), tmp_path / "mgh.mgz")
    plain = write_nifti(tmp_path / "plain.nii", values, place)
    (tmp_path / "packed.nii.zst").write_bytes(zstandard.compress(plain.read_bytes()))
    for name in ("pair.hdr", "pair.img", "mgh.mgz", "packed.nii.zst"):
        np.testing.assert_array_equal(whole(tmp_path / name), values)
        np.testing.assert_allclose(open_volume(tmp_path / name).affine, place, atol=1e-6)
    found, left_out = find_studies([tmp_path])
    assert [Path(one.input).name for one in found] == ["mgh.mgz", "packed.nii.zst", "pair.hdr", "plain.nii"]
    assert not left_out
    (tmp_path / "pair.img").unlink()
    with refused(BadInput, tmp_path / "pair.hdr"):
        open_volume(tmp_path / "pair.hdr")
    (tmp_path / "packed.nii.zst").write_bytes(zstandard.compress(plain.read_bytes())[:-200])
    with refused(BadInput, tmp_path / "packed.nii.zst", "truncated"):
        open_volume(tmp_path / "packed.nii.zst")
    large = write_nifti(tmp_path / "large.nii", np.random.default_rng(0).normal(size=(80, 80, 40)), place)
    (tmp_path / "packed.nii.zst").write_bytes(zstandard.compress(large.read_bytes())[:-200])
    with refused(BadInput, tmp_path / "packed.nii.zst", "truncated"):
        whole(tmp_path / "packed.nii.zst")


def test_analyze_does_not_say_which_side_is_left(tmp_path: Path) -> None:
    nib.save(nib.AnalyzeImage(voxels(), np.diag([-1.0, 1.0, 2.0, 1.0])), tmp_path / "old.img")
    with refused(BadInput, "Analyze", "--repair header"):
        open_volume(tmp_path / "old.hdr")
    volume = open_volume(tmp_path / "old.hdr", repair=frozenset({"header"}))
    np.testing.assert_allclose(volume.affine[:3, :3], np.diag([-1.0, 1.0, 2.0]))


def _header_error(path: Path, *facts: object) -> None:
    with refused(BadInput, path, *facts) as refusal:
        open_volume(path)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("changes", "facts"),
    [
        ({"type": "block"}, ["type 'block'"]),
        ({"encoding": "txt"}, ["encoding 'txt'"]),
        ({"space": ""}, ["space ''", "left-posterior-superior"]),
        ({"dimension": "4", "sizes": "3 11 9 7"}, ["not a three-dimensional image"]),
        ({"space_directions": "none (1,0,0) (0,1,0)"}, ["space directions"]),
        ({"space_directions": "(0,0,0) (1,0,0) (0,1,0)"}, ["no inverse"]),
        ({"space_units": '"m" "m" "m"'}, ["space units"]),
        ({"sizes": "11 9 70000"}, ["truncated"]),
        ({"sizes": ""}, ["no 'sizes'"]),
        ({"endian": ""}, ["endian"]),
        ({"data": "/etc/hostname"}, ["/etc/hostname", "folder of the header"]),
        ({"data": "../a.raw"}, ["../a.raw", "folder of the header"]),
        ({"data": "LIST"}, ["LIST"]),
    ],
)
def test_nrrd_headers_that_are_refused(tmp_path: Path, changes: dict[str, str], facts: list[str]) -> None:
    path = nrrd(tmp_path / "a.nrrd", voxels(), **changes)
    if changes.get("data") == "LIST":
        (tmp_path / "LIST").unlink()
    _header_error(path, *facts)


@pytest.mark.parametrize(
    ("changes", "facts"),
    [
        ({"ElementType": "MET_ASCII_CHAR"}, ["ElementType"]),
        ({"ElementNumberOfChannels": "3"}, ["ElementNumberOfChannels"]),
        ({"BinaryData": "False"}, ["BinaryData"]),
        ({"NDims": "2", "DimSize": "11 9"}, ["not a three-dimensional image"]),
        ({"DimSize": "11 9 x"}, ["not a readable MetaImage header"]),
        ({"Offset": "0 0 nan"}, ["not a readable MetaImage header"]),
        ({"data": "/etc/hostname"}, ["/etc/hostname", "folder of the header"]),
        ({"data": "../a.raw"}, ["../a.raw", "folder of the header"]),
        ({"data": "slice%03d.raw 1 7 1"}, ["slice%03d.raw"]),
    ],
)
def test_metaimage_headers_that_are_refused(tmp_path: Path, changes: dict[str, str], facts: list[str]) -> None:
    _header_error(meta(tmp_path / "a.mhd", voxels(), **changes), *facts)


def test_a_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "secret.raw").write_bytes(voxels().tobytes("F"))
    path = meta(tmp_path / "in" / "a.mhd", voxels(), data="b.raw")
    (tmp_path / "in" / "b.raw").unlink()
    (tmp_path / "in" / "b.raw").symlink_to(tmp_path / "secret.raw")
    _header_error(path, "outside its folder")


@pytest.mark.parametrize("packing", ["gzip", "bzip2", "zlib"])
def test_compressed_data_is_bounded_by_the_header(tmp_path: Path, packing: str) -> None:
    pack: Any = {"gzip": gzip.compress, "bzip2": bz2.compress, "zlib": zlib.compress}[packing]
    bomb = pack(voxels().tobytes("F") + bytes(64 << 20))

    def write(content: bytes) -> Path:
        if packing == "zlib":
            return meta(tmp_path / "a.mha", voxels(), content)
        return nrrd(tmp_path / "a.nrrd", voxels(), content, encoding=packing)

    with refused(BadInput, "goes on after the last voxel"):
        whole(write(bomb))
    good = pack(voxels().tobytes("F"))
    with refused(BadInput, "truncated"):
        whole(write(pack(voxels().tobytes("F")[:-2])))
    with refused(BadInput, "a."):
        whole(write(good[: len(good) // 2] + bytes(20)))
    with refused(BadInput, "bytes after the end" if packing == "bzip2" else "a."):
        whole(write(good + b"more"))
    if packing != "zlib":  # several streams are one file, as parallel packers write them
        half = len(voxels().tobytes("F")) // 2
        parts = pack(voxels().tobytes("F")[:half]), pack(voxels().tobytes("F")[half:])
        np.testing.assert_array_equal(whole(write(b"".join(parts))), whole(write(good)))


@pytest.mark.parametrize("name", ["a.nrrd", "a.mha", "a.mgz", "a.mgh", "a.nii.zst", "a.nii.gz"])
@pytest.mark.parametrize("left", [60, 400])
def test_a_truncated_file_is_named_once_and_not_as_another_format(tmp_path: Path, name: str, left: int) -> None:
    zstandard = pytest.importorskip("zstandard")
    path, values = tmp_path / name, voxels()
    if name == "a.nrrd":
        nrrd(path, values)
        left += 400  # of the header
    elif name == "a.mha":
        meta(path, values)
        left += 400
    elif name.startswith("a.mg"):
        nib.save(nib.MGHImage(values.astype(np.int32), affine()), path)
    else:
        write_nifti(tmp_path / "whole.nii", values, affine())
        content = (tmp_path / "whole.nii").read_bytes()
        path.write_bytes(zstandard.compress(content) if name.endswith("zst") else gzip.compress(content))
    path.write_bytes(path.read_bytes()[:left])
    with pytest.raises(BadInput) as caught:
        whole(path)
    assert str(caught.value).count("a.") == 1, caught.value
    assert ("NIfTI" in caught.value.public) == (".nii" in name), caught.value.public


def test_damaged_zstandard_is_said(tmp_path: Path) -> None:
    pytest.importorskip("zstandard")
    (tmp_path / "a.nii.zst").write_bytes(b"nothing of it")
    with refused(BadInput, "damaged Zstandard data"):
        open_volume(tmp_path / "a.nii.zst")


def test_studies_of_every_format_are_segmented_alike(run: Any, tmp_path: Path) -> None:
    zstandard = pytest.importorskip("zstandard")
    random_model(tmp_path / "model")
    values = np.random.default_rng(1).normal(100, 20, (24, 22, 20)).astype(np.int16)
    folder = tmp_path / "in"
    folder.mkdir()
    plain = write_nifti(folder / "nifti.nii", values, affine())
    (folder / "packed.nii.zst").write_bytes(zstandard.compress(plain.read_bytes()))
    nrrd(folder / "nrrd.nrrd", values, gzip.compress(values.tobytes("F")), encoding="gzip")
    meta(folder / "meta.mhd", values, zlib.compress(values.tobytes("F")), data="meta.zraw")
    nib.save(nib.MGHImage(values, affine()), folder / "mgh.mgz")
    done = run("apps.imaging", "infer", folder, "-m", tmp_path / "model", "-o", tmp_path / "out", "--json")
    assert done.code == 0, done.err
    kept(done.record)
    names = [output_file(tmp_path / "out", number + 1).name for number in range(5)]
    assert names == ["meta.nii.gz", "mgh.nii.gz", "nifti.nii.gz", "nrrd.nii.gz", "packed.nii.gz"]
    expected = read_labels(tmp_path / "out" / "nifti.nii.gz")
    for name in names:
        found = nib.load(tmp_path / "out" / name)
        np.testing.assert_allclose(found.affine, affine(), atol=1e-5)
        assert (np.asarray(found.dataobj) != expected).mean() < 1e-3, name  # affines are rounded in other ways
