"""Images as a network of nnU-Net sees them, against SciPy on the whole volume."""

from pathlib import Path

import numpy as np
import pytest

from apps.imaging.bench.peers import nnunet_folder
from apps.imaging.importers.convert import converted_model
from apps.imaging.inference.network_grid import NetworkGrid
from apps.imaging.inference.reading import network_tiles, open_windows, resolved, within_content
from apps.imaging.models.model_folder import read_model
from apps.imaging.volumes.nifti import open_nifti
from common.memory.process.budget import GIB, MemoryBudget
from tests.apps.imaging.helpers import write_nifti

pytest.importorskip("dynamic_network_architectures")


@pytest.mark.parametrize(("transpose", "nearest"), [([0, 1, 2], 2), ([2, 0, 1], 0), ([1, 0, 2], 1)])
def test_planes_are_splines_of_their_own_wherever_they_lie(tmp_path: Path, transpose: list[int], nearest: int) -> None:
    from scipy.ndimage import zoom

    # (z, y, x) after the transposition: planes of rising brightness with sharp edges, which overshoot.
    shape, patch = (7, 20, 18), (8, 24, 16)
    random = np.random.default_rng(0)
    array = 100.0 * random.integers(0, 2, shape) + 150 * np.arange(1, 8)[:, None, None]
    array = array.astype(np.float32)
    score = (array - array.mean(dtype=np.float64)) / array.std(dtype=np.float64)
    cut = []
    for plane in score:
        new = zoom(plane, (24 / 20, 16 / 18), order=3, mode="nearest", grid_mode=True)
        cut.append(np.clip(new, plane.min(), plane.max()))
    expected = np.stack([cut[int((index + 0.5) * 7 / 8)] for index in range(8)])

    nnunet_folder.write(tmp_path, transpose=transpose, patch_size=list(patch))
    model = read_model(converted_model(tmp_path, MemoryBudget(2 * GIB)))
    back = [transpose.index(axis) for axis in range(3)]
    spacing = [(4.32, 0.96, 0.72)[axis] for axis in back][::-1]
    stored = np.ascontiguousarray(array.transpose(back).transpose(2, 1, 0))
    volume = open_nifti(write_nifti(tmp_path / "image.nii.gz", stored, np.diag([*spacing, 1.0])))
    grid = NetworkGrid.of(volume, model, tile=model.patch, overlap=0.5)
    assert grid.nearest == nearest and len(grid.tiles) == 1
    with within_content(grid, model, tmp_path) as (inside, _), open_windows(inside, resolved(inside, model)) as windows:
        (tiles,) = network_tiles(inside, windows, [[0]], 1)
        np.testing.assert_allclose(tiles[0, 0], expected, atol=2e-5)
