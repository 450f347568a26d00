"""Parts of the comparisons with peers: data sets as nnU-Net reads them, the same network in every peer."""

import json
from pathlib import Path

import numpy as np
import pytest

from apps.imaging.bench import memory
from apps.imaging.bench.peers import memory as peer_memory
from apps.imaging.bench.peers import nnunet, nnunet_folder, nnunet_models
from apps.imaging.importers.nnunet import read_plan
from tests.apps.imaging.helpers import write_nifti


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A data set in the decathlon's layout, of images whose values say which one and which slice it is."""
    for index in range(nnunet_models.TRAINING + nnunet_models.TESTING):
        values = np.arange(6 * 5 * 4, dtype=np.int16).reshape(6, 5, 4) + 1000 * index
        for kind, written in (("imagesTr", values), ("labelsTr", values % 3)):
            (tmp_path / "source" / kind).mkdir(parents=True, exist_ok=True)
            write_nifti(tmp_path / "source" / kind / f"hippocampus_{index:03d}.nii.gz", written)
    return tmp_path / "source"


@pytest.mark.parametrize("kind", nnunet_models.KINDS, ids=lambda kind: kind.name)
def test_data_sets_are_laid_out_as_nnunet_reads_them(tmp_path: Path, source: Path, kind: nnunet_models.Kind) -> None:
    import nibabel as nib

    nnunet_models.write_images(kind, tmp_path / "raw", source)
    place = tmp_path / "raw" / kind.folder
    described = json.loads((place / "dataset.json").read_text())
    assert described["channel_names"] == {str(number): name for number, name in enumerate(kind.channels)}
    assert described["numTraining"] == len(list((place / "labelsTr").iterdir())) == nnunet_models.TRAINING
    assert len(list((place / "imagesTr").iterdir())) == nnunet_models.TRAINING * len(kind.channels)
    testing = [nib.load(path) for path in sorted((place / "imagesTs").glob("*_0000.nii.gz"))]
    assert len(testing) == nnunet_models.TESTING
    for index, image in enumerate(testing):
        factors = nnunet_models.CHANGED if index % 2 else (1, 1, 1)
        np.testing.assert_allclose(image.header.get_zooms(), np.multiply(kind.spacing, factors), rtol=1e-6)
        expected = np.arange(120.0).reshape(6, 5, 4)[..., :: kind.step] + 1000 * (nnunet_models.TRAINING + index)
        np.testing.assert_array_equal(np.asarray(image.dataobj), expected)
    if len(kind.channels) > 1:
        slope = nib.load(next(place.glob("imagesTs/*_0001.nii.gz")))
        np.testing.assert_array_equal(np.asarray(slope.dataobj), np.full((6, 5, 4), 20.0))


def test_peers_run_the_network_that_is_imported(tmp_path: Path) -> None:
    pytest.importorskip("dynamic_network_architectures")
    import torch

    (made,) = nnunet_folder.write(tmp_path, architecture=memory.ARCHITECTURE, classes=memory.CLASSES, seeds=(5,))
    plan = read_plan(tmp_path)
    assert (plan.arguments["out_channels"], plan.arguments["in_channels"]) == (25, 1)
    assert len(plan.labels) == memory.CLASSES
    tile = torch.randn(1, 1, 16, 16, 16)
    with torch.inference_mode():
        np.testing.assert_array_equal(peer_memory.load_network(tmp_path)(tile), made(tile))


def test_voxels_that_differ_are_counted(tmp_path: Path) -> None:
    theirs = np.zeros((4, 4, 4), np.uint8)
    theirs[1:3, 1:3] = 2
    ours = theirs.copy()
    ours[0, 0, :3] = 1
    paths = [write_nifti(tmp_path / f"{name}.nii.gz", labels) for name, labels in (("a", theirs), ("b", ours))]
    assert nnunet._different(*paths) == (3, 64, 16)
