"""A model as an ONNX file: ONNX Runtime makes the lists that ``recsys recommend`` makes, for every kind of model."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from apps.recsys.models.recommender import Recommender, load_manifest
from tests.apps.recsys.in_process import done
from tests.messages import says
from tests.promise import kept

Run = Callable[..., Any]
LINEAR = ("--set", "saturation=1", "--set", "degree_power=0.4")
KINDS: dict[str, tuple[object, ...]] = {
    "ials": ("--factors", 16, "--set", "iterations=2"),
    "ials of binary weights": ("--factors", 16, "--set", "iterations=2", "--set", "weight=binary"),
    "bpr": ("--factors", 8, "--set", "iterations=2"),
    "embedding of sums": ("--factors", 8, "--epochs", 1, "--set", "user_vectors=history"),
    "embedding of learned users": ("--factors", 8, "--epochs", 1, "--set", "user_vectors=learned"),
    "linear of a spectrum": ("--factors", 32, "--set", "form=spectral", *LINEAR),
    "linear of a spectrum in codes": ("--factors", 64, "--set", "form=spectral", "--set", "bits=2", *LINEAR),
    "linear of interactions": ("--factors", 0, "--set", "form=filter", *LINEAR),
    "linear of both": ("--factors", 32, "--set", "form=filter", "--set", "user_power=0.7", *LINEAR),
    "popularity": (),
}
USERS = (0, 7, 100, 1000)


def lists_agree(model: Path, file: Path, k: int = 30) -> None:
    """Lists and scores of some users, all at a time and one alone."""
    recommender = Recommender(model, load_manifest(model))
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    pairs = [(recommender.history.items(user), recommender.history.values(user)) for user in USERS]
    for some in (pairs, pairs[1:2]):
        longest = max(len(items) for items, _ in some) + (len(some) > 1)
        history, values = np.full((len(some), longest), -1, np.int64), np.zeros((len(some), longest), np.float32)
        for row, (items, weights) in enumerate(some):
            history[row, : len(items)], values[row, : len(items)] = items, weights
        inputs = {"history": history, "values": values, "k": np.array([k])}
        given = {each.name: inputs[each.name] for each in session.get_inputs()}
        rows, scores = session.run(["rows", "scores"], given)
        assert rows.shape == (len(some), k)
        for pair, row, found in zip(some, rows, scores, strict=True):
            best = recommender.recommend(*pair, k)
            wanted = np.array([score for _, score in best])
            np.testing.assert_allclose(found, wanted, rtol=2e-4, atol=1e-6 * abs(wanted).max())
            # Items may change places only where their scores are as good as equal.
            for place in np.flatnonzero(row != [item for item, _ in best]):
                assert np.isclose(wanted[place - 1 : place + 2], wanted[place], rtol=1e-4).sum() > 1, (place, wanted)
            assert len(set(row.tolist())) == k and not set(row.tolist()) & set(pair[0].tolist())


@pytest.mark.parametrize("kind", KINDS)
def test_equal_lists(dataset: Callable[[str], Path], tmp_path: Path, kind: str) -> None:
    model, data = tmp_path / "model", dataset("lastfm")
    done("train", data / "plays.csv", "-o", model, "--model", kind.split()[0], *KINDS[kind])
    results, lines = done("export", model, "--as", "onnx", "-o", tmp_path / "model.onnx")
    lists_agree(model, tmp_path / "model.onnx")
    assert results["file_bytes"] == (tmp_path / "model.onnx").stat().st_size and "opset 18" in lines[0]
    made = onnx.load(str(tmp_path / "model.onnx"))
    onnx.checker.check_model(made, full_check=True)
    described = {each.key: json.loads(each.value) for each in made.metadata_props}
    manifest = load_manifest(model)
    assert described["kind"] == manifest["kind"] and described["hyper"] == manifest["hyper"]
    assert ("values" in described["convention"]) == (kind == "ials")
    with (tmp_path / described["ids"]).open(encoding="utf-8", newline="") as stream:
        assert sum(1 for _ in csv.DictReader(stream)) == manifest["items"] == described["items"]


def test_ease_and_codes_inside_the_ceiling(run: Run, dataset: Callable[[str], Path], tmp_path: Path) -> None:
    """EASE's rows and a compressed model's codes are written as they are read; a ceiling that is met by neither."""
    data, model = dataset("ml-1m") / "ratings.csv.gz", tmp_path / "model"
    done("train", data, "-o", model, "--model", "linear", "--set", "form=ease", "--set", "ridge=500")
    refusal = run(
        "apps.recsys", "export", model, "--as", "onnx", "-o", tmp_path / "a.onnx", "--memory", "50MiB", "--json"
    )
    assert refusal.code == 3 and not list(tmp_path.glob("a.*"))
    smallest = refusal.record["smallest_feasible_bytes"]
    ran = run("apps.recsys", "export", model, "--as", "onnx", "-o", tmp_path / "a.onnx", "--memory", smallest, "--json")
    assert ran.code == 0, ran.err
    kept(ran.record)
    assert (tmp_path / "a.onnx").stat().st_size > 50 << 20
    lists_agree(model, tmp_path / "a.onnx")
    whole, small = tmp_path / "whole", tmp_path / "small"
    done("train", data, "-o", whole, "--model", "ials", "--factors", 16, "--set", "iterations=1")
    done("compress", whole, "--target-bytes", 10, "-o", small)
    done("export", small, "--as", "onnx", "-o", tmp_path / "b.onnx", "--ids", "parquet")
    lists_agree(small, tmp_path / "b.onnx")
    assert (tmp_path / "b.ids.parquet").is_file()


def test_wrong_outputs(trained: Any, tmp_path: Path) -> None:
    for output, facts in ((tmp_path / "x", ("NAME.onnx",)), (trained.model / "x.onnx", ("model folder",))):
        with pytest.raises(Exception) as error:
            done("export", trained.model, "--as", "onnx", "-o", output)
        says(str(error.value), *facts)
        assert not output.exists()
