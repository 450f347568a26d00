"""Requests refuse what does not go together, and tell which of their fields decide the result."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from apps.recsys import cli
from apps.recsys.data.columns import Columns, Layout
from apps.recsys.planning.questions.recommend_requests import RecommendAllRequest, RecommendRequest
from apps.recsys.planning.requests import EvaluateRequest, split_ids
from apps.recsys.planning.resume_settings import resume_settings
from apps.recsys.planning.service.request import ServeRequest
from common.errors import UsageError
from tests.apps.recsys.asked import train_request
from tests.messages import refused


@pytest.mark.parametrize(
    ("options", "kind", "said"),
    [
        ((), "linear", None),
        (("--factors", 8, "--set", "bits=4"), "linear", None),
        (("--epochs", 3), "ials", "--epochs"),
        (("--tune", 2), "ials", "--tune"),
        (("--resume",), "ials", "--resume"),
        (("--set", "alpha=3"), "ials", "--set alpha"),
        (("--set", "frequency=1"), "ials", "--set frequency"),
        (("--model", "bpr", "--epochs", 3), "bpr", None),
    ],
)
def test_options_of_the_former_default_make_its_model(options: tuple[object, ...], kind: str, said: str | None) -> None:
    request = train_request(*options)
    assert request.model.kind == kind
    notes = [note for note in request.notes if "--model" in note]
    assert [note.startswith(f"{said}") and note.endswith("--model ials says so") for note in notes] == [True] * bool(
        said
    )


@pytest.mark.parametrize(
    ("options", "facts"),
    [
        (("--epochs", 3, "--set", "degree_power=0.4"), ("--set degree_power=0.4", "linear", "ials")),
        (("--model", "linear", "--epochs", 3), ("--epochs", "linear", "ials")),
        (("--set", "margin=0.1"), ("--set margin=0.1", "embedding", "linear")),
    ],
)
def test_options_of_two_models_are_refused(options: tuple[object, ...], facts: tuple[str, ...]) -> None:
    with refused(UsageError, *facts):
        train_request(*options)


@pytest.mark.parametrize(
    ("options", "name"),
    [
        (("--seed", 4), "seed"),
        (("--split", "random"), "split"),
        (("--factors", 32), "factors"),
        (("--set", "alpha=3"), "alpha"),
        (("--set", "frequency=1"), "frequency_scaling"),
        (("--epochs", 3), "iterations"),
    ],
)
def test_what_decides_a_training_keeps_it_from_being_continued(options: tuple[object, ...], name: str) -> None:
    one, other = (resume_settings(train_request("--model", "ials", *changed), data="a") for changed in ((), options))
    assert {key for key in one if one[key] != other[key]} == {name}


def test_what_does_not_decide_a_training_lets_it_be_continued() -> None:
    embedding = ("--model", "embedding")
    settings = resume_settings(train_request(*embedding), data="a")
    request = train_request(*embedding, "--resume", "--min-user", 2, "--set", "patience=9", "--micro-batch", 64)
    moved = replace(request, output=Path("elsewhere"), threads=7)
    assert resume_settings(moved, data="a") == settings != resume_settings(moved, data="b")


def test_settings_of_a_search_decide_and_its_trials_do_not() -> None:
    few, many = (resume_settings(train_request("--model", "ials", "--tune", trials), data="a") for trials in (2, 20))
    assert few == many
    tried = train_request("--model", "ials", "--tune", 2).with_settings({"factors": 128, "alpha": 5.0})
    assert (tried.model.factors, tried.model.hyper["alpha"]) == (128, 5.0)
    with refused(UsageError, "alpha"):
        tried.with_settings({"alpha": 0.0})


def test_lists_for_other_limits_are_other_lists(tmp_path: Path) -> None:
    def settings(**changes: Any) -> dict[str, Any]:
        asked = {"model": tmp_path, "output": tmp_path / "a.parquet", "threads": 1, **changes}
        return resume_settings(RecommendAllRequest(**asked), model="digest")

    assert settings() == settings(output=tmp_path / "b.parquet", threads=2)
    changes: tuple[dict[str, Any], ...] = ({}, {"k": 3}, {"only": ("1",)}, {"exclude": ("1",)}, {"keep_seen": True})
    assert len({str(settings(**each)) for each in changes}) == 5


@pytest.mark.parametrize(
    ("files", "protocol", "facts"),
    [
        ({"test": (Path("a"),), "negatives": Path("b")}, None, ("--negatives", "--test")),
        ({"test": (Path("a"),)}, "ncf", ("ncf", "lightgcn")),
        ({"negatives": Path("a")}, "split", ("split", "ncf")),
    ],
)
def test_files_and_protocol_go_together(files: dict[str, Any], protocol: str | None, facts: tuple[str, ...]) -> None:
    with refused(UsageError, *facts):
        EvaluateRequest(model=Path("model"), protocol=protocol, threads=1, **files)


def test_tables_go_with_their_factors_before_anything_is_read() -> None:
    for options, facts in (
        (("--model", "embedding", "--table", "int4", "--factors", 7), ("--factors 7",)),
        (
            ("--model", "embedding", "--set", "user_vectors=learned", "--loss", "bpr"),
            ("user_vectors=learned", "softmax"),
        ),
        (("--model", "embedding", "--set", "prior=-1"), ("prior",)),
        (("--loss", "ccl"), ("--loss", "embedding")),
        (("--model", "ials", "--set", "weight=tfidf"), ("tfidf", "binary")),
    ):
        with refused(UsageError, *facts):
            train_request(*options)


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("7", ["7"]),
        ("7, 8 ,,9", ["7", "8", "9"]),
        ('"Oak, Ash","Elm"', ["Oak, Ash", "Elm"]),
        ('"a ""b"", c",d', ['a "b", c', "d"]),
        (" , ", []),
    ],
)
def test_ids_in_a_line(text: str, ids: list[str]) -> None:
    assert split_ids(text) == ids


def test_lists_of_ids_may_be_repeated() -> None:
    command = ["recommend", "m", "--history", "1", "--history", '"2,3"', "--only", "4", "--only", "5", "--threads", "1"]
    request = RecommendRequest.of(cli.parser().parse_args(command))
    assert (request.history, request.only, request.named) == (("1", "2,3"), ("4", "5"), 4)
    command = ["recommend", "m", "--item", "2, 3", "--history", "1", "--item", "4"]
    assert RecommendRequest.of(cli.parser().parse_args(command)).history == ("1", "2, 3", "4")


def test_layouts_of_text() -> None:
    assert train_request().data.layout == Layout()
    options = ("--delimiter", "tab", "--decimal", ",", "--no-header")
    assert train_request(*options).data.layout == Layout("tab", ",", headed=False)
    with refused(UsageError, "--delimiter", "ab", "tab", "list"):
        train_request("--delimiter", "ab")
    for option in ({"columns": Columns("u")}, {"layout": Layout(";")}):
        with refused(UsageError, "--test"):
            EvaluateRequest(model=Path("m"), threads=1, **option)


@pytest.mark.parametrize("name", ["lists.txt", "lists.TSV", "lists.json", "lists.csv.gz"])
def test_lists_are_not_written_into_what_looks_like_text(name: str) -> None:
    with refused(UsageError, name, ".parquet"):
        RecommendAllRequest(model=Path("m"), output=Path(name), threads=1)


@pytest.mark.parametrize("port", [-1, 65536, 99999])
def test_ports_that_there_are_not(port: int) -> None:
    with refused(UsageError, "--port", port, 65535):
        ServeRequest(model=Path("m"), port=port, threads=1)


def test_ids_with_a_line_break_stand_in_quotes() -> None:
    assert split_ids('1,"2\n3"') == ["1", "2\n3"]
    with refused(UsageError, "commas"):
        split_ids("1\r2")
