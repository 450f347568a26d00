"""nnU-Net's trained models: the same logits, its own resampling, and nothing of theirs runs."""

import json
import re
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from apps.imaging.bench.peers import nnunet_folder
from apps.imaging.importers import nnunet
from apps.imaging.importers.convert import converted_model, price
from apps.imaging.models.model_folder import TORCH_NETWORK, read_model
from apps.imaging.models.networks import nnunet as nnunet_networks
from apps.imaging.volumes.geometry import LinearInterpolation, network_grid
from apps.imaging.volumes.nifti import open_nifti
from apps.imaging.volumes.nonzero_crop import Content, Cropped, content, uncropped, union
from apps.imaging.volumes.spline import SplineReader, nearest_axis
from apps.imaging.volumes.volume import blocks
from common.engines.registry import open_engine
from common.errors import BadInput, DoesNotFit
from common.memory.process.budget import GIB, MIB, MemoryBudget
from common.tiling.grid import TileGrid, importance
from tests.apps.imaging.helpers import Planted, read_labels, write_nifti

pytest.importorskip("dynamic_network_architectures")

BUDGET = MemoryBudget(2 * GIB)


@pytest.mark.parametrize("seeds", [(0,), (1, 2)])
def test_logits_are_those_of_the_networks_own_library(tmp_path: Path, seeds: tuple[int, ...]) -> None:
    import torch

    folder = tmp_path / "nnUNetTrainer__nnUNetPlans__3d_fullres"
    networks = nnunet_folder.write(folder, seeds=seeds)
    place = converted_model(folder, BUDGET)
    model = read_model(place)
    assert (model.convention, model.orientation, model.mirror) == ("nnunet", "file:zyx", "xyz")
    assert model.patch == (8, 16, 24) and model.spacing == (3.6, 0.8, 0.8)
    assert (model.head is None) == (len(seeds) > 1)
    tile = np.random.default_rng(0).standard_normal((1, 1, *model.patch)).astype(np.float32)
    with torch.inference_mode():
        expected = sum(network(torch.from_numpy(tile)) for network in networks).numpy() / len(networks)
    for name in ("openvino", "torch"):
        engine = open_engine(
            place, name=name, precision="float32", tile=model.patch, batch=1, threads=1, head=model.head,
            builder=TORCH_NETWORK,
        )  # fmt: skip
        np.testing.assert_allclose(engine(tile), expected, atol=2e-5)
    assert converted_model(folder, BUDGET) == place  # from the cache
    assert converted_model(place, BUDGET) == place


def test_a_planted_command_does_not_run(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    trace, folder = tmp_path / "trace", tmp_path / "model"
    nnunet_folder.write(folder, extra=Planted(trace))
    image = write_nifti(tmp_path / "image.nii.gz", np.ones((24, 24, 12), np.int16))
    done = run("apps.imaging", "infer", image, "-m", folder, "-o", tmp_path / "out", "--memory", "2GiB")
    assert done.code == 4 and "nsupported" in done.err and "system" in done.err
    assert len(done.err.strip().splitlines()) == 1
    assert not trace.exists() and not (tmp_path / "out" / "study-0001.nii.gz").exists()


@pytest.mark.parametrize(
    ("key", "value"),
    [("nonlin", "os.system"), ("conv_op", "builtins.eval"), ("n_stages", 10**9), ("nonlin_kwargs", {"inplace": "os"})],
)
def test_names_are_looked_up_in_a_table(tmp_path: Path, key: str, value: object) -> None:
    nnunet_folder.write(tmp_path)
    plans = json.loads((tmp_path / "plans.json").read_text())
    plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"][key] = value
    (tmp_path / "plans.json").write_text(json.dumps(plans))
    with pytest.raises(BadInput, match=key):
        converted_model(tmp_path, BUDGET)
    plans["configurations"]["3d_fullres"]["architecture"]["network_class_name"] = "os.system"
    (tmp_path / "plans.json").write_text(json.dumps(plans))
    with pytest.raises(BadInput, match=r"os\.system"):
        converted_model(tmp_path, BUDGET)


def test_what_is_not_supported_is_refused_by_name(tmp_path: Path) -> None:
    for changes, says in (
        ({"patch_size": [32, 32]}, "2D configuration"),
        ({"previous_stage": "3d_lowres"}, "cascade"),
        ({"normalization_schemes": ["RescaleTo01Normalization"]}, "RescaleTo01Normalization"),
        ({"resampling_fn_data": "resample_torch_fornnunet"}, "resample_torch_fornnunet"),
    ):
        nnunet_folder.write(tmp_path, **changes)
        with pytest.raises(BadInput, match=says):
            nnunet.read_plan(tmp_path)
    assert set(nnunet_networks.OPERATORS.values()) == {
        "Conv3d", "InstanceNorm3d", "BatchNorm3d", "LeakyReLU", "ReLU",
    }  # fmt: skip


def test_a_ceiling_too_small_for_the_conversion_is_refused_with_one_that_does(tmp_path: Path) -> None:
    nnunet_folder.write(tmp_path, seeds=(77,))
    with pytest.raises(DoesNotFit) as refused:
        converted_model(tmp_path, MemoryBudget(256 * MIB))
    smallest = refused.value.smallest_feasible_bytes
    assert smallest is not None and smallest > 256 * MIB
    assert price([]) <= smallest <= 512 * MIB
    assert (converted_model(tmp_path, MemoryBudget(smallest)) / "model.json").is_file()


def test_tiles_and_weights_are_nnunets() -> None:
    from scipy.ndimage import gaussian_filter

    grid = TileGrid((110, 64, 30), (64, 64, 40), 0.5, even=True)
    assert [grid.starts(axis) for axis in range(3)] == [(0, 23, 46), (0,), (0,)]
    tile = (20, 56, 41)
    point = np.zeros(tile)
    point[tuple(size // 2 for size in tile)] = 1
    expected = gaussian_filter(point, [size / 8 for size in tile], mode="constant")
    expected = (10 * expected / expected.max()).astype(np.float16)
    expected[expected == 0] = expected[expected > 0].min()
    np.testing.assert_array_equal(importance(tile, "half"), expected.astype(np.float32))


@pytest.mark.parametrize("nearest", [None, 2])
def test_splines_in_a_stream_are_scipys(tmp_path: Path, nearest: int | None) -> None:
    from scipy.ndimage import zoom

    values = np.random.default_rng(0).standard_normal((17, 20, 41)).astype(np.float32)
    shape = (21, 15, 52)
    volume = open_nifti(write_nifti(tmp_path / "image.nii.gz", values))
    found = np.empty(shape[::-1], np.float32)
    with volume.open() as reader:
        limits = (float(values.min()), float(values.max()))
        SplineReader(volume, reader, shape, (), nearest=nearest, limits=limits).read(found)
    options = {"order": 3, "mode": "nearest", "grid_mode": True}
    if nearest is None:
        whole = zoom(values.astype(float), np.divide(shape, values.shape), **options)
        expected = np.clip(whole, values.min(), values.max())
    else:
        planes = [values[..., int((index + 0.5) * 41 / 52)] for index in range(52)]
        enlarged = [zoom(plane.astype(float), np.divide(shape[:2], plane.shape), **options) for plane in planes]
        cut = [np.clip(new, old.min(), old.max()) for new, old in zip(enlarged, planes, strict=True)]
        expected = np.stack(cut, axis=2)
    np.testing.assert_allclose(found.transpose(2, 1, 0), expected, atol=2e-6)


def test_which_axis_is_not_interpolated() -> None:
    assert nearest_axis((1, 1, 1), (1, 1, 1)) is None
    assert nearest_axis((1, 1, 3.5), (1, 1, 1)) == 2
    assert nearest_axis((1, 1, 1), (4, 1, 1)) == 0
    assert nearest_axis((0.2, 1.25, 1.25), (1, 1, 1)) is None
    # There and back: the grid that it comes from is asked first.
    assert (nearest_axis((1, 1, 3.5), (4, 1, 1)), nearest_axis((4, 1, 1), (1, 1, 3.5))) == (2, 0)


@pytest.mark.parametrize(
    ("size", "new"), [(17, 15), (15, 17), (18, 20), (24, 36), (36, 24), (3, 100), (50, 50), (7, 1)]
)
def test_the_nearest_planes_are_scipys(size: int, new: int) -> None:
    from scipy.ndimage import map_coordinates

    places = size / new * (np.arange(new) + 0.5) - 0.5
    expected = map_coordinates(np.arange(float(size)), [places], order=0, mode="nearest")
    np.testing.assert_array_equal(LinearInterpolation.nearest(size, new).lower, expected)


def test_the_grid_is_nnunets_where_a_size_lies_between_two() -> None:
    """Halves are rounded from the same product, taken in the same order, as by ``compute_new_shape``."""
    for old, new, size in product((0.7, 0.8, 0.9, 1.1, 3.6), (0.8, 1.0, 1.2), range(1, 80)):
        found = network_grid((size, size, size), np.diag([old, old, old, 1.0]), (new, new, new), 0.0)
        assert found[0] == max(1, round(old / new * size))


def test_the_box_that_is_not_zero(tmp_path: Path) -> None:
    values = np.zeros((9, 8, 10), np.int16)
    values[2:7, 1:5, 3:9] = np.arange(1, 121).reshape(5, 4, 6)
    volume = open_nifti(write_nifti(tmp_path / "image.nii", values))
    found = content(volume.shape, blocks(volume))
    assert (found.low, found.high, found.limits) == ((2, 1, 3), (7, 5, 9), (0.0, 120.0))
    box = Cropped(volume, found.low, found.high)
    inside = np.concatenate(list(blocks(box)))
    np.testing.assert_array_equal(inside.transpose(2, 1, 0), values[2:7, 1:5, 3:9])
    np.testing.assert_allclose(box.affine[:3, 3], volume.affine[:3, :3] @ [2, 1, 3] + volume.affine[:3, 3])
    labels = (values[2:7, 1:5, 3:9] % 3).astype(np.uint8)
    planes = uncropped([labels[..., :4], labels[..., 4:]], volume.shape, found.low, np.dtype(np.uint8))
    whole = np.concatenate(list(planes), axis=2)
    np.testing.assert_array_equal(whole, np.where(values > 0, values % 3, 0))


def test_inference_with_an_imported_model(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    nnunet_folder.write(tmp_path / "model")
    values = np.random.default_rng(1).normal(100, 20, (30, 26, 14)).astype(np.int16)
    values[:4] = values[..., 12:] = 0
    image = write_nifti(tmp_path / "image.nii.gz", values, np.diag([1.0, 0.9, 3.0, 1.0]))
    done = run("apps.imaging", "infer", image, "-m", tmp_path / "model", "-o", tmp_path / "out", "--tta", "mirror")
    assert done.code == 0, done.err
    labels = read_labels(tmp_path / "out" / "study-0001.nii.gz")
    assert labels.shape == values.shape and labels.any() and not labels[:4].any() and not labels[..., 12:].any()


def test_a_model_of_two_channels_finds_the_second_beside_the_first(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    import torch

    (network,) = nnunet_folder.write(tmp_path / "model", channels=2, seeds=(3,))
    random = np.random.default_rng(2)
    channels = [random.normal(100 * (number + 1), 20, (24, 16, 8)).astype(np.int16) for number in range(2)]
    channels[0][:6] = channels[1][:3] = 0  # the box is that of both
    affine = np.diag([0.8, 0.8, 3.6, 1.0])
    (tmp_path / "images").mkdir()
    for number, values in enumerate(channels):
        write_nifti(tmp_path / "images" / f"case_{number:04d}.nii.gz", values, affine)
    done = run("apps.imaging", "infer", tmp_path / "images", "-m", tmp_path / "model", "-o", tmp_path / "out")
    assert done.code == 0, done.err
    assert not (tmp_path / "out" / "study-0002.nii.gz").exists()
    box = np.stack(channels)[:, 3:].astype(np.float32)
    scaled = [(values - values.mean()) / values.std() for values in box]
    padded = np.pad(np.stack(scaled), ((0, 0), (1, 2), (0, 0), (0, 0)))
    with torch.inference_mode():
        logits = network(torch.from_numpy(padded.transpose(0, 3, 2, 1))[None])[0].numpy().transpose(0, 3, 2, 1)
    expected = np.zeros((24, 16, 8), np.uint8)
    expected[3:] = logits.argmax(axis=0)[1:-2]
    np.testing.assert_array_equal(read_labels(tmp_path / "out" / "study-0001.nii.gz"), expected)


@pytest.mark.parametrize(
    ("names", "shape", "says"),
    [
        (("case_0000.nii.gz",), (24, 16, 8), "case_0001"),
        (("case_0000.nii.gz", "case_0001.nii.gz"), (24, 16, 7), "grid"),
        (("case_0001.nii.gz",), (24, 16, 8), "case_0000|CASE_0000"),
    ],
)
def test_channels_that_are_missing_or_do_not_match_are_refused(
    run, tmp_path: Path, names: tuple[str, ...], shape: tuple[int, int, int], says: str
) -> None:  # type: ignore[no-untyped-def]
    nnunet_folder.write(tmp_path / "model", channels=2, seeds=(3,))
    for name, size in zip(names, ((24, 16, 8), shape), strict=False):
        write_nifti(tmp_path / name, np.ones(size, np.int16), np.diag([0.8, 0.8, 3.6, 1.0]))
    done = run("apps.imaging", "infer", tmp_path / names[0], "-m", tmp_path / "model", "-o", tmp_path / "out")
    assert done.code == 4 and re.search(says, done.err), done.err
    assert not (tmp_path / "out" / "study-0001.nii.gz").exists()


def test_the_box_of_several_channels() -> None:
    one, two = Content((2, 1, 3), (7, 5, 9), (0.0, 4.0)), Content((4, 0, 3), (8, 4, 9), (-1.0, 0.0))
    assert union([one, two]) == ((2, 0, 3), (8, 5, 9))
    empty = Content((0, 0, 0), (20, 20, 20), (0.0, 0.0))
    assert union([one, empty]) == ((2, 1, 3), (7, 5, 9))
    assert union([empty, empty]) == ((0, 0, 0), (20, 20, 20))
