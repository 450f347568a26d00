"""Variants of a model in a folder: which are of it, in which order, and none outside of the folder."""

from pathlib import Path
from typing import Any

import pytest

from apps.imaging.compression.measuring import write
from apps.imaging.models.manifest import MeasuredEntry
from apps.imaging.models.model_folder import ImagingModel, read_model
from apps.imaging.models.variants import Variant, find_variants
from tests.apps.imaging.helpers import random_model
from tests.messages import says


def measured(of: ImagingModel, **changes: Any) -> MeasuredEntry:
    entry: Any = {
        "weights": of.weights_sha256,
        "network": of.network_sha256,
        "cases": 42,
        "dice": 0.88,
        "dice_before": 0.8828,
        "seconds": 3.0,
        "seconds_before": 4.0,
        "peak_bytes": 100 << 20,
        "peak_bytes_before": 200 << 20,
        "precision": "float32",
    }
    entry |= changes
    return entry  # type: ignore[no-any-return]


def test_only_measured_variants_of_the_same_model_inside_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "model" / "variants"
    random_model(tmp_path / "model")
    original = read_model(tmp_path / "model")
    for name, options in {
        "good": {},
        "worse": {},
        "unmeasured": {},
        "of-another": {},
        "of-other-labels": {"classes": 4},
        "of-other-voxels": {"spacing": (2.0, 1.0, 1.0)},
        "broken": {},
    }.items():
        random_model(folder / name, seed=1, **options)
        if name != "unmeasured":
            changes = {"worse": {"dice": 0.7}, "of-another": {"weights": "0" * 64}}.get(name, {})
            write(folder / name, measured(original, **changes))
    (folder / "broken" / "network.onnx").write_bytes(b"")
    random_model(tmp_path / "outside", seed=1)
    write(tmp_path / "outside", measured(original))
    (folder / "link").symlink_to(tmp_path / "outside")
    random_model(folder / "half-link", seed=1)
    write(folder / "half-link", measured(original))
    (folder / "half-link" / "card.md").unlink()
    (folder / "half-link" / "card.md").symlink_to(tmp_path / "outside" / "card.md")
    assert [variant.name for variant in find_variants(folder, original)] == ["good", "worse"]
    assert [variant.name for variant in find_variants(folder / "good", original)] == ["good"]  # it may be named itself
    assert find_variants(tmp_path / "none", original) == find_variants(tmp_path / "model", original) == []


@pytest.mark.parametrize(
    ("dice", "loss", "percent"), [(0.8828, 0, "0%"), (0.9, 0, "0%"), (0.8827, 1.1e-4, "0.02%"), (0.873972, 0.01, "1%")]
)
def test_the_loss_is_relative_and_rounded_up(dice: float, loss: float, percent: str, tmp_path: Path) -> None:
    random_model(tmp_path / "model")
    variant = Variant(tmp_path / "v", measured(read_model(tmp_path / "model"), dice=dice))
    assert variant.loss == pytest.approx(loss, abs=5e-6) and variant.percent == percent
    assert float(percent.rstrip("%")) / 100 >= variant.loss - 1e-9
    assert variant.is_within(float(percent.rstrip("%")) / 100)


def test_a_variant_that_is_worse_is_written_and_said(tmp_path: Path) -> None:
    random_model(tmp_path / "model")
    random_model(tmp_path / "slow", seed=1)
    original = read_model(tmp_path / "model")
    lines = write(tmp_path / "slow", measured(original, seconds=4.5))
    says("\n".join(lines), "0.8800", "0.8828", "0.32% less", "slower", "does not take it")
    (found,) = find_variants(tmp_path / "slow", original)
    assert found.is_slower
