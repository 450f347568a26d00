"""Damaged files, as the suite ``imaging`` makes 10,000 of them: a small part here, in the same way."""

from pathlib import Path

import pytest

from apps.imaging.bench.robustness import hostile, mutations
from apps.imaging.volumes.nifti import open_nifti
from common.errors import BadInput
from tests.messages import says


def test_every_damaged_file_is_read_or_refused_in_time() -> None:
    found = hostile.read(300)
    assert found["files"] == 300
    assert (found["crashes"], found["untyped"]) == (0, 0), found["worst"]
    assert found["slowest_seconds"] < hostile.HANG
    assert found["peak_mib"] * 2**20 < hostile.CEILING
    assert 60 < found["accepted"] < 240  # neither all nor none: the damage is worth trying


@pytest.mark.parametrize("number", [44, 45, 106, 232, 362, 6196])
def test_headers_that_nibabel_chokes_on_are_refused(tmp_path: Path, number: int) -> None:
    """Found by fuzzing: data codes, offsets and affines that made an exception of another type."""
    path = mutations.write_case(tmp_path, number)
    with pytest.raises(BadInput) as refusal:
        open_nifti(path)
    assert "\n" not in str(refusal.value)


def test_a_case_is_the_same_every_time(tmp_path: Path) -> None:
    for number in range(20):
        first, second = (mutations.write_case(tmp_path / name, number) for name in ("a", "b"))
        for one in [first] if first.is_file() else sorted(first.iterdir()):
            other = second if first.is_file() else second / one.name
            assert one.read_bytes() == other.read_bytes()


def test_the_command_ends_well_and_says_no_name(tmp_path: Path) -> None:
    found = hostile.infer(tmp_path, 24, seg=True)
    assert found["codes"] == {"exit 4": 1}
    assert found["studies"]["done"] >= 3 and found["studies"]["failed"] >= 5
    assert (found["above_ceiling"], found["leaks"]) == (0, 0)
    assert found["named_segs"] >= 1  # the SEG does carry its patient


def test_a_spacing_that_no_picture_has_is_refused_at_once(quick, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """Ten planes that would be ten billion at the model's spacing: the list of their tiles filled the memory."""
    import numpy as np

    from tests.apps.imaging.helpers import random_model, write_nifti

    random_model(tmp_path / "model")
    image = write_nifti(tmp_path / "image.nii", np.zeros((8, 9, 10), np.int16), affine=np.diag([1, 1, 1e9, 1]))
    done = quick("apps.imaging", "infer", image, "-m", tmp_path / "model", "-o", tmp_path / "out", "--memory", "400MiB")
    assert done.code == 4
    says(done.err, "image.nii", "8 x 9 x 1e+10", 65535, "spacing")


def test_a_study_that_does_not_fit_fails_alone(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """A header that claims 30,000 x 30,000 x 2, next to a sound study."""
    import gzip

    import numpy as np

    from tests.apps.imaging.helpers import random_model, write_nifti

    random_model(tmp_path / "model")
    source = tmp_path / "in"
    source.mkdir()
    write_nifti(source / "a.nii.gz", np.zeros((20, 20, 20), np.uint8))
    huge = write_nifti(tmp_path / "huge.nii", np.zeros((2, 2, 2), np.uint8))
    header = bytearray(huge.read_bytes()[:352])
    header[42:48] = np.array([30_000, 30_000, 2], "<i2").tobytes()
    # No gzip shrinks more than 1032 times: so much the file must hold at least, or it would be called truncated.
    (source / "b.nii.gz").write_bytes(gzip.compress(bytes(header) + np.random.default_rng(0).bytes(2_000_000)))
    done = run("apps.imaging", "infer", source, "-m", tmp_path / "model", "-o", tmp_path / "out", "--memory", "400MiB",
               "--json")  # fmt: skip
    assert done.code == 4, done.err
    assert [(row["status"], row["reason"]) for row in done.record["results"]["studies"]] == [
        ("done", None), ("failed", "does not fit")
    ]  # fmt: skip
    assert done.record["within_budget"]
