"""The children of ``imaging infer``, which convert a model and make a SEG's header: how their ends are told."""

from collections.abc import Callable
from pathlib import Path

import pytest

from apps.imaging.dicom.series import open_series
from apps.imaging.dicom.writing.seg_header import seg_template
from apps.imaging.importers.convert import converted_model
from apps.imaging.models.model_folder import read_model
from common.bench.forced import endings as forced_endings
from common.errors import BadInput
from common.memory.process import child
from common.memory.process.budget import GIB, MemoryBudget
from tests.apps.imaging import bundle_folder
from tests.apps.imaging.dicom_files import series
from tests.apps.imaging.helpers import random_model

ENDS = [
    ("segfault", child.ChildFailed, "SIGSEGV"),
    ("terminate", child.ChildFailed, "SIGTERM"),
    ("leave", child.ChildFailed, "exit code 7"),
    ("allocate", MemoryError, "out of memory"),
    ("fail", BadInput, "ValueError"),
]


@pytest.fixture
def ending(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """``ending("segfault")``: every child from now on ends in that way."""

    def choose(way: str) -> None:
        command = child.python_command(forced_endings.__name__, [way])
        monkeypatch.setattr(child, "python_command", lambda module, arguments=(): command)

    return choose


@pytest.mark.parametrize(("way", "error", "words"), ENDS)
def test_a_conversion_that_ends_early_says_how(
    tmp_path: Path, ending: Callable[[str], None], way: str, error: type[Exception], words: str
) -> None:
    model = bundle_folder.write(tmp_path / "bundle")
    ending(way)
    with pytest.raises(error, match=words):
        converted_model(model, MemoryBudget(2 * GIB))


@pytest.mark.parametrize(("way", "error", "words"), ENDS)
def test_a_seg_header_that_ends_early_says_how(
    tmp_path: Path, ending: Callable[[str], None], way: str, error: type[Exception], words: str
) -> None:
    series(tmp_path / "study")
    volume = open_series(tmp_path / "study")
    random_model(tmp_path / "model")
    ending(way)
    with pytest.raises(error, match=words):
        seg_template(volume, read_model(tmp_path / "model"), "key", "BINARY")
