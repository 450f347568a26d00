"""MeshNet as a peer of the brain model: its classes, its layers, its parts put together. No weights are needed."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from apps.imaging.bench.imaging_brain import NOT_COMPARED
from apps.imaging.bench.peers import meshnet
from apps.imaging.training.data.label_table import read_table

DILATIONS = (1, 2, 4, 8, 16, 8, 4, 2, 1, 1)


def description(channels: int, classes: int) -> dict[str, Any]:
    """A ``model.json`` as brainchop's list has it."""
    rows = [
        {"in_channels": channels, "out_channels": channels, "kernel_size": 3, "padding": rate, "dilation": rate}
        for rate in DILATIONS
    ]
    rows[0]["in_channels"] = 1
    rows[-1] |= {"out_channels": classes, "kernel_size": 1, "padding": 0}
    return {"bnorm": False, "elu": True, "bias": True, "layers": rows}


def as_tensorflow(plain: dict[str, Any]) -> dict[str, Any]:
    """The same network as TensorFlow.js writes it."""
    layers: list[dict[str, Any]] = [{"class_name": "InputLayer", "config": {}}]
    for row in plain["layers"]:
        size, rate = [row["kernel_size"]] * 3, [row["dilation"]] * 3
        config = {"filters": row["out_channels"], "kernel_size": size, "dilation_rate": rate}
        layers += [
            {"class_name": "Conv3D", "config": config},
            {"class_name": "Activation", "config": {"activation": "elu"}},
        ]
    return {"modelTopology": {"model_config": {"config": {"layers": layers[:-1]}}}}


def write_network(folder: Path, plain: dict[str, Any], seed: int = 0) -> int:
    """Write a folder with random weights; return how many there are."""
    folder.mkdir()
    (folder / "model.json").write_text(json.dumps(plain))
    sizes = [row["out_channels"] * (row["in_channels"] * row["kernel_size"] ** 3 + 1) for row in plain["layers"]]
    values = np.random.default_rng(seed).normal(0, 0.2, sum(sizes)).astype("<f4")
    values.tofile(folder / "model.bin")
    return int(values.size)


def test_every_structure_that_is_compared_has_one_class() -> None:
    ours = list(read_table(meshnet.TABLE).labels.values())
    assert sorted(meshnet.NAMES.values()) == sorted(name for name in ours if name not in NOT_COMPARED)


@pytest.mark.parametrize(("channels", "parameters"), [(21, 96408), (30, 196038)])
def test_the_network_has_the_published_size(channels: int, parameters: int) -> None:
    layers = meshnet.read_layers(description(channels, 18))
    assert layers == meshnet.read_layers(as_tensorflow(description(channels, 18)))
    network = meshnet.build(layers)
    # The published files of weights, model.bin, have 385,632 and 784,152 bytes.
    assert sum(value.numel() for module in network for value in module.parameters()) == parameters
    assert [tuple(module.weight.shape) for module in network] == [
        (channels, 1, 3, 3, 3),
        *[(channels, channels, 3, 3, 3)] * 8,
        (18, channels, 1, 1, 1),
    ]
    assert [module.dilation[0] for module in network] == list(DILATIONS)


@pytest.mark.parametrize("change", [{"bnorm": True}, {"elu": False}, {"bias": False}])
def test_other_networks_are_refused(change: dict[str, bool]) -> None:
    with pytest.raises(ValueError, match="other layers"):
        meshnet.read_layers(description(21, 18) | change)


def test_parts_of_planes_give_the_classes_of_the_whole_volume(tmp_path: Path) -> None:
    import torch

    plain = description(4, 6)
    weights = write_network(tmp_path / "network", plain)
    network = meshnet.load(tmp_path / "network")
    stored = np.fromfile(tmp_path / "network" / "model.bin", "<f4")
    assert float(network[0].weight[2, 0, 1, 2, 0].detach()) == stored[(1 * 9 + 2 * 3 + 0) * 4 + 2]
    image = np.random.default_rng(1).integers(0, 256, (41, 19, 23)).astype(np.uint8)
    values = torch.from_numpy(image.astype(np.float32) / 255)[None, None]
    whole = torch.nn.Sequential(*[part for module in network for part in (module, torch.nn.ELU())][:-1])
    with torch.inference_mode():
        expected = whole(values).argmax(1)[0].numpy()
    assert len(np.unique(expected)) > 1
    assert (meshnet.predict(network, image) == expected).mean() > 0.999
    (tmp_path / "network" / "model.bin").write_bytes(stored[:-1].tobytes() + bytes(8))
    with pytest.raises(ValueError, match=f"{weights + 1} weights"):
        meshnet.load(tmp_path / "network")


def test_labels_come_back_to_the_images_grid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import nibabel as nib

    folder = tmp_path / "network"
    write_network(folder, description(4, 18))
    (folder / "colormap.json").write_text(json.dumps({"labels": [*meshnet.NAMES]}))
    axes = np.array([[0, 0, 1.0, -20], [-1, 0, 0, 30], [0, 1, 0, -9], [0, 0, 0, 1]])
    image = np.zeros((30, 20, 40), np.float32)
    image[5:9, 6:12, 7:15], image[25, 3, 30] = 50, 20
    nib.save(nib.Nifti1Image(image, axes), tmp_path / "image.nii.gz")
    monkeypatch.setattr(meshnet, "predict", lambda network, values: np.where(values > 0, 1 + (values < 200) * 3, 0))
    monkeypatch.setattr(meshnet, "SIDE", 64)
    meshnet.segment(folder, tmp_path / "image.nii.gz", tmp_path / "labels.nii.gz")
    there: Any = nib.load(tmp_path / "labels.nii.gz")
    np.testing.assert_allclose(there.affine, axes)
    # The lone voxel, a smaller part, is left out; 1 is cerebral white matter in both tables.
    np.testing.assert_array_equal(np.asarray(there.dataobj), (image == 50).astype(np.uint8))
