"""The report: whole, truthful, self-contained, and closed to what a record may carry."""

import json
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from common.memory.process.budget import GIB, MIB, format_size
from common.memory.report import charts
from common.memory.report import page as report
from tests.schemas import read_record

HOSTILE = "<script>alert('x')</script>&\"</title></style>"


def _record(**change: Any) -> dict[str, Any]:
    terms = [
        {"name": "interpreter and libraries", "bytes": 100 * MIB, "source": "measured", "phases": ["*"]},
        {"name": "activations", "bytes": 60 * MIB, "source": "replayed", "phases": ["train"]},
        {"name": "blend", "bytes": 20 * MIB, "source": "analytic", "phases": ["validate"]},
    ]
    plan = {
        "workload": "imaging train",
        "knobs": {"micro_batch": 2, "amp": "bf16"},
        "terms": terms,
        "predicted_peak_bytes": 160 * MIB,
        "reserve_bytes": 5 * MIB,
        "offered": 8,
        "slowdown": 1.25,
        "rejected": [
            {"knobs": {"micro_batch": [4]}, "settings": 4, "needed_bytes": [220 * MIB, 260 * MIB], "why": None}
        ],
    }
    phases = [
        {"name": name, "start": start, "seconds": 2.0, "peak_bytes": size * MIB}
        for name, start, size in (("start", 0.0, 98), ("train", 2.0, 155), ("validate", 4.0, 118), ("train", 6.0, 158))
    ]
    measured = {
        "peak_bytes": 158 * MIB,
        "method": "hwm",
        "floor_bytes": 98 * MIB,
        "phases": phases,
        "timeline": [[t / 2, (90 + 4 * t) * MIB] for t in range(16)],
    }
    return {
        "peakline": "0.1",
        "command": "imaging train",
        "started": "2026-01-01T00:00:00+00:00",
        "seconds": 8.0,
        "exit_code": 0,
        "budget": {"host_bytes": 200 * MIB, "device_bytes": None, "source": "--memory"},
        "plan": plan,
        "measured": measured,
        "within_budget": True,
        "results": {"metrics": {"mean_dice": 0.883}, "steps": 4},
    } | change


def _figures(page: str) -> list[ET.Element]:
    return [ET.fromstring(svg) for svg in re.findall(r"<svg viewBox.*?</svg>", page, flags=re.S)]


def _of(figure: ET.Element, kind: str, tag: str = "line") -> list[dict[str, str]]:
    return [element.attrib for element in figure.iter(tag) if element.get("class") == kind]


def test_the_timeline_shows_every_phase_where_it_was() -> None:
    figure = ET.fromstring(charts.timeline(_record()))
    peaks, foretold, (ceiling,) = _of(figure, "peak"), _of(figure, "predicted"), _of(figure, "ceiling")
    assert len(peaks) == 4 and len(foretold) == 3  # nothing is predicted for the start
    bottom = charts.TIMELINE_HEIGHT - charts.BOTTOM
    assert float(ceiling["y1"]) == pytest.approx(bottom - (bottom - charts.TOP) / 1.06, abs=0.1)
    scale = (bottom - float(ceiling["y1"])) / (200 * MIB)
    heights = [(bottom - float(line["y1"])) / scale / MIB for line in peaks]
    assert heights == pytest.approx([98, 155, 118, 158], abs=0.2)
    assert [(bottom - float(line["y1"])) / scale / MIB for line in foretold] == pytest.approx([160, 120, 160], abs=0.2)
    second = (charts.WIDTH - charts.RIGHT - charts.LEFT) / 8
    assert [float(line["x1"]) for line in foretold] == pytest.approx(
        [charts.LEFT + second * s for s in (2, 4, 6)], abs=0.1
    )


def test_a_far_ceiling_is_named_and_does_not_press_the_rest_flat() -> None:
    record = _record(budget={"host_bytes": 4 * GIB, "device_bytes": None, "source": "--memory"})
    figure = ET.fromstring(charts.timeline(record))
    assert not _of(figure, "ceiling")
    assert "4.00 GiB" in "".join(figure.itertext())
    assert float(_of(figure, "peak")[-1]["y1"]) < charts.TIMELINE_HEIGHT / 3


@pytest.mark.parametrize(
    ("seconds", "step"),
    [(0.7, 0.1), (1.7, 0.5), (8, 1), (9, 2), (40, 5), (41, 10), (480, 60), (5000, 1800), (2e4, 3600)],
)
def test_the_time_axis_has_round_steps_and_at_most_nine_of_them(seconds: float, step: float) -> None:
    record = _record()
    record["measured"] |= {"timeline": [[0.0, MIB]], "phases": []}
    record["measured"]["phases"] = [{"name": "train", "start": 0.0, "seconds": seconds, "peak_bytes": 2 * MIB}]
    texts = [one for one in ET.fromstring(charts.timeline(record)).iter("text") if (one.text or "").endswith(" s")]
    marks = [float((one.text or "").split()[0]) for one in texts]
    assert marks == pytest.approx([step * number for number in range(len(marks))])
    assert len(marks) <= 9 and marks[-1] <= seconds < marks[-1] + step + 1e-9
    width = charts.WIDTH - charts.RIGHT - charts.LEFT
    places = [charts.LEFT + width * mark / seconds for mark in marks]
    assert [float(one.attrib["x"]) for one in texts] == pytest.approx(places, abs=0.1)


@pytest.mark.parametrize(
    ("top", "step"), [(1, 1), (6, 1), (7, 2), (12, 2), (13, 4), (200, 64), (6 * 1024, 1024), (7 * 1024, 2048)]
)
def test_the_byte_axis_doubles_its_steps_until_at_most_seven_are_left(top: int, step: int) -> None:
    assert charts.ticks(top * MIB) == [size * MIB for size in range(0, top + 1, step)]


def test_two_phases_are_a_table_and_one_is_none() -> None:
    record = _record()
    for count, shown in ((2, True), (1, False)):
        record["measured"]["phases"] = record["measured"]["phases"][:count]
        text = re.sub(r"<[^>]+>|\s+", " ", report.render(record).split("</style>")[1])
        assert (re.search(r"start +2\.0 s +98\.0 MiB", text) is not None) is shown


def test_bars_are_as_long_as_their_terms() -> None:
    figure = ET.fromstring(charts.composition(_record()))
    wide = {kind: float(_of(figure, kind, "rect")[0]["width"]) for kind in ("c0", "c1", "c2")}
    assert wide["c1"] / wide["c0"] == pytest.approx(0.6, abs=0.01)
    assert wide["c2"] / wide["c0"] == pytest.approx(0.2, abs=0.01)
    assert len(_of(figure, "mark", "path")) == 2  # train and validate were measured
    told = [element.text for element in figure.iter("title")]
    assert f"measured {format_size(158 * MIB)}" in told  # the larger of the two times it trained


def test_the_page_says_what_the_record_says() -> None:
    page = report.render(_record())
    text = re.sub(r"<[^>]+>", " ", page.split("</style>")[1])
    for needle in (
        "158.0 MiB",
        "160.0 MiB, 1.3%",
        "8 settings",
        "1.25 times",
        "220.0 MiB to 260.0 MiB",
        "metrics.mean_dice",
        "0.883",
    ):
        assert needle in text, needle
    assert re.search(r"train\s+2x\s+4\.0 s\s+160\.0 MiB\s+158\.0 MiB\s+\+1\.3%", re.sub(r"\s+", " ", text))


def test_nothing_comes_from_elsewhere() -> None:
    page = report.render(_record())
    assert not re.search(r"https?:|<script|<link|<img|url\(|@import|\bsrc=|\bhref=", page)
    assert "default-src 'none'" in page


def test_what_a_record_carries_is_escaped() -> None:
    record = _record(command=HOSTILE, error={"kind": "x", "message": HOSTILE}, results={HOSTILE: HOSTILE}, exit_code=1)
    record["plan"]["knobs"] = {HOSTILE: HOSTILE}
    record["plan"]["terms"][1] |= {"name": HOSTILE, "source": HOSTILE, "phases": [HOSTILE]}
    record["plan"]["rejected"] = [
        HOSTILE,
        {"knobs": {HOSTILE: [HOSTILE]}, "settings": 1, "needed_bytes": None, "why": HOSTILE},
    ]
    record["measured"]["phases"][0]["name"] = HOSTILE
    record["missing_walls"] = [HOSTILE]
    page = report.render(record)
    assert "<script" not in page and page.count("</style>") == 1 and page.count("</title></style>") == 0
    assert len(_figures(page)) >= 2  # still well-formed


@pytest.mark.parametrize(
    ("record", "says"),
    [
        (
            {"command": "bench fill", "exit_code": 1, "error": {"kind": "killed", "message": "killed at 9 MiB"}},
            "killed at 9",
        ),
        (_record(exit_code=3, plan=None, results={}, smallest_feasible_bytes=300 * MIB), "300.0 MiB"),
        (_record(exit_code=130, results={}), "Interrupted"),
        (_record(exit_code=0, within_budget=False), "above its ceiling"),  # of older versions
        (_record(exit_code=1, error={"kind": "above the ceiling", "message": "by 9 MiB"}), "above its ceiling"),
        ({}, "peakline"),
    ],
)
def test_every_ending_has_a_page(record: dict[str, Any], says: str) -> None:
    assert says in report.render(record)


def test_an_old_record_is_rendered_again(tmp_path: Path) -> None:
    record = _record()
    for phase in record["measured"]["phases"]:
        del phase["start"]
    (tmp_path / "run.json").write_text(json.dumps(record))
    done = subprocess.run(
        [sys.executable, "-m", "common.memory.report", tmp_path / "run.json"], capture_output=True, text=True
    )
    assert done.returncode == 0 and "<svg" in (tmp_path / "run.html").read_text()
    for bad in ("[]", "no json"):
        (tmp_path / "run.json").write_text(bad)
        done = subprocess.run(
            [sys.executable, "-m", "common.memory.report", tmp_path / "run.json"], capture_output=True, text=True
        )
        assert done.returncode == 4 and len(done.stderr.splitlines()) == 1


def test_report_is_written_beside_the_record(run: Callable[..., Any], tmp_path: Path) -> None:
    command = ("common.bench.demo_allocation", "--bytes", "20MiB", "--memory", "200MiB", "--report")
    assert run(*command, "--output", tmp_path / "run.json").code == 0
    page = (tmp_path / "report.html").read_text()
    assert read_record(tmp_path / "run.json")["command"] in page and len(_figures(page)) >= 2
    refused = run(*command)
    assert refused.code == 2 and "--report" in refused.err
