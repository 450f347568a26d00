"""Engines agree with PyTorch and with each other; their probe tells what they really need."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from apps.imaging.models.model_folder import TORCH_NETWORK, read_model
from common.engines.base import DoubleBuffer, prefetch, read_head
from common.engines.registry import choose, measure, open_engine, require_precision
from common.errors import UsageError
from common.memory.costs import cpu
from tests.apps.imaging.helpers import random_model
from tests.messages import refused, says
from tests.precision import AVX2, needs

TILE = (16, 24, 16)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    directory = tmp_path_factory.mktemp("model")
    return directory, random_model(directory, classes=5)


def tiles(count: int = 2) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((count, 1, *TILE)).astype(np.float32)


@pytest.mark.parametrize("name", ["openvino", "onnxruntime", "torch"])
def test_logits_and_features_are_the_networks(model: tuple[Path, Any], name: str) -> None:
    import torch

    directory, network = model
    head = read_model(directory).head
    options = {"precision": "float32", "tile": TILE, "batch": 2, "threads": 1, "head": head, "builder": TORCH_NETWORK}
    engine = open_engine(directory, name=name, **options)
    assert (engine.in_channels, engine.out_channels, engine.output) == (1, 5, "logits")
    with torch.inference_mode():
        expected = network(torch.from_numpy(tiles())).numpy()
    logits = engine(tiles()).copy()
    np.testing.assert_allclose(logits, expected, atol=2e-5)
    features = open_engine(directory, name=name, output="features", **options)(tiles())
    weight, bias = read_head(directory, head)
    through = np.einsum("cf,bfxyz->bcxyz", weight, features) + bias[:, None, None, None]
    np.testing.assert_allclose(through, expected, atol=2e-5)


def test_a_network_without_a_head_gives_logits(tmp_path: Path) -> None:
    import torch

    arguments = {"channels": [8, 16], "strides": [2], "num_res_units": 1}
    network = random_model(tmp_path, network="unet", arguments=arguments)
    model = read_model(tmp_path)
    assert model.head is None and model.features == 3
    options = {"name": "openvino", "precision": "float32", "tile": TILE, "batch": 1, "threads": 1}
    with torch.inference_mode():
        expected = network(torch.from_numpy(tiles(1))).numpy()
    np.testing.assert_allclose(open_engine(tmp_path, **options)(tiles(1)), expected, atol=2e-5)
    with pytest.raises(ValueError, match="1x1x1"):
        open_engine(tmp_path, output="features", **options)


def test_the_probe_measures_bytes_and_time(model: tuple[Path, Any]) -> None:
    head = read_model(model[0]).head
    found = measure(
        warm_up="apps.imaging.warm_up:openvino", workers=1, network="x", model_dir=str(model[0]), name="openvino",
        precision="float32", tile=list(TILE), batch=1, output="logits", head=head, builder=None,
    )  # fmt: skip
    assert set(found) == {"open_bytes", "run_bytes", "seconds"} and found["seconds"] > 0


@pytest.mark.parametrize(
    ("name", "precision"), [("openvino", "int3"), ("onnxruntime", "bf16"), ("tensorrt", "float32")]
)
def test_what_is_not_there_is_refused(model: tuple[Path, Any], name: str, precision: str) -> None:
    with pytest.raises(ValueError, match=f"'{name}'.*openvino, onnxruntime, torch"):
        open_engine(model[0], name=name, precision=precision, tile=TILE, batch=1, threads=1)


def test_bfloat16_rounds_a_little(model: tuple[Path, Any]) -> None:
    needs("openvino", "bf16")
    head = read_model(model[0]).head
    options = {"name": "openvino", "tile": TILE, "batch": 1, "threads": 1, "head": head}
    exact = open_engine(model[0], precision="float32", **options)(tiles(1)).copy()
    rounded = open_engine(model[0], precision="bf16", **options)(tiles(1))
    assert 0 < np.abs(rounded - exact).max() < 0.05 * np.abs(exact).max()


@pytest.mark.parametrize("support", ["native", "emulated", None])
def test_bfloat16_is_for_cpus_that_multiply_it(monkeypatch: pytest.MonkeyPatch, support: cpu.Support | None) -> None:
    found: dict[str, cpu.Support] = {"bf16": support} if support else {}
    monkeypatch.setattr(cpu, "precisions", lambda library: found)
    monkeypatch.setattr(cpu, "lacks_bfloat16", lambda library: "this CPU does not multiply bfloat16")
    for precision in ("float32", "int8"):
        require_precision("openvino", precision)
    if support == "native":
        return require_precision("openvino", "bf16")
    with refused(UsageError, "--precision bf16", "CPU", "float32", "int8"):
        require_precision("openvino", "bf16")


@pytest.mark.parametrize("engine", ["onnxruntime", "torch"])
def test_other_engines_compute_in_float32_only(engine: str) -> None:
    require_precision(engine, "float32")
    for precision in ("bf16", "int8"):
        with refused(UsageError, "--precision", precision, engine):
            require_precision(engine, precision)


def test_openvino_says_what_it_computes_in(model: tuple[Path, Any]) -> None:
    """Without AVX-512 it compiles for bfloat16 and computes in float32: the engine asks it, whatever the flags say."""
    code = (
        "import sys; from pathlib import Path; from common.engines.registry import open_engine;"
        f"open_engine(Path({str(model[0])!r}), name='openvino', precision=sys.argv[1], tile={TILE}, batch=1, threads=1,"
        f" head={read_model(model[0]).head!r})"
    )
    command = [sys.executable, "-c", code]
    environment = os.environ | AVX2
    subprocess.run([*command, "float32"], check=True, env=environment)
    done = subprocess.run([*command, "bf16"], capture_output=True, text=True, env=environment)
    assert done.returncode == 1
    says(done.stderr.splitlines()[-1], "UsageError", "--precision bf16", "f32")


def test_auto_falls_back_to_torch_where_openvino_is_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose("torch") == "torch"
    monkeypatch.setattr("common.engines.registry.find_spec", lambda name: None)
    assert choose("auto") == "torch"


@pytest.mark.parametrize("name", ["openvino", "onnxruntime"])
def test_tiles_beside_each_other_give_what_each_gives_alone(model: tuple[Path, Any], name: str) -> None:
    directory, _ = model
    head = read_model(directory).head
    options = {"precision": "float32", "tile": TILE, "head": head, "builder": TORCH_NETWORK}
    alone = open_engine(directory, name=name, batch=1, threads=1, **options)
    other = open_engine(directory, name=name, batch=2, threads=2, **options)
    expected = np.concatenate([alone(tiles(3)[slot : slot + 1]).copy() for slot in range(3)])
    first = other(tiles(3)[:2])
    second = other(tiles(3)[2:])  # fewer than a batch; the first answer is still there
    np.testing.assert_allclose(np.concatenate([first, second]), expected, atol=1e-6)
    assert not np.shares_memory(first, second)


@pytest.mark.parametrize("ahead", [False, True])
def test_answers_come_in_order_and_from_arrays_that_are_used_by_turns(ahead: bool) -> None:
    class Double:
        results = DoubleBuffer((2, 1, 1, 1, 1))

        def __call__(self, given: np.ndarray) -> np.ndarray:
            found = self.results.next(len(given))
            found[...] = 2 * given
            return found

    inputs = [np.zeros((2, 1, 1, 1, 1), np.float32) for _ in range(2)]

    def batches() -> Iterator[np.ndarray]:
        for number in range(7):
            inputs[number % 2][...] = number
            yield inputs[number % 2][: 1 + (number < 6)]

    found = [(float(answer[0, 0, 0, 0, 0]), len(answer)) for answer in prefetch(Double(), batches(), ahead=ahead)]
    assert found == [(2.0 * number, 2) for number in range(6)] + [(12.0, 1)]
    assert list(prefetch(Double(), iter(()), ahead=ahead)) == []


def test_an_error_in_the_engine_ends_the_answers() -> None:
    def fail(given: np.ndarray) -> np.ndarray:
        raise MemoryError("no room")

    with pytest.raises(MemoryError, match="no room"):
        list(prefetch(fail, [np.zeros(1, np.float32)], ahead=True))  # type: ignore[arg-type]
