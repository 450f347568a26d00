"""``evaluate --against``: two models on the same users, matched by id, with paired differences."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from apps.recsys.data import test_files
from apps.recsys.data.id_table import IdTable
from apps.recsys.data.splits import HeldOut
from common.errors import BadInput, UsageError
from tests.apps.recsys.conftest import Trained
from tests.apps.recsys.in_process import done
from tests.messages import refused, says
from tests.promise import kept

Run = Callable[..., Any]
FILTER = ("--model", "linear", "--factors", "0", "--set", "form=filter", "--set", "degree_power=0.2")


@pytest.fixture(scope="module")
def rows() -> list[str]:
    """Interactions of 80 users with 50 items, even users more with even items."""
    random = np.random.default_rng(1)
    pairs = {(u, int(i) * 2 + u % 2) for u in range(80) for i in 25 * random.random(12) ** 2}
    return [f"u{user},i{item}" for user, item in sorted(pairs)]


@pytest.fixture(scope="module")
def models(rows: list[str], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A filter, and popular items, of the same split."""
    folder = tmp_path_factory.mktemp("against")
    data = folder / "data.csv"
    data.write_text("\n".join(["user,item", *rows]) + "\n")
    for name, options in (("filter", FILTER), ("popular", ("--model", "popularity"))):
        done("train", data, "-o", folder / name, "--split", "random", *options, "-q")
    return folder / "filter", folder / "popular"


def test_differences_are_of_the_same_users(models: tuple[Path, Path]) -> None:
    mine, theirs = models
    found, said = done("evaluate", mine, "--against", theirs, "--metrics", "ndcg@10,coverage@5", "--seed", 4)
    alone = [done("evaluate", model, "--metrics", "ndcg@10,coverage@5", "--seed", 4)[0] for model in models]
    against = found["against"]
    assert (found["metrics"], found["intervals"]) == (alone[0]["metrics"], alone[0]["intervals"])
    assert (against["metrics"], against["intervals"]) == (alone[1]["metrics"], alone[1]["intervals"])
    for name, difference in against["differences"].items():
        assert difference == pytest.approx(found["metrics"][name] - against["metrics"][name], abs=1e-12)
    low, high = against["difference_intervals"]["ndcg@10"]
    assert 0 < low < against["differences"]["ndcg@10"] < high and "coverage@5" not in against["difference_intervals"]
    widths = [np.ptp(one["intervals"]["ndcg@10"]) for one in alone]
    assert high - low < sum(widths)
    says(
        said, "ndcg@10", f"{found['metrics']['ndcg@10']:.4f} [", f"difference +{against['differences']['ndcg@10']:.4f}"
    )
    reverse = done("evaluate", theirs, "--against", mine, "--metrics", "ndcg@10", "--seed", 4)[0]["against"]
    assert reverse["difference_intervals"]["ndcg@10"] == pytest.approx([-high, -low], abs=1e-12)
    itself = done("evaluate", mine, "--against", mine, "--metrics", "ndcg@10")[0]["against"]
    assert itself["difference_intervals"] == {"ndcg@10": [0, 0]}


def test_users_and_items_are_matched_by_id(rows: list[str], models: tuple[Path, Path], tmp_path: Path) -> None:
    """A model of the rows in another order, of fewer users, on a test file with a user and an item that is new."""
    other, fewer = tmp_path / "other", [row for row in reversed(rows) if not row.startswith(("u7,", "u30,"))]
    data, test = tmp_path / "data.csv", tmp_path / "test.csv"
    data.write_text("\n".join(["user,item", *fewer]) + "\n")
    done("train", data, "-o", other, "--model", "popularity", "-q")
    pairs = {("u1", "i2"), ("u1", "new"), ("u5", "i3"), ("u7", "i1"), ("u60", "i9"), ("nobody", "i1")}
    test.write_text("\n".join(["user,item", *(",".join(pair) for pair in sorted(pairs))]) + "\n")
    found, said = done("evaluate", models[0], "--against", other, "--test", test, "--metrics", "recall@20")
    assert found["users"] == 3
    says(said, "compared: 3 users")

    held = []
    for name, model in (("a", models[0]), ("b", other)):
        (tmp_path / name).mkdir()
        sources = (test_files.readers.open_source(test, test_files.readers.Columns()),)
        test_files.write(sources, model, tmp_path / name)
        held.append(tmp_path / name)
    assert test_files.align((models[0], other), (held[0], held[1]), tmp_path, same=False) == 3
    first, second, places = HeldOut(tmp_path / "0"), HeldOut(tmp_path / "1"), np.load(tmp_path / test_files.PLACES)
    tables = [(IdTable(model / "users.parquet"), IdTable(model / "items.parquet")) for model in (models[0], other)]
    for row, place in enumerate(places):
        user = tables[0][0].id(first.users[row])
        assert user == tables[1][0].id(second.users[place]) != "u7"
        scored = [
            {table.id(item) if item < len(table) else "new" for item in items}
            for (_, table), items in zip(tables, (first.items(row), second.items(int(place))), strict=True)
        ]
        assert scored[0] == scored[1] == {item for one, item in pairs if one == user}


def test_models_that_cannot_be_compared(models: tuple[Path, Path], rows: list[str], tmp_path: Path) -> None:
    data, other, none = tmp_path / "data.csv", tmp_path / "other", tmp_path / "none"
    data.write_text("\n".join(["user,item", *rows]) + "\n")
    done("train", data, "-o", other, "--split", "random", "--seed", 9, "--model", "popularity", "-q")
    done("train", data, "-o", none, "--model", "popularity", "-q")
    with refused(BadInput, models[0], other, "--test"):
        done("evaluate", models[0], "--against", other)
    with refused(BadInput, none, "--split"):
        done("evaluate", models[0], "--against", none)
    with refused(UsageError, "--against"):
        done("evaluate", models[0], "--against", other, "--negatives", data)


def test_the_plan_has_both_models(trained: Trained, run: Run) -> None:
    command = ("apps.recsys", "evaluate", trained.model, "--against", trained.model, "--json", "--memory")
    refusal = run(*command, "60MiB")
    assert refusal.code == 3
    finished = run(*command, refusal.record["smallest_feasible_bytes"])
    assert finished.code == 0, finished.err
    kept(finished.record)
    assert {"evaluate", "against"} <= {phase["name"] for phase in finished.record["measured"]["phases"]}
