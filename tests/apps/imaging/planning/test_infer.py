"""Settings of ``imaging infer`` that fit its studies."""

from pathlib import Path

import numpy as np
import pytest

from apps.imaging.inference.options import InferOptions
from apps.imaging.inference.request import InferRequest
from apps.imaging.planning.infer import InferWorkload
from tests.apps.imaging.helpers import random_model, write_nifti
from tests.promise import kept


def test_a_pass_is_priced_where_a_normalisation_takes_one(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    values = np.random.default_rng(0).normal(20, 200, (150, 140, 90)).astype(np.int16)
    image = write_nifti(tmp_path / "image.nii", values)
    window = ({"op": "clip", "low": -200.0, "high": 300.0}, {"op": "scale", "low": -200.0, "high": 300.0})
    for name, intensity in (("fixed", window), ("zscore", ({"op": "zscore"},))):
        random_model(tmp_path / name, patch=(32, 32, 32), intensity=intensity, spacing=(4.0, 4.0, 4.0))
        out = tmp_path / f"out-{name}"
        done = run("apps.imaging", "infer", image, "-m", tmp_path / name, "-o", out, "--overlap", "0.25", "--json")
        assert done.code == 0, done.err
        kept(done.record)
        phases = [
            phase for term in done.record["plan"]["terms"] for phase in term["phases"] if term["name"] == "statistics"
        ]
        assert phases == ([] if name == "fixed" else ["statistics"])


@pytest.mark.parametrize(
    ("shapes", "batches"),
    [
        ([(14, 16, 12)], {1}),
        ([(30, 16, 12)], {1, 3}),
        ([(60, 60, 12)], {1, 4}),
        ([(14, 16, 12), (60, 60, 12)], {1, 4}),
        ([(14, 16, 60)], {1}),
    ],
)
def test_no_batch_is_larger_than_a_row_of_tiles(
    tmp_path: Path, shapes: list[tuple[int, int, int]], batches: set[int]
) -> None:
    pytest.importorskip("openvino")
    random_model(tmp_path / "model", patch=(16, 16, 16))
    images = []
    for number, shape in enumerate(shapes):
        images.append(write_nifti(tmp_path / f"{number}.nii", np.zeros(shape, np.int16)))
    for asked, expected in ((None, batches), (64, {max(batches)}), (1, {1})):
        options = InferOptions(
            inputs=tuple(images),
            model=tmp_path / "model",
            output=tmp_path / "out",
            threads=4,
            engine="openvino",
            batch=asked,
            overlap=0.5,
        )
        workload = InferWorkload(InferRequest.of(options, tmp_path / "model"))
        offered = {int(setting["batch"]) for setting in workload.settings()}
        longest = max(grid.tiles.per_row for grid in workload.usable)
        if asked == 64:
            assert offered == {min(64, longest)}
        else:
            assert offered == expected
