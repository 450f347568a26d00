"""A model that is changed while it is served: checked before, loaded after the other has left, kept if it is broken."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from apps.recsys.serving.live import Gauge, Live, Log
from apps.recsys.serving.service import RecommenderService
from common import model_folder
from common.errors import BadInput
from common.files import sha256
from tests.apps.recsys.conftest import Trained
from tests.messages import refused

GAUGE = Gauge(1, 1, ())


@pytest.fixture
def folder(trained: Trained, tmp_path: Path) -> Path:
    """A copy of the sample's model."""
    return Path(shutil.copytree(trained.model, tmp_path / "model"))


def changed(
    folder: Path, change: Callable[[dict[str, Any]], None] = lambda manifest: None, *, sealed: bool = True
) -> None:
    """Replace a folder by one whose manifest is another, as an update does."""
    new = folder.with_name("new")
    shutil.copytree(folder, new)
    path = new / model_folder.MANIFEST
    manifest = json.loads(path.read_text())
    manifest["seed"] += 1
    change(manifest)
    if sealed:
        for name, entry in manifest["files"].items():
            entry["sha256"], entry["bytes"] = sha256(new / name), (new / name).stat().st_size
    path.write_text(json.dumps(manifest))
    shutil.rmtree(folder)
    new.rename(folder)


def ids(live: Live, **asked: Any) -> list[Any]:
    """Items of a user's list."""
    return [item["id"] for item in live.service().for_user("u00003", 5, **asked)]


def test_a_new_version_is_served_and_the_folder_may_change_in_place_before_that(folder: Path) -> None:
    live = Live(folder, lambda manifest: GAUGE)
    first, before = live.version.name, ids(live, where="year < 1970")
    assert live.newer() is None
    changed(folder)
    shutil.rmtree(folder / "no such", ignore_errors=True)
    assert ids(live, where="year < 1970") == before  # by the files that were there
    version = live.newer()
    assert version is not None
    live.change(version)
    assert live.version.name == version.name != first and live.changes == 1
    assert ids(live, where="year < 1970") == before
    shutil.rmtree(folder)
    assert ids(live) and live.described()["version"] == version.name


def test_a_damaged_version_is_refused_by_its_digest(folder: Path) -> None:
    live = Live(folder, lambda manifest: GAUGE)
    weights = folder / "weights.safetensors"
    content = bytearray(weights.read_bytes())
    content[-5] ^= 255
    manifest = json.loads((folder / model_folder.MANIFEST).read_text())
    weights.unlink()
    weights.write_bytes(content)
    (folder / model_folder.MANIFEST).write_text(json.dumps({**manifest, "seed": 9}))
    with refused(BadInput, str(weights), "sha256"):
        live.newer()
    assert ids(live)


def test_a_version_that_cannot_be_loaded_leaves_the_one_before(folder: Path, tmp_path: Path) -> None:
    live = Live(folder, lambda manifest: GAUGE, Log(tmp_path / "log", 10, sync=False))
    before, first = ids(live), live.version.name

    def spoil(manifest: dict[str, Any]) -> None:
        (folder.with_name("new") / "users.parquet").write_bytes(b"PAR1 nothing PAR1")

    changed(folder, spoil)
    version = live.newer()
    assert version is not None
    with refused(BadInput, str(folder / "users.parquet"), "not a table"):
        live.change(version)
    assert live.version.name == first and ids(live) == before and live.changes == 0


def test_a_version_that_does_not_fit_is_refused(folder: Path) -> None:
    def price(manifest: Any) -> Gauge:
        if manifest["seed"]:
            raise BadInput("too large", public="the model does not fit")
        return GAUGE

    live = Live(folder, price)
    changed(folder)
    with refused(BadInput, "too large"):
        live.newer()
    assert ids(live)


def test_only_one_model_is_in_memory(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[RecommenderService] = []
    live = Live(folder, lambda manifest: GAUGE)
    changed(folder)
    version = live.newer()
    assert version is not None
    load = Live._load

    def watched(self: Live, version: Any) -> RecommenderService:
        assert self._service is None
        loaded.append(load(self, version))
        return loaded[-1]

    monkeypatch.setattr(Live, "_load", watched)
    live.change(version)
    assert loaded == [live.service()]


@pytest.mark.parametrize("name", ["history.items.npy", "history.values.npy"])
def test_a_history_that_is_cut_while_it_is_served_is_an_error_of_that_answer(folder: Path, name: str) -> None:
    live = Live(folder, lambda manifest: GAUGE)
    before, whole = ids(live), (folder / name).read_bytes()
    with (folder / name).open("r+b") as stream:
        stream.truncate(130)
    with refused(BadInput, "shorter"):
        live.service().for_user("u00200", 5)
    with (folder / name).open("r+b") as stream:
        stream.write(whole)
    assert ids(live) == before
