"""Networks in 8-bit integers: close to those in float32, small files, and what is damaged or unchanged is refused."""

import gzip
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from apps.imaging.models.model_folder import read_model
from common.engines import openvino, quantization
from common.engines.base import INT8, PLAIN_INT8
from common.engines.registry import open_engine
from common.errors import BadInput
from common.model_folder import model_path
from tests.messages import refused

pytest.importorskip("nncf")
SHIPPED, TILE = model_path("hippocampus"), (16, 16, 16)


@pytest.fixture(scope="module")
def quantised(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped model, whose weights alone are integers."""
    folder = tmp_path_factory.mktemp("model")
    shutil.copytree(SHIPPED, folder, dirs_exist_ok=True)
    quantization.quantise_weights(SHIPPED, folder)
    return folder


def answer(folder: Path, precision: str) -> Any:
    head = read_model(folder).head
    engine = open_engine(folder, name="openvino", precision=precision, tile=TILE, batch=1, threads=1, head=head)
    return np.array(engine(np.random.default_rng(0).standard_normal((1, 1, *TILE)).astype(np.float32)))


def test_weights_in_integers_are_a_quarter_and_hardly_change_logits(quantised: Path) -> None:
    size = sum((quantised / name).stat().st_size for name in INT8)
    assert 3.5 * size < (SHIPPED / "network.onnx").stat().st_size
    exact, rounded = answer(quantised, "float32"), answer(quantised, "int8")
    assert 0 < np.abs(exact - rounded).max() < 0.1 * np.abs(exact).max()


def test_graphs_of_the_version_before_are_read(quantised: Path, tmp_path: Path) -> None:
    shutil.copytree(quantised, tmp_path, dirs_exist_ok=True)
    (tmp_path / PLAIN_INT8[0]).write_bytes(gzip.decompress((tmp_path / INT8[0]).read_bytes()))
    (tmp_path / INT8[0]).unlink()
    assert np.array_equal(answer(tmp_path, "int8"), answer(quantised, "int8"))


def test_a_graph_is_an_input(quantised: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(quantised, tmp_path, dirs_exist_ok=True)
    whole = (tmp_path / INT8[0]).read_bytes()
    for damaged in (whole[:-20], b"not compressed", whole[:400] + b"\xff" * 40 + whole[440:]):
        (tmp_path / INT8[0]).write_bytes(damaged)
        with refused(BadInput, INT8[0], "damaged"):
            answer(tmp_path, "int8")
    (tmp_path / INT8[0]).write_bytes(whole)
    monkeypatch.setattr(openvino, "LONGEST_GRAPH", 1000)
    with refused(BadInput, INT8[0], "more than 1,000 bytes"):
        answer(tmp_path, "int8")


def test_a_quantiser_that_changed_nothing_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nncf = quantization.import_nncf()
    monkeypatch.setattr(nncf, "quantize", lambda model, *others, **more: model)
    monkeypatch.setattr(nncf, "compress_weights", lambda model, **more: model)
    tile = np.zeros((1, 1, *TILE), np.float32)
    with refused(BadInput, "--int8", "no layer was quantised"):
        quantization.quantise(SHIPPED, tmp_path, lambda: [tile], count=1, tile=TILE)
    with refused(BadInput, "--int8-weights", "no layer was quantised"):
        quantization.quantise_weights(SHIPPED, tmp_path)
    assert not any(tmp_path.iterdir())
