"""Pixels from every transfer syntax, the same numbers, in bounded memory."""

import struct
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from apps.imaging.dicom import pixels
from apps.imaging.dicom.pixels import check_codestream, clear_unused_bits, decode_rle
from apps.imaging.dicom.series import open_series
from common.errors import BadInput
from tests.apps.imaging.dicom_files import read, recode, series
from tests.messages import refused


@pytest.mark.parametrize("syntax", ["RLELossless", "JPEGLSLossless", "DeflatedExplicitVRLittleEndian"])
@pytest.mark.parametrize("signed", [False, True])
def test_lossless_syntaxes_give_the_plain_pixels(tmp_path: Path, syntax: str, signed: bool) -> None:
    stored = series(tmp_path, PixelRepresentation=int(signed), **({} if signed else {"BitsStored": 12, "HighBit": 11}))
    recode(tmp_path, syntax)
    np.testing.assert_array_equal(read(open_series(tmp_path)), stored - 1024.0)


@pytest.mark.parametrize(
    "folder", ["compressed", "compressed_j2k", "compressed_jpeg", "compressed_jpegls", "compressed_rle"]
)
def test_real_compressed_series_are_those_that_pydicom_reads(archives: Callable[[str, str], Path], folder: str) -> None:
    import pydicom

    volume = open_series(archives("weird", f"dicom2nifti/tests/data/generic/{folder}/001"))
    found = read(volume)
    for z, frame in enumerate(volume.slices):
        expected = pydicom.dcmread(volume.path / frame.name).pixel_array
        np.testing.assert_array_equal(found[..., z].T, expected)


def test_real_enhanced_multi_frame_is_in_the_order_of_its_places(archives: Callable[[str, str], Path]) -> None:
    import pydicom

    folder = archives("enhanced-mr", "xa30/In/5_anat-T1w_acq-tfl")
    volume = open_series(folder)
    data = pydicom.dcmread(volume.path / volume.slices[0].name)
    assert volume.shape == (128, 128, 96) and len({frame.number for frame in volume.slices}) == 96
    np.testing.assert_array_equal(
        read(volume).transpose(2, 1, 0), data.pixel_array[[frame.number for frame in volume.slices]]
    )
    groups = data.PerFrameFunctionalGroupsSequence
    for z in (0, 40, 95):
        place = groups[volume.slices[z].number].PlanePositionSequence[0].ImagePositionPatient
        np.testing.assert_allclose((volume.affine @ [0, 0, z, 1])[:3], np.array(place, float) * [-1, -1, 1], atol=1e-3)


def _pydicoms(name: str) -> Path:
    """One of the files that pydicom brings along."""
    from pydicom.data import get_testdata_file

    path = Path(str(get_testdata_file(name, download=False)))
    assert path.is_file()
    return path


DECODED = {
    "693_J2KI.dcm": 1, "CT_small.dcm": 1, "J2K_pixelrep_mismatch.dcm": 1, "JPEG2000.dcm": 1,
    "JPEGLSNearLossless_08.dcm": 1, "JPEGLSNearLossless_16.dcm": 1, "MR_small.dcm": 1, "MR_small_RLE.dcm": 1,
    "MR_small_bigendian.dcm": 1, "MR_small_expb.dcm": 1, "MR_small_implicit.dcm": 1, "MR_small_jp2klossless.dcm": 1,
    "MR_small_jpeg_ls_lossless.dcm": 1, "MR_small_padded.dcm": 1, "examples_overlay.dcm": 1, "image_dfl.dcm": 1,
    "rtdose.dcm": 15, "rtdose_expb.dcm": 15, "rtdose_rle.dcm": 15,
}  # fmt: skip
"""Frames of each file."""


@pytest.mark.parametrize("name", DECODED)
def test_frames_are_those_that_pydicom_decodes(name: str) -> None:
    import pydicom

    from apps.imaging.dicom.headers import HeaderReader
    from apps.imaging.dicom.pixels import PixelReader, check_syntax
    from apps.imaging.volumes.archive import Folder

    path = _pydicoms(name)
    folder = Folder(path.parent)
    frames = HeaderReader(folder).frames(path.name)
    assert len(frames) == DECODED[name]
    pixels = PixelReader(folder)
    for frame in frames:
        check_syntax(path, frame.attributes)
    found = np.stack([pixels.read(frame) for frame in frames])
    pixels.close()
    np.testing.assert_array_equal(found, pydicom.dcmread(path).pixel_array.reshape(found.shape))


@pytest.mark.parametrize(
    ("name", "facts"),
    [
        ("MR_truncated.dcm", ("truncated",)),
        ("no_meta.dcm", ("DICOM",)),
        ("badVR.dcm", ("DICOM",)),
        ("SC_rgb_rle.dcm", ("PixelSpacing",)),
        ("ExplVR_BigEnd.dcm", ("PixelSpacing",)),
        ("liver_1frame.dcm", ("DICOM images",)),
        ("rtstruct.dcm", ("DICOM images",)),
    ],
)
def test_other_files_are_refused_in_one_line(name: str, facts: tuple[str, ...], tmp_path: Path) -> None:
    import shutil

    shutil.copy(_pydicoms(name), tmp_path)
    with refused(BadInput, *facts) as caught:
        read(open_series(tmp_path))
    assert "\n" not in str(caught.value)


def test_unused_bits_are_replaced_by_the_sign() -> None:
    stored = np.array([0x0FFF, 0x8001, 0x0800, 0x07FF], np.uint16)
    assert clear_unused_bits(stored, 12).tolist() == [0x0FFF, 1, 0x0800, 0x07FF]
    assert clear_unused_bits(stored.view(np.int16), 12).tolist() == [-1, 1, -2048, 2047]


def _frame(tmp_path: Path, **changes: Any) -> Any:
    from dataclasses import replace

    series(tmp_path, count=2, **changes)
    return replace(open_series(tmp_path).slices[0].attributes)


def test_a_codestream_larger_than_its_header_is_not_decoded(tmp_path: Path) -> None:
    """A JPEG 2000 image that says 60,000 x 60,000 would take 14 GB to decode; so would a JPEG."""
    from dataclasses import replace

    kind = replace(_frame(tmp_path), syntax="1.2.840.10008.1.2.4.90")
    siz = b"\xff\x4f\xff\x51" + struct.pack(">HH4L4LH", 41, 0, 60000, 60000, 0, 0, 60000, 60000, 0, 0, 1) + bytes(8)
    with refused(ValueError, "60000 x 60000 x 1", "10 x 12"):
        check_codestream(siz, kind)
    jpeg = b"\xff\xd8\xff\xc3" + struct.pack(">HBHHB", 11, 16, 60000, 60000, 1) + bytes(8)
    with refused(ValueError, "60000 x 60000 x 1", "10 x 12"):
        check_codestream(jpeg, replace(kind, syntax="1.2.840.10008.1.2.4.70"))


class Decoder:
    """A decoder of pydicom with the plugins of an installation that has Pillow and nothing else."""

    available_plugins = ("pillow",)


@pytest.mark.parametrize(("bits", "facts"), [(12, ("JPEG Extended", "pip install 'peakline[jpeg]'")), (8, ())])
def test_extended_jpeg_of_12_bits_needs_more_than_pillow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bits: int, facts: tuple[str, ...]
) -> None:
    from dataclasses import replace

    from pydicom.uid import JPEGExtended12Bit

    monkeypatch.setattr(pixels, "_decoder", lambda syntax: Decoder)
    attributes = replace(_frame(tmp_path), syntax=JPEGExtended12Bit, stored=bits)
    with refused(BadInput, *facts) if facts else nullcontext():
        pixels.check_syntax(tmp_path, attributes)


@pytest.mark.parametrize(
    ("syntax", "extra"),
    [("JPEGLosslessSV1", "jpeg"), ("JPEGLSLossless", "dicom"), ("JPEG2000Lossless", "dicom"), ("HTJ2K", "dicom")],
)
def test_a_missing_decoder_names_its_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, syntax: str, extra: str
) -> None:
    from dataclasses import replace

    from pydicom import uid

    monkeypatch.setattr(Decoder, "available_plugins", ())
    monkeypatch.setattr(pixels, "_decoder", lambda syntax: Decoder)
    with refused(BadInput, f"pip install 'peakline[{extra}]'"):
        pixels.check_syntax(tmp_path, replace(_frame(tmp_path), syntax=getattr(uid, syntax)))


def test_rle_stops_at_the_images_size(tmp_path: Path) -> None:
    kind = _frame(tmp_path)
    run = b"\x81\x07" * 100_000  # 128 sevens each: 12.8 MB of a 120-byte plane
    data = struct.pack("<16L", 2, 64, 64 + len(run), *[0] * 13) + run + run
    assert decode_rle(data, kind).tolist() == [[0x0707] * 12] * 10
    with pytest.raises(ValueError, match="early"):
        decode_rle(data[:66], kind)


def test_absurd_rows_of_a_compressed_series_are_refused_by_the_plan(run: Any, tmp_path: Path) -> None:
    """Nothing is allocated for 65,535 x 65,535 pixels: the ceiling is the limit."""
    import pydicom
    from pydicom.uid import RLELossless

    from tests.apps.imaging.helpers import random_model

    series(tmp_path / "study", count=2)
    for path in (tmp_path / "study").iterdir():
        data = pydicom.dcmread(path)
        data.compress(RLELossless)
        data.Rows = data.Columns = 65535
        data.save_as(path)
    random_model(tmp_path / "model", patch=(8, 8, 4))
    done = run("apps.imaging", "infer", tmp_path / "study", "-m", tmp_path / "model", "-o", tmp_path / "out", "--json",
               "--memory", "600MiB")  # fmt: skip
    assert done.code == 3, done.err
    assert done.record["measured"]["peak_bytes"] < 600 << 20
