"""A question is priced by what it asks for: a ceiling that is named is enough, and not far above the peak."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from apps.recsys.data import arrow_numpy
from apps.recsys.data.csr_store import NpyWriter
from apps.recsys.data.id_table import write_table
from apps.recsys.models import recommender, weights
from apps.recsys.models.als import ials
from common.memory.process.budget import MIB
from tests.promise import kept

ITEMS, LONGEST = 8000, 600


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of many items with titles, and of two users, the second with a long history."""
    folder, random = tmp_path_factory.mktemp("catalogue"), np.random.default_rng(0)
    write_table(folder / "users.parquet", [arrow_numpy.text(["a", "b"])])
    names = arrow_numpy.text([f"item-{n}" for n in range(ITEMS)])
    write_table(folder / "items.parquet", [names], arrow_numpy.text([f"The title of number {n}" for n in range(ITEMS)]))
    factors = random.normal(0, 0.1, (ITEMS, 16)).astype(np.float32)
    weights.write(folder / weights.WEIGHTS, {weights.ITEMS: factors})
    items = np.concatenate([[5], np.arange(LONGEST)])
    for name, kind, values in (
        ("indptr", "<i8", np.array([0, 1, 1 + LONGEST])),
        ("items", "<i4", items),
        ("values", "<f4", np.ones(len(items))),
    ):
        with NpyWriter(folder / f"history.{name}.npy", kind) as out:
            out.append(values)
    counts = {"factors": 16, "items": ITEMS, "users": 2, "interactions": len(items), "longest_history": LONGEST}
    fields = {**counts, "table": "full", "hyper": dict(ials.HYPER), "split": "none", "seed": 0}
    recommender.seal(folder, kind="ials", fields=fields)
    return folder


@pytest.fixture(scope="module")
def least(catalogue: Path, run: Callable[..., Any]) -> int:
    """What a plain question needs."""
    small = run("apps.recsys", "recommend", catalogue, "--user", "b", "--memory", "60MiB", "--json")
    return int(small.record["smallest_feasible_bytes"])


@pytest.mark.parametrize(
    "asked",
    [
        ("-k", 7000, "--json"),
        ("-k", 300, "--explain", 200, "--json"),
        ("-k", 300, "--explain", 200),
        ("-k", 10, "--exclude", ",".join(f"item-{n}" for n in range(7000)), "--json"),
    ],
)
def test_what_is_asked_is_priced(catalogue: Path, least: int, run: Callable[..., Any], asked: tuple[Any, ...]) -> None:
    command = ("apps.recsys", "recommend", catalogue, "--user", "b", *asked)
    refusal = run(*command, "--memory", "60MiB", *([] if "--json" in asked else ["--json"]))
    assert refusal.code == 3
    smallest = refusal.record["smallest_feasible_bytes"]
    assert least <= smallest
    done = run(*command, "--memory", smallest)
    assert done.code == 0, done.err
    if "--json" in asked:
        kept(done.record)
        assert done.record["measured"]["peak_bytes"] > smallest - 20 * MIB
