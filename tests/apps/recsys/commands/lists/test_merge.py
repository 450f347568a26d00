"""Lists that several processes make, each for a part of the users, are those of one process."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from apps.recsys.cli import parser
from apps.recsys.data.id_table import IdTable
from common.cli.main import main
from common.parts import Part
from tests.apps.recsys import in_process
from tests.apps.recsys.conftest import Trained
from tests.messages import says
from tests.promise import kept

Run = Callable[..., Any]
PARTS = 3
SUFFIXES = (".csv", ".jsonl", ".parquet")


def read(path: Path) -> pd.DataFrame:
    """A file of lists, in one order."""
    readers = {".csv": pd.read_csv, ".jsonl": lambda p: pd.read_json(p, lines=True), ".parquet": pd.read_parquet}
    frame: pd.DataFrame = readers[path.suffix](path)
    return frame.sort_values(["user", "rank"]).reset_index(drop=True)


@pytest.fixture(scope="module")
def made(trained: Trained, run: Run, quick: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with lists in parts in every format, and with those of one process."""
    folder = tmp_path_factory.mktemp("parts")
    for suffix in SUFFIXES:
        whole = ("recommend", trained.model, "--all-users", "-o", folder / f"whole{suffix}")
        if suffix == ".csv":  # with its record
            assert quick("apps.recsys", *whole, "-q").code == 0
        else:
            in_process.done(*whole)
        for number in range(1, PARTS + 1):
            words = ("recommend", trained.model, "--all-users", "-o", folder / suffix / f"lists{suffix}")
            done = run("apps.recsys", *words, "--part", f"{number}/{PARTS}", "--json")
            assert done.code == 0, done.err
            kept(done.record)
    return folder


def part_files(made: Path, folder: Path, suffix: str) -> list[Path]:
    """Copies of the lists in parts, with their records."""
    shutil.copytree(made / suffix, folder, dirs_exist_ok=True)
    return [folder / f"lists.{Part(number, PARTS).name}{suffix}" for number in range(1, PARTS + 1)]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_merged_lists_are_those_of_one_process(made: Path, quick: Run, tmp_path: Path, suffix: str) -> None:
    whole, merged = made / f"whole{suffix}", tmp_path / f"merged{suffix}"
    files = part_files(made, tmp_path, suffix)
    done = quick("apps.recsys", "merge", *reversed(files), "-o", merged)
    assert done.code == 0, done.err
    says(done.out, merged, f"{len(read(whole)):,} rows", f"{PARTS} parts")
    pd.testing.assert_frame_equal(read(merged), read(whole))
    users = pd.concat([read(path) for path in files])["user"].drop_duplicates()
    assert sorted(users) == sorted(read(whole)["user"].unique())
    for number, path in enumerate(files, 1):
        assert all(Part(number, PARTS).holds(str(user)) for user in read(path)["user"])
    if suffix != ".parquet":  # part after part, with the names of columns once
        lines = merged.read_text().splitlines()
        assert sorted(lines) == sorted(whole.read_text().splitlines())


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_parts_without_users_are_files_too(trained: Trained, run: Run, tmp_path: Path, suffix: str) -> None:
    table = IdTable(trained.model / "users.parquet")
    ids = [str(table.id(row)) for row in range(len(table))]
    empty = next(n for n in range(1, 2001) if not any(Part(n, 2000).holds(id_) for id_ in ids))
    output = tmp_path / f"lists{suffix}"
    words = ("recommend", trained.model, "--all-users", "-o", output, "--part", f"{empty}/2000", "--json")
    done = run("apps.recsys", *words)
    assert done.code == 0 and (done.record["results"]["users"], done.record["results"]["rows"]) == (0, 0)
    kept(done.record)
    path = Part(empty, 2000).file(output)
    assert list(read(path).columns) == ["user", "rank", "item", "score"]


def test_options_are_the_same_in_all_parts(trained: Trained, made: Path, quick: Run, tmp_path: Path) -> None:
    files = part_files(made, tmp_path, ".csv")
    words = ("recommend", trained.model, "--all-users", "-o", tmp_path / "lists.csv", "-k", 3)
    assert quick("apps.recsys", *words, "--part", f"2/{PARTS}", "-q").code == 0
    done = quick("apps.recsys", "merge", *files, "-o", tmp_path / "all.csv")
    assert done.code == 4 and not (tmp_path / "all.csv").exists()
    says(done.err, files[1], "other options", files[0])


def test_what_cannot_be_merged_is_one_line(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = part_files(made, tmp_path, ".csv")
    copy = shutil.copy(files[0], tmp_path / "copy.csv")
    shutil.copy(files[0].with_suffix(".run.json"), tmp_path / "copy.run.json")
    lost = shutil.copy(files[0], tmp_path / "lost.csv")
    broken = shutil.copy(files[1], tmp_path / "broken.csv")
    (tmp_path / "broken.run.json").write_text('{"results": 3}')
    killed = shutil.copy(files[1], tmp_path / "killed.csv")
    record = json.loads(files[1].with_suffix(".run.json").read_text())
    (tmp_path / "killed.run.json").write_text(json.dumps({**record, "exit_code": 1}))
    torn = tmp_path / "torn.csv"
    torn.write_bytes(files[2].read_bytes()[:-9])
    shutil.copy(files[2].with_suffix(".run.json"), tmp_path / "torn.run.json")
    for paths, output, code, facts in (
        (files[:2], "all.csv", 4, ("1 of 3 parts", "missing", 3)),
        ([files[0]], "all.csv", 4, ("2 of 3 parts", "missing", "2, 3")),
        ([*files, copy], "all.csv", 4, ("twice", "copy.csv")),
        ([*files, files[0]], "all.csv", 4, ("twice", files[0].name)),
        ([lost, *files[1:]], "all.csv", 4, ("lost.csv", "lost.run.json")),
        ([files[0], broken, files[2]], "all.csv", 4, ("broken.run.json", "not the record")),
        ([files[0], killed, files[2]], "all.csv", 4, ("killed.csv", "did not end well")),
        ([*files[:2], torn], "all.csv", 4, ("torn.csv", "bytes")),
        ([made / "whole.csv"], "all.csv", 4, ("whole.csv", "not a part")),
        ([tmp_path / "absent.csv"], "all.csv", 4, ("absent.csv", "no such file")),
        (files, "all.parquet", 2, ("-o", "all.parquet", ".csv")),
        (files, files[1].name, 2, ("-o", files[1].name, "one of the parts")),
    ):
        before = files[1].read_bytes()
        words = [str(word) for word in ("merge", *paths, "-o", tmp_path / output)]
        ended = main(parser(), "apps.recsys", words)  # it starts no process
        out, err = capsys.readouterr()
        assert (ended, out, err.count("\n")) == (code, "", 1), err
        says(err, *facts)
        assert not (tmp_path / "all.csv").exists() and files[1].read_bytes() == before


@pytest.mark.parametrize(
    ("options", "facts"),
    [
        (("--user", "u00001", "--part", "1/2"), ("--part", "--all-users")),
        (("--history", "i0001", "--dry-run", "--format", "slurm"), ("--format", "--all-users")),
        (("--users", "u.txt", "-o", "x.csv", "--part", "1/2"), ("--part", "--all-users", "file of its own")),
        (("--all-users", "-o", "x.csv", "--format", "slurm"), ("--format slurm", "--dry-run")),
        (("--all-users", "-o", "x.csv", "--part", "3/2"), ("3/2", "no part 3 of 2")),
    ],
)
def test_options_that_do_not_go_together(
    trained: Trained, quick: Run, options: tuple[str, ...], facts: tuple[object, ...]
) -> None:
    done = quick("apps.recsys", "recommend", trained.model, *options)
    assert done.code == 2
    says(done.err.splitlines()[-1], *facts)


def test_a_job_has_the_part_s_plan(trained: Trained, run: Run, tmp_path: Path) -> None:
    words = ("recommend", trained.model, "--all-users", "-o", tmp_path / "x.csv", "--dry-run", "--part", "1/4")
    done = run("apps.recsys", *words, "--format", "slurm")
    assert done.code == 0, done.err
    size = next(line for line in done.out.splitlines() if "--mem=" in line).removeprefix("#SBATCH --mem=")
    again = run("apps.recsys", *words[:-3], "--part", "1/4", "--memory", f"{size[:-1]}MiB", "-q")
    assert again.code == 0, again.err
