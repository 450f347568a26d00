"""Every class of defect has its outcome: accepted, repaired with a note, or refused in one line without the name."""

import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from apps.imaging.dicom.defects import Defect, Outcome, Refusal
from apps.imaging.dicom.series import open_series
from common.errors import BadInput
from tests.apps.imaging.dicom_files import NAME, read, series, write_slice
from tests.messages import refused

AXIAL = (1, 0, 0, 0, 1, 0)
BLANK = np.zeros((10, 12), np.int16)


def _again(folder: Path) -> None:
    """Another instance in the place of a slice."""
    series(folder)
    write_slice(folder / "again.dcm", BLANK, (-40, 30, 12), AXIAL)


def _copies(folder: Path) -> None:
    series(folder)
    shutil.copy(folder / "000.dcm", folder / "copy.dcm")


def _mixed(folder: Path) -> None:
    series(folder)
    write_slice(folder / "late.dcm", BLANK, (0, 0, 0), (0, 1, 0, 0, 0, -1))


def _scout(folder: Path) -> None:
    series(folder)
    image_type = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    write_slice(folder / "scout.dcm", BLANK, (0, 0, 0), (0, 1, 0, 0, 0, -1), ImageType=image_type)


def _uneven(folder: Path) -> None:
    series(folder)
    write_slice(folder / "late.dcm", BLANK, (-40, 30, 12 + 2.5 * 5 + 3.1), AXIAL)


def _tilted(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    for z in range(5):
        write_slice(folder / f"{z}.dcm", BLANK, (0, 0.8 * z, 2.5 * z), AXIAL)


def _scaled(folder: Path) -> None:
    series(folder)
    write_slice(folder / "last.dcm", BLANK, (-40, 30, 12 + 2.5 * 6), AXIAL, RescaleSlope=3)


def _short(folder: Path) -> None:
    series(folder)
    path = sorted(folder.iterdir())[0]
    path.write_bytes(path.read_bytes()[:-100])


def _noise(folder: Path) -> None:
    (folder / "a.dcm").write_bytes(bytes(128) + b"DICM" + b"\x02\x00" * 90)


def _bomb(folder: Path) -> None:
    """A deflated file whose header inflates to a gigabyte."""
    import zlib

    folder.mkdir(exist_ok=True)
    meta = b"\x02\x00\x10\x00UI\x16\x001.2.840.10008.1.2.1.99"
    engine = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    element = b"\x07\x00\x10\x10UN\x00\x00" + (1 << 30).to_bytes(4, "little")
    body = engine.compress(element) + b"".join(engine.compress(bytes(1 << 24)) for _ in range(64)) + engine.flush()
    (folder / "a.dcm").write_bytes(bytes(128) + b"DICM" + meta + body)


def _polyglot(folder: Path) -> None:
    series(folder)
    path = sorted(folder.iterdir())[0]
    path.write_bytes(b"MZ" + path.read_bytes()[2:])


CASES: list[tuple[str, Defect, Outcome, Callable[[Path], Any]]] = [
    ("missing", Defect.MISSING_SLICE, Outcome.REFUSE, lambda f: series(f, skip=(2,))),
    ("uneven", Defect.UNEVEN_SPACING, Outcome.REFUSE, _uneven),
    ("tilted", Defect.GANTRY_TILT, Outcome.REFUSE, _tilted),
    ("mixed", Defect.MIXED_ORIENTATION, Outcome.REFUSE, _mixed),
    ("scout among slices", Defect.LOCALIZER, Outcome.REPAIR, _scout),
    ("scouts only", Defect.LOCALIZER, Outcome.REFUSE, lambda f: series(f, ImageType=["ORIGINAL", "LOCALIZER"])),
    ("two in one place", Defect.DUPLICATE, Outcome.REFUSE, _again),
    ("copies", Defect.DUPLICATE, Outcome.REPAIR, _copies),
    ("scale per slice", Defect.SLICE_SCALE, Outcome.ACCEPT, _scaled),
    ("inverted", Defect.MONOCHROME1, Outcome.ACCEPT, lambda f: series(f, PhotometricInterpretation="MONOCHROME1")),
    ("signed", Defect.SIGNED, Outcome.ACCEPT, series),
    ("12 bits", Defect.SHORT_BITS, Outcome.ACCEPT, lambda f: series(f, BitsStored=12, HighBit=11)),
    ("truncated", Defect.TRUNCATED, Outcome.REFUSE, _short),
    ("corrupt", Defect.CORRUPT, Outcome.REFUSE, _noise),
    ("rows that are not there", Defect.TRUNCATED, Outcome.REFUSE, lambda f: series(f, Rows=65535, Columns=65535)),
    ("deflate bomb", Defect.BOMB, Outcome.REFUSE, _bomb),
    ("program in the preamble", Defect.POLYGLOT, Outcome.ACCEPT, _polyglot),
    (
        "colour",
        Defect.COLOUR,
        Outcome.REFUSE,
        lambda f: series(f, Rows=3, SamplesPerPixel=3, PhotometricInterpretation="RGB"),
    ),
    ("no position", Defect.GEOMETRY, Outcome.REFUSE, lambda f: series(f, ImagePositionPatient=None)),
    ("single", Defect.SINGLE_SLICE, Outcome.REFUSE, lambda f: series(f, count=1)),
    ("high bit", Defect.PIXEL_TYPE, Outcome.REFUSE, lambda f: series(f, BitsStored=12, HighBit=15)),
]


@pytest.mark.parametrize(("defect", "outcome", "make"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_outcomes(tmp_path: Path, defect: Defect, outcome: Outcome, make: Callable[[Path], Any]) -> None:
    make(tmp_path)
    if outcome is Outcome.REFUSE:
        with pytest.raises(Refusal) as caught:
            open_series(tmp_path)
        assert caught.value.defect is defect
        said = str(caught.value)
        assert str(tmp_path) not in caught.value.public
    else:
        volume = open_series(tmp_path)
        assert [found.outcome for found in volume.findings if found.defect is defect] == [outcome]
        assert np.isfinite(read(volume)).all()
        said = "\n".join(volume.describe())
        assert f"{defect}: {outcome}" in said
    assert "PLANTED" in NAME and "PLANTED" not in said


REAL = [
    ("failing/sliceincrement/001", Defect.MISSING_SLICE, Outcome.REFUSE),
    ("failing/sliceincrement/002", Defect.MISSING_SLICE, Outcome.REFUSE),
    ("failing/sliceorientation/001", Defect.MIXED_ORIENTATION, Outcome.REFUSE),
    ("failing/notavolume/001", Defect.SEVERAL_VOLUMES, Outcome.REFUSE),
    ("failing/gantrytilting/001", Defect.GANTRY_TILT, Outcome.REFUSE),
    ("generic/rgb/001", Defect.COLOUR, Outcome.REFUSE),
    ("generic/compressed_jpegls/001", Defect.COMPRESSED, Outcome.ACCEPT),
    ("generic/anatomical/002_non_isotropic", Defect.SLICE_SCALE, Outcome.ACCEPT),
    ("hitachi/anatomical/001_implicit", Defect.SIGNED, Outcome.ACCEPT),
    ("philips_enhanced/anatomical/001_implicit", Defect.MULTI_FRAME, Outcome.ACCEPT),
    ("siemens_multiframe/anatomical/001", Defect.MULTI_FRAME, Outcome.ACCEPT),
    ("hyperfine/anatomical/001", Defect.MULTI_FRAME, Outcome.ACCEPT),
    ("generic/anatomical/001", Defect.SHORT_BITS, Outcome.ACCEPT),
]


@pytest.mark.parametrize(("folder", "defect", "outcome"), REAL, ids=[case[0] for case in REAL])
def test_real_series(archives: Callable[[str, str], Path], folder: str, defect: Defect, outcome: Outcome) -> None:
    path = archives("weird", f"dicom2nifti/tests/data/{folder}")
    if outcome is Outcome.REFUSE:
        with pytest.raises(Refusal) as caught:
            open_series(path)
        assert caught.value.defect is defect
        return
    volume = open_series(path)
    assert defect in [found.defect for found in volume.findings]
    assert read(volume).std() > 0


def test_a_damaged_slice_names_itself_to_the_user_only(tmp_path: Path) -> None:
    from pydicom.uid import RLELossless

    series(tmp_path)
    import pydicom

    for path in tmp_path.iterdir():
        data = pydicom.dcmread(path)
        data.compress(RLELossless)
        data.save_as(path)
    content = bytearray(path.read_bytes())
    at = content.rindex(b"\xfe\xff\x00\xe0")  # the frame's item: its RLE header follows
    content[at + 8 : at + 12] = (9).to_bytes(4, "little")
    path.write_bytes(content)
    with refused(BadInput, path.name, "pixels", "9 RLE segments", 2) as caught:
        read(open_series(tmp_path))
    assert path.name not in caught.value.public


def test_zip_is_read_in_place(tmp_path: Path) -> None:
    stored = series(tmp_path / "study")
    with zipfile.ZipFile(tmp_path / "study.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for number, path in enumerate(sorted((tmp_path / "study").iterdir())):
            archive.write(path, f"../../escape/{number}.dcm")
        archive.writestr("notes.txt", "hello")
    before = sorted(tmp_path.rglob("*"))
    volume = open_series(tmp_path / "study.zip")
    np.testing.assert_array_equal(read(volume), stored - 1024.0)
    assert sorted(tmp_path.rglob("*")) == before
    (tmp_path / "bad.zip").write_bytes(b"PK no zip at all")
    with refused(BadInput, "bad.zip", "zip"):
        open_series(tmp_path / "bad.zip")
