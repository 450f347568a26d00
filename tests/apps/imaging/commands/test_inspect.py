"""``imaging inspect`` of folders of several studies and series: all of them, with what cannot be used among them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from apps.imaging.bench.peers import nnunet_folder
from tests.apps.imaging import bundle_folder
from tests.apps.imaging.dicom_files import NAME, WHOLE, series, write_slice
from tests.apps.imaging.helpers import write_nifti
from tests.messages import says

MODULE = "apps.imaging"


def test_a_study_that_cannot_be_used_does_not_hide_the_others(quick: Any, tmp_path: Path) -> None:
    series(tmp_path / "a", **WHOLE, skip=(2,))
    series(tmp_path / "b" / "c", **WHOLE, plane=(14, 9))
    (tmp_path / "d").mkdir()
    write_nifti(tmp_path / "d" / "e.nii.gz", np.ones((5, 6, 7), np.int16))
    (tmp_path / "broken.nii.gz").write_bytes(b"nothing")
    done = quick(MODULE, "inspect", tmp_path)
    assert done.code == 0 and NAME not in done.out + done.err
    says(
        done.out, "refused     a slice is missing", "--repair spacing", "14x9x6 voxels", "5x6x7 voxels", "broken.nii.gz"
    )
    assert done.out.count("input       ") == 4 and done.out.count("refused") == 2
    alone = quick(MODULE, "inspect", tmp_path / "a")
    assert alone.code == 4 and "--repair spacing" in alone.err


def test_all_series_of_a_folder_are_listed(quick: Any, tmp_path: Path) -> None:
    for number, fields in enumerate(({"EchoTime": "2.5", "Modality": "MR"}, {"plane": (8, 9), "step": 3.0})):
        series(tmp_path / "part", SeriesInstanceUID=f"1.2.{number}", **fields)
        for path in list((tmp_path / "part").iterdir()):
            path.rename(tmp_path / f"{number}{path.name}")
    (tmp_path / "part").rmdir()
    pixels = np.zeros((8, 9), np.int16)
    write_slice(
        tmp_path / "scout.dcm", pixels, (0, 0, 0), (1, 0, 0, 0, 0, -1), SeriesInstanceUID="1.9", ImageType=["LOCALIZER"]
    )
    done = quick(MODULE, "inspect", tmp_path)
    assert done.code == 0 and NAME not in done.out
    says(
        done.out,
        "series      1: MR, 6 slices, 12x10 pixels of 0.7x0.8 mm, 2.5 mm apart, echo time 2.5 ms",
        "echo time 2.5 ms",
        "series      2: CT, 6 slices, 8x9 pixels of 0.7x0.8 mm, 3 mm apart",
        "grid        8x9x6 voxels of 0.7x0.8x3 mm",
        "series      3: CT, 1 slices",
        "localizer",
    )
    chosen = quick(MODULE, "inspect", tmp_path, "--series", "2")
    assert chosen.code == 0 and "8x9x6" in chosen.out and "12x10" not in chosen.out
    refused = quick(MODULE, "infer", tmp_path, "-m", "hippocampus", "-o", tmp_path / "out")
    assert refused.code == 4
    says(refused.err, "2.5 mm apart, echo time 2.5 ms", "--series N|UID")


def test_real_series_say_their_echo_times(quick: Any, archives: Callable[[str, str], Path]) -> None:
    folder = archives("enhanced", "xa30")
    done = quick(MODULE, "inspect", folder)
    assert done.code == 0
    says(done.out, "echo time 2.41 ms", "echo time 12.46 ms", "64x64x33 voxels of 3.375x3.375x3.4 mm")
    says(done.out, "refused     2 volumes of 33 slices in one series, which differ by echo time (10, 12.46)")


def test_models_of_other_programs_are_described_or_refused(quick: Any, tmp_path: Path) -> None:
    bundle_folder.write(tmp_path / "bundle", weights=False, before=(bundle_folder.RANGE,))
    refused = quick(MODULE, "inspect", tmp_path / "bundle")
    assert refused.code == 4 and "no weights" in refused.err
    (tmp_path / "bundle" / "models" / "model.pt").write_bytes(b"never read")
    done = quick(MODULE, "inspect", tmp_path / "bundle")
    assert done.code == 0, done.err
    says(done.out, "MONAI bundle: UNet", "1 liver", "32x32x24 voxels of the image's own spacing")
    nnunet_folder.write(tmp_path / "nnunet", seeds=(0,), spacing=[3.0, 1.2, 1.2])
    done = quick(MODULE, "inspect", tmp_path / "nnunet")
    assert done.code == 0, done.err
    says(done.out, "nnU-Net v2, 3d_fullres, fold_0", "of 3x1.2x1.2 mm", "1 class 1")
