"""The studies' part of the report: pictures in the page, tables, and no identifier."""

import json
from base64 import b64decode
from io import BytesIO
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from apps.imaging.inference import report
from tests.apps.imaging.dicom_files import NAME, series
from tests.apps.imaging.helpers import output_file, random_model


def test_a_run_has_its_studies_in_the_report(quick, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    random_model(tmp_path / "model")
    series(tmp_path / "in" / NAME, count=20)
    done = quick("apps.imaging", "infer", tmp_path / "in", "-m", tmp_path / "model", "-o", tmp_path / "out", "--report")
    assert done.code == 0, done.err
    page = (tmp_path / "out" / "report.html").read_text()
    assert "research use" in page and "study-0001" in page and NAME.split("^")[0] not in page
    encoded = page.split("data:image/png;base64,")[1].split('"')[0]
    assert b64decode(encoded) == output_file(tmp_path / "out", ending=".png").read_bytes()
    assert PIL.Image.open(BytesIO(b64decode(encoded))).format == "PNG"
    classes = json.loads(output_file(tmp_path / "out", ending="-statistics.json").read_text())["classes"]
    found = [row for row in classes if row["voxels"]]
    assert found and all(f"{row['voxels']:,}</td>" in page for row in found)
    assert "script" not in page and "http://" not in page and "https://" not in page


def test_pictures_beyond_the_limit_are_left_to_their_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (40, 40, 3)).astype(np.uint8)
    for number in (1, 2):
        PIL.Image.fromarray(noise).save(tmp_path / f"study-000{number}.png")
    size = (tmp_path / "study-0001.png").stat().st_size
    monkeypatch.setattr(report, "EMBEDDED_BYTES", 2 * size - 1)
    rows = [{"study": f"study-000{n}", "status": "done", "reason": None, "outputs": [".png"]} for n in (1, 2)]
    table = "".join(f"study-000{n},in,done,,study-000{n}.png,,\n" for n in (1, 2))
    (tmp_path / "studies.csv").write_text("study,input,status,reason,outputs,key,source\n" + table)
    rows.append({"study": "study-0003", "status": "failed", "reason": "<b>", "outputs": []})
    page = "".join(report.studies({"results": {"studies": rows}}, tmp_path))
    assert page.count("<img") == 1 and "The picture stays in its file" in page
    assert "failed" in page and "&lt;b&gt;" in page and "<b>" not in page
