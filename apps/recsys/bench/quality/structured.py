"""Measure structured forms of item vectors against codes of as many bytes: fewer dimensions, and sparse rows.

``python -m apps.recsys.bench.quality.structured WORK DATA FORM SIZE``: DATA is a case of ``compressed`` with one data
set, FORM one of ``FORMS``, SIZE the bytes of an item. ``dimensions`` keeps those in which scores vary most, in 8 bits.
``sparse`` keeps the largest numbers of each row on the eigenvectors of the items' Gramian, a byte for the place and a
byte for the value, and a scale. The vectors are written as float32 into a copy of the model, which is then evaluated.
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
from apps.recsys.training.compressing import vectors
from common import datasets

FORMS = ("dimensions", "sparse")
LARGEST = 127
"""Largest code of a value."""


def sparse(rows: np.ndarray[Any, Any], size: int) -> np.ndarray[Any, Any]:
    """Rows of which only the largest numbers are left, in 8 bits: ``(size - 1) // 2`` of each."""
    _, axes = vectors.rotation(rows.T @ rows)
    rotated = rows @ axes
    kept = (size - 1) // 2
    small = np.argpartition(np.abs(rotated), rotated.shape[1] - kept, axis=1)[:, : rotated.shape[1] - kept]
    np.put_along_axis(rotated, small, 0, axis=1)
    scales = np.maximum(np.abs(rotated).max(1, keepdims=True), 1e-12) / LARGEST
    made: np.ndarray[Any, Any] = (np.rint(rotated / scales) * scales).astype(np.float32)
    return made


def measure(work: Path, name: str, form: str, size: int) -> dict[str, Any]:
    """Make the form, and evaluate it and the model."""
    (source,) = compressed.CASES[name]
    folder = datasets.find(source.name)
    if folder is None:
        raise SystemExit(f"data set {source.name} not found: set PEAKLINE_DATA")
    model = compressed.trained(source, folder, work, source.factors)
    before = compressed.judged(source, folder, model)
    out = work / f"{model.name}-{form}-{size}"
    shutil.rmtree(out, ignore_errors=True)
    if form == "dimensions":
        compressed.run("compress", model, "--bits", 8, "--dimensions", size - 1, "--rounds", 0, "-o", out)
    else:
        shutil.copytree(model, out, ignore=shutil.ignore_patterns("scan.*", "judged.json", "evaluation.json"))
        manifest: Any = recommender.load_manifest(model)
        weights.write(out / weights.WEIGHTS, {weights.ITEMS: sparse(weights.read(model / weights.WEIGHTS), size)})
        fields = {each: manifest[each] for each in ModelFields.__annotations__ if each in manifest}
        recommender.seal(out, kind=manifest["kind"], fields=fields)
    after = compressed.judged(source, folder, out)
    return {"loss": 1 - after[source.metric] / before[source.metric], "before": before, "after": after, "bytes": size}


if __name__ == "__main__":
    made = measure(Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4]))
    sys.stdout.write(json.dumps(made) + "\n")
