"""The demo's budget of time: what the training gets, and that a slow or busy machine gets no training at all."""

from pathlib import Path

import pytest

from apps import demo


def test_a_quick_machine_trains_for_as_long_as_is_useful() -> None:
    assert demo.training_seconds(elapsed=40, recommender_seconds=31) == demo.MOST_SECONDS


@pytest.mark.parametrize("recommender_seconds", [1.0, 10.0, 20.0, 30.0])
@pytest.mark.parametrize("elapsed", [10.0, 60.0, 120.0, 180.0, 240.0])
def test_what_comes_after_the_training_still_fits(elapsed: float, recommender_seconds: float) -> None:
    seconds = demo.training_seconds(elapsed, recommender_seconds)
    after = demo.AFTER * recommender_seconds
    if seconds is None:
        assert elapsed + demo.LEAST_SECONDS + after > demo.LIMIT_SECONDS
    else:
        assert demo.LEAST_SECONDS <= seconds <= demo.MOST_SECONDS
        assert elapsed + seconds + after <= demo.LIMIT_SECONDS


def test_a_set_is_not_waited_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A publisher that sends a block and then takes too long: the sample stands in."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(demo.datasets, "find", lambda name: None)
    monkeypatch.setattr(demo.Clock, "__call__", lambda self: demo.DOWNLOAD_SECONDS + 1.0)

    def fetch(entry: object, directory: object, *, progress: object) -> None:
        progress(1000, None)  # type: ignore[operator]
        raise AssertionError("the transfer went on")

    monkeypatch.setattr(demo.datasets, "fetch", fetch)
    folder, real = demo.real_or_sample("lastfm", "apps.recsys.data.synthetic")
    assert not real and (folder / "interactions.csv").is_file()


def test_without_the_image_of_a_brain_the_demo_goes_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(demo, "find_spec", lambda name: None)
    monkeypatch.setattr(demo.sys, "executable", str(tmp_path / "none"))  # pip cannot be started
    demo.brain()
    assert "nilearn" in capsys.readouterr().out and not (demo.OUTPUT / "brain").exists()
