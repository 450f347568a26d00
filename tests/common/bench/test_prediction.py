"""The grid's order and its numbers; the runs themselves are the benchmark."""

import json
import random
from pathlib import Path

import pytest

from apps.imaging.bench.promise import prediction as imaging
from apps.recsys.bench import promise_prediction as recsys
from common.bench import prediction, prediction_plot

MIB = 1 << 20
GRIDS = (imaging.grid(), recsys.grid())


def line(error: float, measured: int = 200 * MIB, drawn: bool = False) -> dict[str, object]:
    predicted = round(measured * (1 + error))
    labels = {"network": "unet" if drawn else "dynunet", "patch": "64"}
    return {
        "name": f"n{error}{drawn}",
        "labels": labels,
        "drawn": drawn,
        "predicted": predicted,
        "measured": measured,
        "error": error,
        "whole_error": error / 2,
    }


def test_there_are_two_hundred_and_a_fifth_is_drawn() -> None:
    orders = [grid.ordered(seed=3, quick=False) for grid in GRIDS]
    assert sum(map(len, orders)) >= 200
    for grid, order in zip(GRIDS, orders, strict=True):
        assert len({each.name for each in order}) == len(order)
        assert sum(each.drawn for each in order) >= len(order) / 5
        assert any(each.drawn for each in order[:5])
        again = [each.name for each in grid.ordered(seed=3, quick=False)]
        other = [each.name for each in grid.ordered(seed=4, quick=False)]
        assert again == [each.name for each in order]
        assert {name for name in other if name in again} == {each.name for each in order if not each.drawn}
        assert len(grid.ordered(seed=3, quick=True)) == 25


@pytest.mark.parametrize("grid", GRIDS, ids=lambda grid: grid.name)
def test_arguments_are_json_and_make_the_probe(grid: prediction.Grid) -> None:
    each = grid.draw(random.Random(1))
    assert each.drawn and set(json.loads(each.arguments)) >= {"micro_batch", "amp"}
    assert json.loads(grid.traced(each).arguments)["prepare"] == each.prepare


def test_numbers_are_of_runs_that_are_large_enough() -> None:
    errors = [0.01] * 17 + [0.03, -0.02]
    lines = [line(error) for error in errors] + [line(0.04, drawn=True), line(0.5, measured=100 * MIB)]
    numbers = prediction.summary(lines)
    assert (numbers["configurations"], numbers["judged"], numbers["drawn"]) == (21, 20, 1)
    assert numbers["median_error"] == 0.01 and numbers["p95_error"] == 0.03 and numbers["drawn_p95_error"] == 0.04
    assert numbers["under"] == 1 / 20 and numbers["largest_under"] == 0.02 and numbers["whole_largest_error"] == 0.02
    table = prediction.families(lines)
    assert [row.split()[:3] for row in table if row.startswith("network")] == [["network", "dynunet", "19"]]


def test_plot_has_a_point_for_each_run(tmp_path: Path) -> None:
    lines = [line(0.01), line(0.02, drawn=True), line(0.05, measured=900 * MIB)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(each) + "\n" for each in lines))
    assert prediction_plot.main([str(tmp_path / "a.jsonl"), "-o", str(tmp_path / "plot.svg")]) == 0
    assert (tmp_path / "plot.svg").read_text().count("<circle") == 3
