"""Recommending for all users is priced by the rows of a part and by the length of the ids in them."""

from pathlib import Path
from typing import Any

import pytest

from apps.recsys.planning.questions.recommend_requests import RecommendAllRequest
from apps.recsys.planning.recommend_all import RecommendAllWorkload

MIB = 1 << 20


def _terms(users: int, *, id_bytes: int = 8, k: int = 10) -> dict[str, int]:
    files = {"users.parquet": {"bytes": users * id_bytes}, "items.parquet": {"bytes": 100 * id_bytes}}
    sizes: dict[str, Any] = {"users": users, "items": 100, "interactions": 3 * users, "longest_history": 5}
    manifest: Any = {"kind": "ials", "factors": 8, "hyper": {}, "files": files, **sizes}
    request = RecommendAllRequest(model=Path("model"), output=Path("lists.parquet"), k=k, threads=1)
    work = RecommendAllWorkload(request, manifest)
    setting = {"user_block": 8}
    known = {probe: {"bytes": 1.0} for probe in work.probes(setting)}
    return {term.name: term.bytes for term in work.footprint(setting, known).terms}


def test_the_writer_takes_little_for_a_few_rows() -> None:
    few = _terms(40)
    assert few["ranking or writing"] == (9 << 18) + 104 * 400
    assert few["part of the answer"] == few["ranking or writing"] + 32 * 400
    some = _terms(2000)
    assert some["ranking or writing"] == (9 << 18) + 235 * (20_000 - 16_384) + 104 * 20_000
    many = _terms(4096)
    assert many["ranking or writing"] == (9 << 18) + 235 * (40_960 - 16_384) + 104 * 40_960


@pytest.mark.parametrize("users", [4096, 10_000])
def test_long_ids_are_in_every_row(users: int) -> None:
    rows = 40_960
    short, long = _terms(users), _terms(users, id_bytes=64)
    assert long["ranking or writing"] - short["ranking or writing"] == rows * (2 * 64 - 16)
    assert long["part of the answer"] - short["part of the answer"] == 2 * rows * (2 * 64 - 16)
    # what the writer of the first part keeps
    assert short["part of the answer"] == (9 << 18) + 235 * (rows - 16_384) + (104 + 32) * rows + (
        MIB if users > 4096 else 0
    )
