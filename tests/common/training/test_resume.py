"""An interrupted training: continued with the same settings only, and said or refused otherwise."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from common.errors import BadInput, UsageError
from common.training.resume import differing, resume
from tests.messages import continued, refused, says

SETTINGS = {"patch": (8, 8, 8), "seed": 1, "fold": None}


class Checkpoint:
    """A JSON file with settings and the number of steps."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "model" / ".training" / "last.json"
        self.loaded = 0
        self.said: list[str] = []

    def write(self, text: str) -> "Checkpoint":
        self.path.parent.mkdir(parents=True)
        self.path.write_text(text)
        return self

    def _settings(self, path: Path) -> Mapping[str, Any] | None:
        try:
            settings: Mapping[str, Any] = json.loads(path.read_text())["settings"]
        except ValueError:
            return None
        return settings

    def _load(self, path: Path) -> int | None:
        self.loaded += 1
        step: int | None = json.loads(path.read_text()).get("step")
        return step

    def resume(self, settings: Mapping[str, Any], *, required: bool = False) -> int | None:
        return resume(
            self.path,
            settings,
            read_settings=self._settings,
            load=self._load,
            progress=lambda step: f"after step {step}",
            output=self.path.parents[1],
            required=required,
            say=self.said.append,
        )


@pytest.fixture
def checkpoint(tmp_path: Path) -> Checkpoint:
    return Checkpoint(tmp_path).write(json.dumps({"settings": SETTINGS, "step": 7}))


@pytest.mark.parametrize("required", [False, True])
def test_the_same_settings_are_continued(checkpoint: Checkpoint, required: bool) -> None:
    assert checkpoint.resume(SETTINGS, required=required) == 7
    (line,) = checkpoint.said
    continued(line, "step 7")


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"seed": 2}, ["seed"]),
        ({"seed": 2, "patch": (8, 8, 16)}, ["patch", "seed"]),
        ({"fold": (0, 5)}, ["fold"]),
        ({"new": 1}, ["new"]),
    ],
)
def test_other_settings_are_named_and_nothing_is_loaded(
    checkpoint: Checkpoint, changes: Mapping[str, Any], names: list[str]
) -> None:
    assert differing({**SETTINGS, **changes}, json.loads(json.dumps(SETTINGS))) == names
    assert checkpoint.resume({**SETTINGS, **changes}) is None
    (line,) = checkpoint.said
    says(line, *names, "beginning")
    with refused(UsageError, "--resume", *names):
        checkpoint.resume({**SETTINGS, **changes}, required=True)
    assert not checkpoint.loaded


def test_a_setting_that_only_the_checkpoint_has_differs(checkpoint: Checkpoint) -> None:
    fewer = {name: value for name, value in SETTINGS.items() if name != "fold"}
    assert differing(fewer, SETTINGS | {"patch": [8, 8, 8]}) == ["fold"]
    assert checkpoint.resume(fewer) is None


def test_without_a_checkpoint_it_starts_and_is_silent(tmp_path: Path) -> None:
    absent = Checkpoint(tmp_path)
    assert absent.resume(SETTINGS) is None
    assert not absent.said
    with refused(BadInput, absent.path.parents[1], "resume"):
        absent.resume(SETTINGS, required=True)


@pytest.mark.parametrize("text", ["not JSON", json.dumps({"settings": SETTINGS})])
def test_a_damaged_checkpoint_is_said_or_refused(tmp_path: Path, text: str) -> None:
    damaged = Checkpoint(tmp_path).write(text)
    assert damaged.resume(SETTINGS) is None
    (line,) = damaged.said
    says(line, "damaged", "beginning")
    with refused(BadInput, damaged.path, "damaged"):
        damaged.resume(SETTINGS, required=True)
