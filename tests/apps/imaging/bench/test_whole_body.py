"""Networks of a whole-body model's shapes."""

import json
from pathlib import Path

import pytest

from apps.imaging.bench.whole_body import networks


def test_work_of_a_window_is_what_was_published() -> None:
    fast = networks.multiplications(networks.FAST, networks.PATCHES[networks.FAST])
    full = networks.multiplications(networks.FULL, networks.PATCHES[networks.FULL])
    assert fast / 1e9 == pytest.approx(372, abs=1)  # sixteen of them are 6.0e12
    assert full / 1e9 == pytest.approx(479, abs=1)


def test_a_folder_has_the_data_sets_of_its_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(networks, "FEATURES", (2, 2, 2, 2, 2, 2))
    folder = networks.make_results(tmp_path, networks.FULL)
    models = sorted(folder.glob("Dataset*/*__*__3d_fullres"))
    assert [len(json.loads((model / "dataset.json").read_text())["labels"]) - 1 for model in models] == [
        24,
        26,
        18,
        23,
        26,
    ]
    weights = models[0] / "fold_0" / "checkpoint_final.pth"
    written = weights.stat().st_mtime_ns
    networks.make_results(tmp_path, networks.FULL)
    assert weights.stat().st_mtime_ns == written
