"""``recsys recommend --where``: lists of k items where k pass, the same for one and for many, and what is refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from apps.recsys.cli import parser
from apps.recsys.models.recommender import load_manifest
from apps.recsys.planning.questions.recommend_requests import RecommendAllRequest, RecommendRequest
from apps.recsys.planning.questions.where import require_attributes, served_where_terms, where_terms
from apps.recsys.serving.service import RecommenderService
from common.errors import BadInput, UsageError
from tests.apps.recsys.conftest import Trained
from tests.messages import refused, says
from tests.promise import kept

Run = Callable[..., Any]
WHERE = "genre in (Dune, live) and not (year >= 1970 and year < 2010)"


def passes(item: int) -> bool:
    """The same of an item of the generated sample."""
    return (item % 8 == 3 or item % 5 == 0) and not 10 <= item % 60 < 50


def test_lists_are_full_where_enough_items_pass(trained: Trained, run: Run, tmp_path: Path) -> None:
    """Equal to the whole ranking without the items that do not pass; one user as in the lists for all."""
    command = ("apps.recsys", "recommend", trained.model, "--memory", "250MiB", "-k", 8)
    done = run(*command, "--all-users", "-o", tmp_path / "all.parquet", "--where", WHERE, "--json")
    assert done.code == 0, done.err
    kept(done.record)
    lists: dict[str, list[Any]] = {}
    for user, _, item, _ in zip(*pq.read_table(tmp_path / "all.parquet").to_pydict().values(), strict=True):
        lists.setdefault(user, []).append(item)
    service = RecommenderService(trained.model, load_manifest(trained.model))
    for user in list(lists)[:40]:
        whole = [item["id"] for item in service.for_user(user, 200)]
        assert lists[user] == [item for item in whole if passes(item)][:8]
        assert lists[user] == [item["id"] for item in service.for_user(user, 8, where=WHERE)]
    lengths = [len(items) for items in lists.values()]  # some users had most of the 66 items that pass
    assert len(lists) == 300 and max(lengths) == 8 and np.mean(lengths) > 7.5
    done = run(*command, "--user", "nobody", "--where", f"{WHERE} and year > 3000", "--json")
    assert (done.code, done.record["results"]["items"]) == (0, [])
    says(done.err, "--where", "no item", "'nobody'")
    kept(done.record)


def request(*options: str) -> Any:
    """The request of a command line."""
    args = parser().parse_args(["recommend", "model", "--threads", "1", *options])
    return (RecommendAllRequest if args.output else RecommendRequest).of(args)


def test_it_is_parsed_before_anything_is_read() -> None:
    for options in (("--user", "3"), ("--all-users", "-o", "x.parquet")):
        assert request(*options, "--where", "a = 1").where == "a = 1"
        for text, fact in (
            ("a = ", "character 5"),
            ("(" * 1000, 50),
            ("__import__('os')", "character 11"),
            ("", "ends"),
        ):
            with refused(UsageError, "--where", fact):
                request(*options, "--where", text)


def test_what_the_plan_says(trained: Trained) -> None:
    """Only the attributes that are named are priced, the mask is; a request to the server may name any."""
    manifest = {"items": 10**6, "attributes": []}
    for name, kind, values, letters in (
        ("genre", "text", 20, 200),
        ("url", "text", 10**6, 3 * 10**7),
        ("y", "number", 90, 0),
    ):
        entries, longest = (3 * 10**6, 6) if name == "genre" else (10**6, 1)
        several = name == "genre"
        one = {"name": name, "kind": kind, "values": values, "letters": letters, "several": several}
        manifest["attributes"].append({**one, "entries": entries, "longest": longest})  # type: ignore[attr-defined]
    said = {
        where: where_terms(where, manifest, ("load", "rank"), threads=2) for where in ("y < 3", "genre = x", "url = x")
    }
    small, some, large = (terms[0].bytes for terms in said.values())
    assert small < some < 4 << 20 and 3 * 10**7 < large < 10**8
    assert {terms[1].bytes for terms in said.values()} == {3 * 10**6}
    assert where_terms(None, manifest, ("answer",)) == []
    assert served_where_terms(manifest, ("answer",))[0].bytes > large
    assert served_where_terms({"items": 3}, ("answer",)) == []
    with refused(BadInput, "'colour'", "genre", "year"):
        require_attributes("colour = 3", load_manifest(trained.model))


@pytest.mark.parametrize("limits", [{"only": [3, 11, 5]}, {"exclude": [3]}])
def test_with_other_limits(trained: Trained, limits: dict[str, list[int]]) -> None:
    service = RecommenderService(trained.model, load_manifest(trained.model))
    allowed = np.full(200, "only" not in limits)
    rows = service.rows([str(id_) for ids in limits.values() for id_ in ids])
    allowed[rows] = "only" in limits
    mask = service.passing("genre = Dune", allowed.copy())
    assert mask is not None
    ids = {service.items.id(row) for row in np.flatnonzero(mask)}
    assert ids == {
        id_ for id_ in range(3, 200, 8) if (id_ in limits.get("only", [id_])) and id_ not in limits.get("exclude", [])
    }
