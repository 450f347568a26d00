"""Progress where the output is captured: a line every ten seconds, none from short or quiet work."""

import pytest

from common.cli import progress
from common.cli.progress import Lines


class Clock:
    """Seconds that a test sets."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_line_every_ten_seconds(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    with Lines(total=1200, unit="user", label="evaluate", clock=clock) as lines:
        for second in range(1, 31):
            clock.now = second
            lines.update(10)
    assert capsys.readouterr().err.splitlines() == [
        "evaluate: 100 of 1,200 users (8 %), 110 s left",
        "evaluate: 200 of 1,200 users (17 %), 100 s left",
        "evaluate: 300 of 1,200 users (25 %), 90 s left",
    ]


def test_work_that_is_continued_predicts_by_what_is_new(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    lines = Lines(total=30, unit="sweep", label="fit", clock=clock)
    lines.update(20)
    for _ in range(4):
        clock.now += 5
        lines.set_postfix(loss="0.5", refresh=False)
        lines.update()
    assert capsys.readouterr().err.splitlines() == [
        "fit: 22 of 30 sweeps (73 %), 40 s left, loss 0.5",
        "fit: 24 of 30 sweeps (80 %), 30 s left, loss 0.5",
    ]


def test_short_quiet_and_endless_work(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    with progress.bar(total=3, unit="tile", label="case", quiet=False) as bar:
        assert isinstance(bar, Lines)
        bar.update(3)
    monkeypatch.setattr(progress, "EVERY_SECONDS", 0.0)
    with progress.bar(total=3, unit="tile", label="case", quiet=True) as silent:
        silent.update(3)
    assert capsys.readouterr().err == ""
    with progress.bar(total=None, unit="page", label="read", quiet=False) as endless:
        endless.update(3)
    assert capsys.readouterr().err == "read: 3 pages in 0 s\n"
