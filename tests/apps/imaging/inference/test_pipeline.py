"""Constant tiles of a real scan: fewer are computed, and every value stays the same to the bit."""

from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from apps.imaging.inference.network_grid import NetworkGrid
from apps.imaging.inference.pipeline import finished_values
from apps.imaging.inference.reading import resolved
from apps.imaging.models.model_folder import TORCH_NETWORK, read_model
from apps.imaging.volumes.nifti import open_nifti
from common.engines.base import Engine
from common.engines.registry import open_engine
from tests.apps.imaging.helpers import output_file, random_model, read_labels
from tests.promise import kept

WINDOW = ({"op": "clip", "low": -200.0, "high": 300.0}, {"op": "scale", "low": -200.0, "high": 300.0})
TILE = (24, 24, 16)


class Counting:
    """An engine that counts its tiles."""

    def __init__(self, engine: Engine) -> None:
        self._engine, self.tiles, self.each_alone = engine, 0, engine.each_alone
        self.in_channels, self.out_channels, self.output = engine.in_channels, engine.out_channels, engine.output

    def __call__(self, tiles: np.ndarray) -> np.ndarray:
        self.tiles += len(tiles)
        return self._engine(tiles)


class Recalled:
    """Counts calls."""

    count = 0

    def __call__(self) -> None:
        self.count += 1


@pytest.fixture
def padded(dataset: Callable[[str], Path], tmp_path: Path) -> Path:
    """A CT in a wider field of view, as scanners fill it up."""
    scan = nib.load(dataset("ct-sample") / "example_ct_sm.nii.gz")
    values = np.pad(np.asarray(scan.dataobj)[::3, ::3], ((28, 34), (44, 0), (16, 6)), constant_values=-1024)
    path = tmp_path / "padded.nii.gz"
    nib.save(nib.Nifti1Image(values.astype(np.int16), np.eye(4)), path)
    return path


@pytest.mark.parametrize(("name", "batch"), [("openvino", 1), ("openvino", 2), ("torch", 1), ("torch", 2)])
@pytest.mark.parametrize("spacing", [1.0, 1.5])
def test_values_are_the_same_to_the_bit(padded: Path, tmp_path: Path, name: str, batch: int, spacing: float) -> None:
    random_model(tmp_path / "model", patch=TILE, intensity=WINDOW, spacing=[spacing] * 3)
    model = read_model(tmp_path / "model")
    grid = NetworkGrid.of(open_nifti(padded), model, tile=TILE, overlap=0.5)
    engine = open_engine(
        model.directory,
        name=name,
        precision="float32",
        tile=TILE,
        batch=batch,
        threads=1,
        head=model.head,
        builder=TORCH_NETWORK,
    )
    found = []
    for scratch in (None, tmp_path):
        counting, recalled = Counting(engine), Recalled()
        blocks = finished_values(grid, counting, resolved(grid, model), batch=batch, scratch=scratch, recalled=recalled)
        found.append([(block.low, block.values.tobytes()) for block in blocks])
        assert counting.tiles == len(grid.tiles) - recalled.count
        # PyTorch's sums may depend on the tiles next to one, so it only leaves out tiles that run alone.
        assert (recalled.count > len(grid.tiles) // 4) == (scratch is not None and (name, batch) != ("torch", 2))
    assert found[0] == found[1]


def test_a_command_counts_them(run, padded: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    random_model(tmp_path / "model", patch=TILE, intensity=WINDOW)
    done = run("apps.imaging", "infer", padded, "-m", tmp_path / "model", "-o", tmp_path / "out", "--json")
    assert done.code == 0, done.err
    kept(done.record)
    assert done.record["results"]["constant_tiles"] > 100
    assert len(np.unique(read_labels(output_file(tmp_path / "out")))) > 1
