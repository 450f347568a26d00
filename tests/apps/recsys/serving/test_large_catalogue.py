"""A catalogue that is large enough to be left on disk: trained, asked and served through the command line."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from apps.recsys.data.id_table import IdTable
from apps.recsys.models.recommender import Recommender, load_manifest
from apps.recsys.models.scan import stored
from apps.recsys.models.scan.choice import Choice, choice_bytes
from apps.recsys.planning.service.workload import KEPT
from apps.recsys.serving.service import RecommenderService
from common.errors import UsageError
from tests.apps.recsys import in_process
from tests.apps.recsys.running import serving
from tests.machine import patience
from tests.messages import refused

ITEMS = stored.LEAST_ITEMS + 500
SPECTRAL = {"form": "spectral", "degree_power": 0.2, "saturation": 0.1}
MODELS = {
    "ials": ("--model", "ials", "--set", "iterations=2"),
    "linear": ("--model", "linear", *(f"--set={name}={value}" for name, value in SPECTRAL.items())),
}


@pytest.fixture(scope="module", params=MODELS)
def large(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, run: Callable[..., Any]) -> Path:
    """A model of so many items."""
    folder = tmp_path_factory.mktemp("large")
    random = np.random.default_rng(0)
    liked = (ITEMS * random.random(40_000) ** 3).astype(int).tolist()
    pairs = [*enumerate(range(ITEMS)), *((number % 2000, item) for number, item in enumerate(liked))]
    rows = dict.fromkeys((user % 2000, item) for user, item in pairs)
    text = "user,item\n" + "".join(f"{user},{item}\n" for user, item in rows)
    (folder / "events.csv").write_text(text)
    (folder / "items.csv").write_text("item,part\n" + "".join(f"{item},{item % 7}\n" for item in range(ITEMS)))
    model = folder / "model"
    options = (*MODELS[request.param], "--factors", 8, "--memory", "300MiB", "-q", "--json")
    options += ("--items", folder / "items.csv")
    done = run("apps.recsys", "train", folder / "events.csv", "-o", model, *options)
    assert done.code == 0, done.err
    assert done.record["measured"]["peak_bytes"] <= done.record["plan"]["predicted_peak_bytes"]
    return model


def lists(model: Path, user: str, k: int) -> list[tuple[int, float]]:
    """The best items of a full ranking."""
    made = load_manifest(model)
    recommender = Recommender(model, made)
    row = IdTable(model / "users.parquet").row(user)
    assert row is not None
    return [*recommender.recommend(recommender.history.items(row), recommender.history.values(row), k)]


def test_its_codes_are_part_of_the_model(large: Path) -> None:
    made = load_manifest(large)
    assert stored.is_there(made) and made["items"] == ITEMS
    assert made["files"][stored.CODES]["bytes"] > ITEMS * 8


def test_a_smaller_model_in_its_place_has_no_codes(large: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(large, tmp_path / "model")
    (tmp_path / "few.csv").write_text("user,item\n" + "".join(f"{n % 9},{n % 7}\n" for n in range(60)))
    in_process.done("train", tmp_path / "few.csv", "-o", copy, "--model", "ials", "--factors", 4)
    assert not stored.is_there(load_manifest(copy)) and not [*copy.glob("scan.*")]


def test_a_list_is_that_of_a_full_ranking(large: Path, run: Callable[..., Any]) -> None:
    done = run("apps.recsys", "recommend", large, "--user", "0", "-k", 5, "--memory", "200MiB", "--json")
    assert done.code == 0, done.err
    found = done.record["results"]["items"]
    assert [item["score"] for item in found] == pytest.approx(
        [score for _, score in lists(large, "0", 5)], abs=2e-6, rel=1e-5
    )
    assert done.record["measured"]["peak_bytes"] <= done.record["plan"]["predicted_peak_bytes"]
    assert "scan of codes" in {term["name"] for term in done.record["plan"]["terms"]}


def test_it_is_served(large: Path) -> None:
    with (
        serving(large, "--workers", 2, "--feedback", large.with_name("log.jsonl")) as (_, address),
        httpx.Client(base_url=address, timeout=patience(60)) as client,
    ):
        items = client.get("/recommend", params={"user": "0", "k": 20}).json()["items"]
        exact = [score for _, score in lists(large, "0", 20)]
        assert [item["score"] for item in items] == pytest.approx(exact, abs=2e-6, rel=1e-5)
        best = items[0]["id"]
        assert client.post("/feedback", json={"events": [{"user": "0", "item": best}]}).status_code == 200
        assert best not in {item["id"] for item in client.get("/recommend?user=0&k=20").json()["items"]}
        (item,) = client.get("/recommend", params={"history": "3,5", "k": 1, "explain": 2}).json()["items"]
        added = sum(had["score"] for had in item["because"])
        assert added + item["others"] == pytest.approx(item["score"], abs=1e-5)
        near = client.get("/items/7/similar", params={"k": 3}).json()["items"]
        assert len(near) == 3 and 7 not in {one["id"] for one in near}
        assert client.get("/items", params={"q": "7", "k": 1}).json()["items"][0]["id"] == 7


def test_filters_that_are_asked_for_again_change_no_list(large: Path) -> None:
    plain, keeping = (RecommenderService(large, load_manifest(large), filters=number) for number in (0, 2))
    parts = ["part = 3", "part in (1, 2)", "part > 4"]
    for where in (*parts, *parts, parts[2], "part = 9"):
        for user in ("0", "7", "1999"):
            allowed = keeping.choice(where)
            assert isinstance(allowed, Choice)
            assert keeping.ranked(user, (), 20, allowed).best == plain.ranked(user, (), 20, plain.choice(where)).best
        assert keeping.popular(3, keeping.choice(where)).best == plain.popular(3, plain.choice(where)).best
    only = np.arange(ITEMS) < 100
    assert (keeping.choice(parts[0], only.copy()) == plain.choice(parts[0], only.copy())).all()  # type: ignore[union-attr]
    with refused(UsageError, "where"):
        keeping.choice("part =")


def test_the_plan_has_a_term_for_filters(large: Path, run: Callable[..., Any]) -> None:
    words = ("apps.recsys", "serve", large, "--port", 0, "--dry-run", "--json", "--memory")
    small = run(*words, "30MiB").record["smallest_feasible_bytes"]
    plans = [run(*words, size).record["plan"] for size in (small, 2 * small)]
    kept = [sum(term["bytes"] for term in plan["terms"] if term["name"] == KEPT) for plan in plans]
    assert kept == [plan["knobs"]["filters"] * choice_bytes(ITEMS, 8) for plan in plans]
    assert kept[1] == 4 * choice_bytes(ITEMS, 8) and kept[0] <= kept[1]


def test_lists_of_several_have_one_filter(large: Path) -> None:
    with (
        serving(large, "--memory", "250MiB") as (_, address),
        httpx.Client(base_url=address, timeout=patience(60)) as client,
    ):
        asked = {"users": [0, 7], "k": 40, "where": "part = 3"}
        first, second = (client.post("/recommend", json=asked).json()["lists"] for _ in range(2))
        assert first == second and [len(one["items"]) for one in first] == [40, 40]
        assert {item["id"] % 7 for one in first for item in one["items"]} == {3}
        (one,) = client.post("/recommend", json={"users": [0], "k": 40, "where": "part = 3"}).json()["lists"]
        alone = client.get("/recommend", params={"user": 0, "k": 40, "where": "part = 3"}).json()
        assert one["items"] == alone["items"] == first[0]["items"]
        few = client.post("/recommend", json={**asked, "only": [3, 10, 11]}).json()["lists"]
        assert {item["id"] for item in few[0]["items"]} <= {3, 10}


def test_what_a_list_takes_is_tried_on_users_of_the_model(large: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    service = RecommenderService(large, load_manifest(large))
    asked: list[int] = []
    recommend = service.recommender.recommend

    def counted(*history: Any, **how: Any) -> Any:
        asked.append(len(history[0]))
        return recommend(*history, **how)

    monkeypatch.setattr(service.recommender, "recommend", counted)
    half, longest = service.tried(40)
    assert len(asked) == 40 and 0 < half <= longest and service.recommender.scans
