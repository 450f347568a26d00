"""``Recommender``: frames in and out, the command line's answers, and one typed exception for all that is wrong."""

import doctest
import gc
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from apps.recsys import Recommender, api
from common.errors import BadInput, DoesNotFit, UsageError
from tests.messages import refused, says

Run = Callable[..., Any]
MEMORY = "300MiB"


def plays() -> pd.DataFrame:
    """Users are integers, items are text that looks like integers; odd users had odd items, even ones even items."""
    random = np.random.default_rng(0)
    rows = [
        (user, str(item)) for user in range(120) for item in random.choice(range(user % 2, 80, 2), 20, replace=False)
    ]
    return pd.DataFrame(rows, columns=["user", "item"])


@pytest.fixture(scope="module")
def model() -> Recommender:
    titles = pd.DataFrame({"id": [str(item) for item in range(80)], "name": [f"No. {item}" for item in range(80)]})
    titles["tens"], titles["digits"] = (
        pd.Categorical(titles["id"].str.zfill(2).str[0]),
        [list(id_) for id_ in titles["id"]],
    )
    titles["mixed"] = ["1", 2.5] * 40
    return Recommender.fit(plays(), memory=MEMORY, factors=8, split="user-holdout", titles=titles)


def test_recommendations_are_frames_whose_ids_keep_their_type(model: Recommender) -> None:
    best = model.recommend(7, k=5)
    assert list(best.columns) == ["rank", "item", "score", "title"]
    assert best["rank"].tolist() == [1, 2, 3, 4, 5] and best["score"].is_monotonic_decreasing
    assert all(isinstance(item, str) and int(item) % 2 == 1 for item in best["item"])
    had = set(plays().query("user == 7")["item"])
    assert not had & set(best["item"]) and best["title"].tolist() == [f"No. {item}" for item in best["item"]]
    assert model.users["user"].dtype == "int64" and set(model.users["user"]) == set(range(120))
    assert set(model.items["item"]) == {str(item) for item in range(80)}


def test_several_users_are_answered_at_once_as_each_alone(model: Recommender, quick_api: None) -> None:
    both = model.recommend(pd.Series([8, 7]), k=5)
    assert both.columns[0] == "user" and both["user"].tolist() == [8] * 5 + [7] * 5
    alone = model.recommend(7, k=5)
    pd.testing.assert_frame_equal(both[both["user"] == 7].drop(columns="user").reset_index(drop=True), alone)
    assert model.recommend([], k=5).empty


def test_histories_and_limits(model: Recommender, quick_api: None) -> None:
    first = model.recommend(history=["1", "3", "5"], k=4, only=["7", "9", "8"])
    assert set(first["item"]) == {"7", "9", "8"} and first["item"].iloc[2] == "8"
    best = model.recommend(history=[["1", "3"], ["2"]], k=40, exclude=["7"], where="digits != '9' and not tens = '4'")
    assert set(best["history"]) == {0, 1} and "7" not in set(best["item"])
    assert len(best) > 40 and not any("9" in id_ or id_.zfill(2)[0] == "4" for id_ in best["item"])
    assert set(best["item"]) & {"1", "3", "2"} <= {"1", "2", "3"} and "1" not in set(best.query("history == 0")["item"])


def test_similar_items(model: Recommender, quick_api: None) -> None:
    near = model.similar("5", k=3)
    assert list(near.columns) == ["rank", "item", "score", "title"] and all(int(item) % 2 == 1 for item in near["item"])
    assert model.similar(["5", "6"], k=3).query("query == '5'")["item"].tolist() == near["item"].tolist()


def test_an_update_adds_rows_and_forgets(model: Recommender, quick_api: None) -> None:
    new = pd.DataFrame({"user": [7, 500, 500], "item": ["900", "900", "3"]})
    updated = model.update(new, forget=[8, 10])
    assert set(updated.items["item"]) - set(model.items["item"]) == {"900"}
    assert set(updated.users["user"]) == (set(model.users["user"]) | {500}) - {8, 10}
    assert updated.record["results"]["added"] == {"users": -1, "items": 1, "interactions": 3 - 2 * 20}
    assert updated.users["user"].dtype == "int64"
    with refused(BadInput, "'user'", "buyer"):
        model.update(new.rename(columns={"user": "buyer"}))
    with refused(UsageError, "forget"):
        model.update()


def test_a_saved_model_answers_as_before_and_as_the_command_line(
    model: Recommender, quick: Run, tmp_path: Path
) -> None:
    folder = model.save(tmp_path / "deep" / "model")
    loaded = Recommender.load(folder, memory=MEMORY)
    pd.testing.assert_frame_equal(loaded.recommend(7, k=5), model.recommend(7, k=5))
    done = quick("apps.recsys", "recommend", folder, "--user", 7, "-k", 5, "--memory", MEMORY, "--json", "-q")
    answer = [(str(item["id"]), item["score"]) for item in done.record["results"]["items"]]
    best = model.recommend(7, k=5)
    assert [item for item, _ in answer] == best["item"].tolist()
    assert [score for _, score in answer] == pytest.approx(best["score"].tolist(), abs=1e-6)
    assert loaded.record["command"] == "recsys train" and "120 users" in repr(loaded)
    loaded.save(folder)  # over itself
    assert Recommender.load(folder).evaluate() == pytest.approx(model.record["results"]["metrics"])
    assert sorted(path.name for path in folder.parent.iterdir()) == ["model"]


def test_only_a_recommender_is_replaced(model: Recommender, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    for target in (tmp_path, tmp_path / "notes.txt", tmp_path / "notes.txt" / "model"):
        with pytest.raises(UsageError, match=target.name):
            model.save(target)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_test_frame_is_scored(model: Recommender, quick_api: None) -> None:
    test = pd.DataFrame({"user": [7, 8], "item": ["1", "2"]})
    assert 0 <= model.evaluate(test)["ndcg@10"] <= 1


COLUMNS = {
    "categories": lambda frame: frame.assign(
        user=frame["user"].astype("category"), item=frame["item"].astype("category")
    ),
    "floats with gaps": lambda frame: frame.assign(user=frame["user"].where(frame["user"] != 3)),
    "nullable": lambda frame: frame.assign(
        user=frame["user"].astype("Int32"), item=frame["item"].astype("string[python]")
    ),
    "other names": lambda frame: frame.rename(columns={"user": "who", "item": "what"}).assign(
        rating=2, date=pd.Timestamp("2020-01-01", tz="UTC")
    ),
}


@pytest.mark.parametrize("name", COLUMNS)
def test_columns_of_all_kinds(name: str, quick_api: None) -> None:
    made = COLUMNS[name](plays())
    split = "leave-last" if "date" in made else "random"
    model = Recommender.fit(made, memory=MEMORY, model="popularity", split=split)
    data = model.record["results"]["data"]
    assert data["rows"] == len(made) and data["users"] == (119 if "gaps" in name else 120)
    assert data["dropped"] == ({"with an empty cell": 20} if "gaps" in name else {})
    assert model.users["user"].dtype == "int64" and isinstance(model.items["item"].iloc[0], str)


def test_named_columns(tmp_path: Path, quick_api: None) -> None:
    made = plays().assign(other="x", when=range(2400)).rename(columns={"user": "-a", "item": "b c"})
    model = Recommender.fit(
        made, memory=MEMORY, user="-a", item="b c", time="when", model="popularity", split="leave-last"
    )
    assert model.record["results"]["data"]["users"] == 120


@pytest.mark.parametrize(
    ("frame", "arguments", "error", "facts"),
    [
        ([1, 2], {}, BadInput, ("list", "DataFrame")),
        (plays().rename(columns={"user": "item"}), {}, BadInput, ("two columns", "item, item")),
        (plays()[["item"]], {}, BadInput, ("one column", "'item'")),
        (pd.DataFrame(), {}, BadInput, ("no columns",)),
        (plays(), {"value": "stars"}, BadInput, ("frame", "no column 'stars'", "user, item")),
        (plays()[:0], {}, BadInput, ("frame", "no rows")),
        (plays().assign(user=None), {}, BadInput, ("frame", "0 users", "2400 rows", "empty cell")),
        (plays().assign(item=[[1]] * 2400), {}, BadInput, ("frame", "'item'", "cannot be an id")),
        (plays().assign(user=0.5), {}, BadInput, ("frame", "'user'", "float64", "cannot be an id")),
        (plays().assign(rating="good"), {}, BadInput, ("frame", "'rating'", "'good'", "not a number")),
        (plays().assign(rating=-1.0), {}, BadInput, ("frame", "row 1", "'rating'", -1)),
        (plays(), {"titles": pd.DataFrame({"item": ["1"]})}, BadInput, ("titles", "no column with titles")),
        (plays(), {"memory": "banana"}, UsageError, ("'banana'", "size")),
        (plays(), {"memory": 1.5}, UsageError, (1.5, "size")),
        (plays(), {"model": "oracle"}, UsageError, ("--model", "'oracle'")),
        (plays(), {"model": "ials", "factors": 0}, UsageError, ("--factors", "0", "positive")),
        (plays(), {"model": "ials", "settings": {"alpha": "much"}}, UsageError, ("--set", "alpha", "'much'")),
        (plays(), {"model": "linear", "settings": {"alpha": 2}}, UsageError, ("--set alpha=2", "--model ials")),
        (plays(), {"split": "half"}, UsageError, ("--split", "'half'")),
    ],
)
def test_frames_and_arguments_that_cannot_be_used(
    frame: Any,
    arguments: dict[str, Any],
    error: type[Exception],
    facts: tuple[object, ...],
    nothing_left: Path,
    quick_api: None,
) -> None:
    with refused(error, *facts) as caught:
        Recommender.fit(frame, **{"memory": MEMORY, **arguments})
    assert str(nothing_left) not in str(caught.value)


@pytest.fixture
def nothing_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A place for scratch in which nothing may be left."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    yield tmp_path
    gc.collect()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("ask", "error", "facts"),
    [
        (lambda model: model.recommend(), UsageError, ("user", "history")),
        (lambda model: model.recommend(7, history=["1"]), UsageError, ("user", "history")),
        (lambda model: model.recommend(history="1"), UsageError, ("history", "list")),
        (lambda model: model.recommend(history=[]), UsageError, ("history", "ids")),
        (lambda model: model.recommend(7, exclude="1"), UsageError, ("exclude", "'1'", "list")),
        (lambda model: model.recommend(7.5), UsageError, (7.5, "id")),
        (lambda model: model.recommend(True), UsageError, ("True", "id")),
        (lambda model: model.recommend(7, k=0), UsageError, ("-k", "0", "positive")),
        (lambda model: model.recommend(7, k="many"), UsageError, ("-k", "'many'")),
        (lambda model: model.recommend([7, 4711]), BadInput, ("user '4711'", "not in the model")),
        (lambda model: model.recommend(history=["1", "x"]), BadInput, ("item 'x'", "not in the model")),
        (lambda model: model.recommend(7, where="mixed = 1"), BadInput, ("--where", "'mixed'", "tens", "digits")),
        (lambda model: model.recommend(7, only=["x"]), BadInput, ("item 'x'", "not in the model")),
        (lambda model: model.similar("x"), BadInput, ("item 'x'", "not in the model")),
    ],
)
def test_questions_that_cannot_be_answered(
    model: Recommender, ask: Any, error: type[Exception], facts: tuple[object, ...], nothing_left: Path, quick_api: None
) -> None:
    with refused(error, *facts):
        ask(model)


def test_what_is_no_model_is_said(tmp_path: Path, quick_api: None) -> None:
    for folder, fact in ((tmp_path / "none", "no such"), (tmp_path, "not a complete model")):
        with refused(BadInput, folder, fact):
            Recommender.load(folder)
    with pytest.raises(UsageError, match="banana"):
        Recommender.load(tmp_path, memory="banana")


def test_a_ceiling_that_is_too_low_is_refused_with_one_that_does(nothing_left: Path) -> None:
    with refused(DoesNotFit, "does not fit", "2.0 MiB", "--memory") as caught:
        Recommender.fit(plays(), memory="2MiB", factors=8)
    assert isinstance(caught.value, DoesNotFit)
    smallest = caught.value.smallest_feasible_bytes
    assert smallest is not None
    says(str(caught.value), "does not fit", "2.0 MiB", "--memory")
    kept = np.ones(40 << 20)  # 320 MiB of this process, which do not count
    model = Recommender.fit(plays(), memory=smallest, factors=8)
    assert model.record["measured"]["peak_bytes"] <= smallest < kept.nbytes


def test_more_memory_than_there_is_is_only_warned_about() -> None:
    with pytest.warns(UserWarning, match="more than this machine has"):
        model = Recommender.fit(plays(), memory="100TiB", model="popularity")
    assert model.record["exit_code"] == 0


def test_importing_is_light() -> None:
    code = "import sys, apps.recsys, apps.imaging, common; print(*sorted({name.split('.')[0] for name in sys.modules}))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"numpy", "pandas", "pyarrow", "torch", "nibabel", "scipy"} & set(loaded)


def test_the_example() -> None:
    assert doctest.testmod(api) == (0, 7)
