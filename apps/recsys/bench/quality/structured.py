"""Measure structured forms of item vectors against codes of as many bytes: fewer dimensions, and sparse rows.

``python -m apps.recsys.bench.quality.structured WORK DATA FORM SIZE``: DATA is a case of ``compressed`` with one data
set, FORM one of ``FORMS``, SIZE the bytes of an item. ``dimensions`` keeps those in which scores vary most, in 8 bits.
``sparse`` keeps the largest numbers of each row on the eigenvectors of the items' Gramian, a byte for the place and a
byte for the value, and a scale. ``refitted`` keeps those that change scores most, and solves them again for the least
squared error of the scores of ``USERS`` users. The vectors are written as float32 into a copy of the model, which is
then evaluated.
"""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np

from apps.recsys.bench.quality import compressed
from apps.recsys.models import recommender, weights
from apps.recsys.models.manifest import ModelFields
from apps.recsys.models.recommender import Recommender
from apps.recsys.training.compressing import vectors
from common import datasets

FORMS = ("dimensions", "sparse", "refitted", "whole")
"""``whole``: the model as it is."""
USERS = 3000
"""Users of whose vectors the Gramian is made."""
LARGEST = 127
"""Largest code of a value."""


def sparse(rows: np.ndarray[Any, Any], size: int, users: np.ndarray[Any, Any] | None = None) -> np.ndarray[Any, Any]:
    """Rows of which only the largest numbers are left, in 8 bits: ``(size - 1) // 2`` of each.

    With ``users``, the Gramian of users' vectors, those with the largest share of scores, solved again. The axes are
    those of the items' Gramian, and the rows are turned back.
    """
    _, axes = vectors.rotation(rows.T @ rows)
    rotated, kept = rows @ axes, (size - 1) // 2
    gram = np.eye(rows.shape[1]) if users is None else axes.T.astype(np.float64) @ users @ axes
    share = np.abs(rotated) * np.sqrt(np.diag(gram))
    places = np.argpartition(share, rotated.shape[1] - kept, axis=1)[:, -kept:]
    found = np.take_along_axis(rotated, places, 1)
    if users is not None:
        systems = gram[places[:, :, None], places[:, None, :]] + 1e-6 * np.trace(gram) / len(gram) * np.eye(kept)
        found = np.linalg.solve(systems, np.take_along_axis(rotated @ gram, places, 1)[:, :, None])[:, :, 0]
    scales = np.maximum(np.abs(found).max(1, keepdims=True), 1e-12) / LARGEST
    made = np.zeros(rotated.shape, np.float32)
    np.put_along_axis(made, places, (np.rint(found / scales) * scales).astype(np.float32), 1)
    turned: np.ndarray[Any, Any] = made @ axes.T
    return turned


def gramian(model: Path, manifest: Any) -> np.ndarray[Any, Any]:
    """Gramian of the vectors of ``USERS`` users at even distances."""
    loaded = Recommender(model, manifest)
    assert loaded.factors is not None
    history, made = loaded.history, []
    for user in range(0, history.rows, max(1, history.rows // USERS)):
        if len(items := history.items(user)):
            made.append(loaded.factors.fold_in(items, history.values(user)))
    stacked = np.stack(made)[:, : manifest["factors"]].astype(np.float64)  # without the number for a prior
    found: np.ndarray[Any, Any] = stacked.T @ stacked
    return found


def measure(work: Path, name: str, form: str, size: int) -> dict[str, Any]:
    """Make the form, and evaluate it and the model."""
    (source,) = compressed.CASES[name]
    folder = datasets.find(source.name)
    if folder is None:
        raise SystemExit(f"data set {source.name} not found: set PEAKLINE_DATA")
    model = compressed.trained(source, folder, work, source.factors)
    before = compressed.judged(source, folder, model)
    if form == "whole":
        return {"loss": 0.0, "before": before, "after": before, "bytes": size}
    out = work / f"{model.name}-{form}-{size}"
    shutil.rmtree(out, ignore_errors=True)
    if form == "dimensions":
        compressed.run("compress", model, "--target-bytes", size, "--dimensions", size - 1, "-o", out)
    else:
        shutil.copytree(model, out, ignore=shutil.ignore_patterns("scan.*", "judged*.json", "evaluation.json"))
        manifest: Any = recommender.load_manifest(model)
        users = gramian(model, manifest) if form == "refitted" else None
        tensors = weights.read_all(model / weights.WEIGHTS)
        rows = tensors[weights.ITEMS]
        if manifest["kind"] == "embedding":  # scores are cosines
            rows = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
        weights.write(out / weights.WEIGHTS, {**tensors, weights.ITEMS: sparse(rows, size, users)})
        fields = {each: manifest[each] for each in ModelFields.__annotations__ if each in manifest}
        recommender.seal(out, kind=manifest["kind"], fields=fields)
    after = compressed.judged(source, folder, out)
    return {"loss": 1 - after[source.metric] / before[source.metric], "before": before, "after": after, "bytes": size}


if __name__ == "__main__":
    made = measure(Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4]))
    sys.stdout.write(json.dumps(made) + "\n")
