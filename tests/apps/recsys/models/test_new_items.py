"""Vectors of new items: the formula of ``ials``, taste under ``bpr`` and ``embedding``, and codes."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from apps.recsys.data.csr_store import NpyWriter
from apps.recsys.models import weights
from apps.recsys.models.als import ials
from apps.recsys.models.bpr import HYPER
from apps.recsys.models.embedding import embedding_config
from apps.recsys.models.new_items import Extension, encoded

OLD, NEW, USERS, FACTORS = 12, 3, 40, 4


def history(folder: Path, random: np.random.Generator) -> NDArray[np.float32]:
    """Even users had even items, odd users odd ones: also of the new items, the last of which nobody had."""
    dense = (random.random((USERS, OLD + NEW)) < 0.5) * random.integers(1, 5, (USERS, OLD + NEW))
    dense[np.add.outer(np.arange(USERS), np.arange(OLD + NEW)) % 2 == 1] = 0
    dense[:, -1] = 0
    rows = dense.astype(np.float32)
    for name, kind, values in (
        ("indptr", "<i8", np.concatenate([[0], np.cumsum((rows > 0).sum(1))])),
        ("items", "<i4", np.nonzero(rows)[1]),
        ("values", "<f4", rows[rows > 0]),
    ):
        with NpyWriter(folder / f"history.{name}.npy", kind) as writer:
            writer.append(values)
    return rows


def extension(folder: Path, kind: str, hyper: dict[str, object], tensors: dict[str, NDArray[np.float32]]) -> Extension:
    """An extension by ``NEW`` items of a model with these weights."""
    weights.write(folder / weights.WEIGHTS, tensors)
    return Extension(
        kind=kind,
        hyper=hyper,
        base=folder,
        rows=np.arange(OLD, dtype=np.int32),
        directory=folder,
        items=OLD + NEW,
        split="none",
        fit_block=10**9,
        threads=2,
    )


@pytest.mark.parametrize("fit_block", [10**9, 16])
def test_ials_solves_the_normal_equations(tmp_path: Path, fit_block: int) -> None:
    random = np.random.default_rng(0)
    values = history(tmp_path, random)
    values = values[values.any(1)].astype(np.float64)
    items = random.standard_normal((OLD, FACTORS)).astype(np.float32)
    hyper = {**ials.HYPER, "weight": "value", "alpha": 2.0, "regularization": 0.5}
    made = extension(tmp_path, "ials", hyper, {weights.ITEMS: items})
    found = Extension(**{**{name: getattr(made, name) for name in made.__slots__}, "fit_block": fit_block}).tensors()
    found_items = found[weights.ITEMS]
    np.testing.assert_array_equal(found_items[:OLD], items)

    def solved(fixed: NDArray[np.float64], confidences: NDArray[np.float64]) -> NDArray[np.float64]:
        system = fixed.T @ fixed + 0.5 * np.eye(FACTORS)
        had = confidences > 0
        system += (fixed[had].T * (confidences[had] - 1)) @ fixed[had]
        answer: NDArray[np.float64] = np.linalg.solve(system, confidences[had] @ fixed[had])
        return answer

    users = np.array([solved(items.astype(np.float64), 2 * row[:OLD]) for row in values])
    expected = np.array([solved(users, 2 * values[:, item]) for item in range(OLD, OLD + NEW)])
    np.testing.assert_allclose(found_items[OLD:], expected, rtol=2e-3, atol=2e-5)
    assert not found_items[-1].any() and not list(tmp_path.glob("by_*"))


@pytest.mark.parametrize("kind", ["bpr", "embedding", "embedding int8"])
def test_a_new_item_is_near_the_items_of_its_users(tmp_path: Path, kind: str) -> None:
    """Vectors of even and of odd items point to two sides; so must those of the new items."""
    random = np.random.default_rng(1)
    history(tmp_path, random)
    items = 0.1 * random.standard_normal((OLD, FACTORS)).astype(np.float32)
    items[:, 0] = np.where(np.arange(OLD) % 2, -1, 1)
    tensors: dict[str, NDArray[np.float32]] = {weights.ITEMS: items}
    hyper: dict[str, object] = {**HYPER, "iterations": 400}
    if kind == "bpr":
        items[:, -1] = 0.1
        tensors[weights.COMPARED] = np.arange(OLD, dtype=np.int32)  # type: ignore[assignment]
    else:
        hyper = {**embedding_config.HYPER, "loss": "softmax", "table": "full"}
    if kind.endswith("int8"):
        tensors[weights.ITEMS], tensors[f"{weights.ITEMS}.scales"] = encoded(items, np.dtype(np.int8))
    made = extension(tmp_path, kind.split()[0], hyper, tensors)
    seen: list[int] = []
    found = made.tensors(seen.append)
    assert sum(seen) == NEW
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(found[name][: len(tensor)], tensor)
    new = weights.decoded(found, weights.ITEMS)[OLD:]
    assert new[0, 0] > 0.1 > -0.1 > new[1, 0] and abs(new[:2, 0]).min() > abs(new[:2, 1:3]).max()
    assert not new[2].any()


@pytest.mark.parametrize(("kind", "levels"), [(np.int8, 127), (np.uint8, 7)])
def test_codes_are_the_nearest(tmp_path: Path, kind: type, levels: int) -> None:
    rows = np.random.default_rng(2).standard_normal((5, 6)).astype(np.float32)
    rows[3] = 0
    codes, scales = encoded(rows, np.dtype(kind))
    weights.write(tmp_path / "w", {"item_factors": codes, "item_factors.scales": scales})
    read = weights.read(tmp_path / "w")
    np.testing.assert_array_equal(
        read, weights.decoded({"item_factors": codes, "item_factors.scales": scales}, "item_factors")
    )
    half = 0.51 * np.abs(rows).max(1, keepdims=True) / levels
    assert (np.abs(read - rows) <= half + 1e-3 * np.abs(rows)).all() and not read[3].any()
