"""Cases are prepared once; a bad one or a full disk leaves nothing behind."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from apps.imaging.training.data import chunks
from apps.imaging.training.data.dataset import read_dataset
from apps.imaging.training.data.loading import load_volumes
from apps.imaging.training.data.patch_sampling import Volumes
from apps.imaging.training.request import TrainingData
from common.cli import progress
from common.errors import BadInput
from tests.apps.imaging.commands.test_train import make, write
from tests.messages import refused, says


class Session:
    """The parts of ``common.cli.session.Session`` that loading needs."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, message: str) -> None:
        """Keep it."""
        self.said.append(message)

    def progress(self, *, total: float | None, unit: str, label: str) -> Any:
        """No bar."""
        return progress.bar(total=total, unit=unit, label=label, quiet=True)


@pytest.fixture
def data(tmp_path: Path) -> TrainingData:
    found = read_dataset(make(tmp_path / "balls", cases=3, side=12))
    return TrainingData(found, found.cases, [], [[{"op": "zscore"}]])


def load(data: TrainingData, volumes: Volumes, *, skip_bad: bool = False) -> tuple[Volumes, list[str]]:
    session: Any = Session()
    return load_volumes(data, data.training, volumes, session, skip_bad=skip_bad), session.said


def test_what_was_prepared_is_found_and_what_changed_is_prepared_again(data: TrainingData, tmp_path: Path) -> None:
    folder = tmp_path / "work" / "cases"
    first, said = load(data, Volumes(folder=folder))
    assert said == [] and len(first) == 3
    files = sorted(folder.iterdir())
    files[1].write_bytes(files[1].read_bytes()[:-1])
    again, said = load(data, Volumes(folder=folder))
    says(said[0], "2 of 3 cases", "before", 1, "another version", "damaged")
    for index in range(3):
        for one, other in zip(*(each.read(index, (0, 0, 0), (12, 12, 12)) for each in (first, again)), strict=True):
            assert np.array_equal(one, other)
    write(tmp_path / "balls" / "imagesTr" / "case_0.nii.gz", np.ones((12, 12, 12), np.float32))
    changed, said = load(data, Volumes(folder=folder))
    says(said[0], "2 of 3 cases")
    assert not changed.read(0, (0, 0, 0), (12, 12, 12))[0].any()
    half, said = load(data, Volumes(None, "float16", folder))
    assert said == [] and len(half) == 3


@pytest.mark.parametrize("kind", ["disk", "compressed"])
def test_a_bad_case_and_a_full_disk(
    data: TrainingData, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = tmp_path / "work"

    def empty() -> Volumes:
        return Volumes(work / "cache") if kind == "disk" else Volumes(folder=work / "cases")

    write(tmp_path / "balls" / "labelsTr" / "case_0.nii.gz", np.full((12, 12, 12), 7, np.uint8))
    with refused(BadInput, "case_0", "label", 7):
        load(data, empty())
    kept, said = load(data, empty(), skip_bad=True)
    assert len(kept) == 2
    says(said[0], "skipped", "case_0")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Volumes, "reuse", lambda self, key: False)
    monkeypatch.setattr(chunks, "write_at", full)
    if kind == "disk":
        monkeypatch.setattr(Volumes, "_note", full)
    with pytest.raises(OSError, match="No space"):
        load(data, empty(), skip_bad=True)
    assert not [path for path in work.rglob("*") if path.is_file()]
