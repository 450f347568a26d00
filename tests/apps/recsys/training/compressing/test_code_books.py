"""``recsys compress --codes product`` and ``residual``: code books in place of levels."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from apps.recsys.models import weights
from apps.recsys.models.coded import stored
from apps.recsys.models.recommender import Recommender, load_manifest
from apps.recsys.training.compressing import book_descent
from common.compression.books import Books
from common.errors import BadInput, UsageError
from tests.apps.recsys.in_process import done
from tests.apps.recsys.training.compressing.test_compress import TARGET, losses_of, small_problem, trained_on


@pytest.mark.parametrize(("kind", "codes"), [("ials", "product"), ("bpr", "residual")])
def test_code_books(dataset: Callable[[str], Path], tmp_path: Path, kind: str, codes: str) -> None:
    """An item takes its bytes, its share of the entries among them; metrics stay; answers, updates and graphs work."""
    data, model, out = dataset("lastfm"), tmp_path / "model", tmp_path / "out"
    trained_on(data, model, kind, "--split", "user-holdout")
    words = ("compress", model, "--codes", codes, "-o", out, "--target-bytes")
    with pytest.raises(UsageError, match=r"the smallest is 3 bytes .* code books"):
        done(*words, 2)
    results, said = done(*words, TARGET)
    manifest = load_manifest(out)
    assert manifest["code_form"] == codes and results["item_bytes"] == sum(manifest["codes"].values())
    assert TARGET - 2 <= results["item_bytes"] <= TARGET
    header, _ = weights._header(out / weights.WEIGHTS)
    size = sum(
        entry["data_offsets"][1] - entry["data_offsets"][0]
        for name, entry in header.items()
        if name.partition(".")[0] in manifest["codes"]
    )
    assert size <= TARGET * manifest["items"] + 1000
    was, now = results["before"]["ndcg@20"], results["metrics"]["ndcg@20"]
    assert now > 0.9 * was > 0, said
    found = Recommender(out, manifest)
    items, values = found.history.items(3), found.history.values(3)
    assert len(found.recommend(items, values, 5)) == 5 and found.similar(7, 3)
    done("export", out, "--as", "onnx", "-o", tmp_path / "graph.onnx")
    new = tmp_path / "new.csv"
    new.write_text("userID,artistID,weight\n" + "".join(f"{user},999999,9\n" for user in (2, 4, 5, 6, 8)))
    done("update", out, new, "-o", tmp_path / "grown", "--user-col", "userID", "--item-col", "artistID",
         "--value-col", "weight")  # fmt: skip
    grown = load_manifest(tmp_path / "grown")
    assert grown["items"] == manifest["items"] + 1 and grown["code_form"] == codes
    for name in manifest["codes"]:
        first, second = (stored.read(folder / weights.WEIGHTS, name) for folder in (out, tmp_path / "grown"))
        every = np.arange(len(first))
        assert (first.decode(every) == second.decode(every)).all() and second.decode(np.array([len(first)])).any()
    path = out / weights.WEIGHTS
    good = weights.read_all(path)
    for part, value in (("entries", np.nan), ("starts", 5), ("unit", -1)):
        damaged = {name: tensor.copy() for name, tensor in good.items()}
        damaged[f"{weights.ITEMS}.{part}"].reshape(-1)[0] = value
        weights.write(path, damaged)
        with pytest.raises(BadInput, match=r"weights\.safetensors"):
            stored.read(path, weights.ITEMS)


@pytest.mark.parametrize("layers", [1, 2])
def test_descent_over_entries_lowers_the_loss_of_every_row(layers: int) -> None:
    """No other entry of a group is better, but for the row's scale, which changes last."""
    confidences, users = small_problem()
    random = np.random.default_rng(0)
    entries = (random.standard_normal((layers, 8, 9)) / layers).astype(np.float16)
    books = Books(entries, np.array([0, 2, 3], np.int32), np.ones(1, np.float32))
    found, scales = np.zeros((60, 3 * layers), np.uint8), np.full(60, 0.2, np.float32)
    hyper = {"regularization": 3.0, "frequency_scaling": 0.0}
    before = losses_of(confidences, books.values(found, scales), users)
    book_descent.descend(confidences, found, scales, users, books, hyper, threads=1)
    after, there = losses_of(confidences, books.values(found, scales), users), np.diff(confidences.indptr) > 0
    assert (after[there] < before[there]).all() and not scales[~there].any() and found.max() == 7
    scaled = scales.copy()
    for _ in range(6):
        book_descent.descend(confidences, found, scales, users, books, hyper, threads=2)
    settled = losses_of(confidences, books.values(found, scales), users)
    assert (settled <= after * (1 + 1e-5)).all() and (scales != scaled).any()
    for column in range(found.shape[1]):
        for entry in range(8):
            other = found.copy()
            other[:, column] = entry
            assert (losses_of(confidences, books.values(other, scales), users) >= settled * (1 - 1e-4)).all()
