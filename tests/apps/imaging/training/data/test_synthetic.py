"""The generated data set: the Decathlon's layout, the same bytes for the same seed, something to learn in it."""

import json
from pathlib import Path

import numpy as np

from apps.imaging.bench.volumes import read_whole
from apps.imaging.training.data.synthetic import write_sample


def test_layout_values_and_bytes(tmp_path: Path) -> None:
    one, two = write_sample(tmp_path / "a", cases=3), write_sample(tmp_path / "b", cases=3)
    described = json.loads((one / "dataset.json").read_text())
    assert described["labels"] == {"0": "background", "1": "front", "2": "back"}
    assert len(described["training"]) == 3
    for entry in described["training"]:
        for name in entry.values():
            assert (one / name).read_bytes() == (two / name).read_bytes()
        image, _ = read_whole(one / entry["image"])
        labels, _ = read_whole(one / entry["label"])
        assert image.shape == labels.shape
        assert set(np.unique(labels)) == {0, 1, 2}
        # Told apart by brightness on average, but not voxel by voxel.
        inside, outside = image[labels > 0], image[labels == 0]
        assert inside.mean() > outside.mean()
        assert np.quantile(outside, 0.99) > np.quantile(inside, 0.05)
    assert (write_sample(tmp_path / "c", cases=1, seed=1) / "imagesTr" / "sample_001.nii.gz").read_bytes() != (
        one / "imagesTr" / "sample_001.nii.gz"
    ).read_bytes()
