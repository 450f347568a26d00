"""Files stand before, between and after options, in every command of both applications."""

from pathlib import Path

import pytest

from apps.imaging import cli as imaging
from apps.recsys import cli as recsys


@pytest.mark.parametrize(
    "words",
    [
        ("update", "model", "a.csv", "b.csv", "-o", "out"),
        ("update", "model", "-o", "out", "a.csv", "b.csv"),
        ("update", "-o", "out", "model", "a.csv", "b.csv"),
        ("update", "model", "a.csv", "-o", "out", "b.csv"),
        ("update", "-o", "out", "--", "model", "a.csv", "b.csv"),
    ],
)
def test_files_of_an_update_stand_anywhere(words: tuple[str, ...]) -> None:
    args = recsys.parser().parse_args(words)
    assert (args.model, args.interactions, args.output) == (Path("model"), [Path("a.csv"), Path("b.csv")], Path("out"))


def test_files_stand_on_both_sides_of_options() -> None:
    args = recsys.parser().parse_args(["train", "a.csv", "-o", "out", "--factors", "8", "b.csv"])
    assert args.interactions == [Path("a.csv"), Path("b.csv")] and args.factors == 8
    args = imaging.parser().parse_args(["infer", "a.nii", "-m", "model", "-o", "out", "b.nii"])
    assert [str(one) for one in args.input] == ["a.nii", "b.nii"]


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("update", "-o", "out"), "MODEL"),
        (("update", "model", "-o", "out", "--no-such"), "--no-such"),
        (("train", "a.csv"), "-o"),
        (("compress", "model", "--bits", "2", "-o", ""), "-o/--output: an empty path"),
        (("update", "", "a.csv", "-o", "out"), "MODEL_DIR: an empty path"),
        (("recommend", "model", "other", "--user", "1"), "other"),
    ],
)
def test_what_is_wrong_is_named(words: tuple[str, ...], named: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        recsys.parser().parse_args(words)
    said = capsys.readouterr().err
    assert ended.value.code == 2 and named in said.splitlines()[-1] and "usage: recsys" in said
