"""nnU-Net's trained models: the same logits, its own resampling, and nothing of theirs runs."""

import json
from pathlib import Path

import numpy as np
import pytest

from apps.imaging.bench.peers import nnunet_folder
from apps.imaging.importers import convert
from apps.imaging.importers.convert import converted_model, price, weights_bytes
from apps.imaging.importers.nnunet import Weights
from apps.imaging.models.model_folder import TORCH_NETWORK, read_model
from common.engines.registry import open_engine
from common.errors import BadInput, DoesNotFit, UsageError
from common.memory.process.budget import GIB, MIB, MemoryBudget
from tests.apps.imaging.helpers import Planted, output_file, read_labels, write_nifti
from tests.apps.imaging.in_process import done
from tests.promise import kept

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
    given = run("apps.imaging", "infer", image, "-m", folder, "-o", tmp_path / "out", "--memory", "2GiB")
    assert given.code == 4 and "nsupported" in given.err and "system" in given.err
    assert len(given.err.strip().splitlines()) == 1
    assert not trace.exists() and not list(tmp_path.glob("out/*.nii.gz"))


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


@pytest.mark.parametrize("features", [[4, 8, 12], [64, 192, 320]])
def test_a_ceiling_too_small_for_the_conversion_is_refused_with_one_that_does(
    tmp_path: Path, features: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With weights of 40 kB, and of 38 MB, of which several copies are held at a time."""
    monkeypatch.setattr(convert, "anonymous", lambda: 20 * MIB)  # a command's, not that of a test among others
    nnunet_folder.write(tmp_path, seeds=(77,), architecture={"features_per_stage": features})
    with pytest.raises(DoesNotFit) as refused:
        converted_model(tmp_path, MemoryBudget(256 * MIB))
    smallest = refused.value.smallest_feasible_bytes
    assert smallest is not None and smallest > 256 * MIB
    assert price([]) <= smallest <= 512 * MIB + 5 * sum(path.stat().st_size for path in tmp_path.glob("fold_0/*"))
    assert (converted_model(tmp_path, MemoryBudget(smallest)) / "model.json").is_file()


def test_the_state_of_an_optimiser_is_no_weight(tmp_path: Path) -> None:
    import torch

    tensors = {"weight": torch.zeros(100_000)}
    for name, extra, copies in (("alone", {}, 1), ("sgd", {"momentum_buffer": 1}, 2), ("adam", {"exp_avg_sq": 2}, 3)):
        states = {key: [torch.ones(100_000) for _ in range(count)] for key, count in extra.items()}
        torch.save({"network_weights": tensors, "optimizer_state": states}, tmp_path / name)
        assert weights_bytes(tmp_path / name) == pytest.approx((tmp_path / name).stat().st_size / copies, abs=1)
        assert weights_bytes(tmp_path / name) == pytest.approx(400_000, rel=0.02)
    (tmp_path / "text").write_text("no checkpoint")
    assert weights_bytes(tmp_path / "text") == 13


def test_inference_with_an_imported_model(quick, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    nnunet_folder.write(tmp_path / "model")
    values = np.random.default_rng(1).normal(100, 20, (30, 26, 14)).astype(np.int16)
    values[:4] = values[..., 12:] = 0
    image = write_nifti(tmp_path / "image.nii.gz", values, np.diag([1.0, 0.9, 3.0, 1.0]))
    given = quick("apps.imaging", "infer", image, "-m", tmp_path / "model", "-o", tmp_path / "out", "--tta", "mirror")
    assert given.code == 0, given.err
    labels = read_labels(output_file(tmp_path / "out"))
    assert labels.shape == values.shape and labels.any() and not labels[:4].any() and not labels[..., 12:].any()


def test_a_model_of_two_channels_finds_the_second_beside_the_first(tmp_path: Path) -> None:
    import torch

    (network,) = nnunet_folder.write(tmp_path / "model", channels=2, seeds=(3,))
    random = np.random.default_rng(2)
    channels = [random.normal(100 * (number + 1), 20, (24, 16, 8)).astype(np.int16) for number in range(2)]
    channels[0][:6] = channels[1][:3] = 0  # the box is that of both
    affine = np.diag([0.8, 0.8, 3.6, 1.0])
    (tmp_path / "images").mkdir()
    for number, values in enumerate(channels):
        write_nifti(tmp_path / "images" / f"case_{number:04d}.nii.gz", values, affine)
    done("infer", tmp_path / "images", "-m", tmp_path / "model", "-o", tmp_path / "out")
    assert len(list(tmp_path.glob("out/*.nii.gz"))) == 1
    box = np.stack(channels)[:, 3:].astype(np.float32)
    scaled = [(values - values.mean()) / values.std() for values in box]
    padded = np.pad(np.stack(scaled), ((0, 0), (1, 2), (0, 0), (0, 0)))
    with torch.inference_mode():
        logits = network(torch.from_numpy(padded.transpose(0, 3, 2, 1))[None])[0].numpy().transpose(0, 3, 2, 1)
    expected = np.zeros((24, 16, 8), np.uint8)
    expected[3:] = logits.argmax(axis=0)[1:-2]
    np.testing.assert_array_equal(read_labels(output_file(tmp_path / "out")), expected)


SHAPE = (24, 16, 8)
"""The patch along x, y, z."""
AFFINE = np.diag([0.8, 0.8, 3.6, 1.0])


def predicted(network: object, values: np.ndarray) -> np.ndarray:
    """Logits (class, x, y, z) of the network for an image of the patch's size, in one channel, as a z-score."""
    import torch

    score = (values - values.mean(dtype=np.float64)) / values.std(dtype=np.float64)
    with torch.inference_mode():
        found = network(torch.from_numpy(score.astype(np.float32).transpose(2, 1, 0))[None, None])[0]  # type: ignore[operator]
    return found.numpy().transpose(0, 3, 2, 1)  # type: ignore[no-any-return]


@pytest.mark.parametrize("network", ["PlainConvUNet", "ResidualEncoderUNet"])
def test_a_plan_without_an_architecture_is_rebuilt(tmp_path: Path, network: str) -> None:
    residual = {"n_blocks_per_stage": [1, 2, 1], "n_conv_per_stage_decoder": [1, 1], "features_per_stage": [4, 8, 10]}
    changes = residual if network.startswith("Res") else {}
    (made,) = nnunet_folder.write(tmp_path / "model", network=network, architecture=changes, old=True, scaled=True)
    values = np.random.default_rng(1).normal(100, 20, SHAPE).astype(np.float32)
    write_nifti(tmp_path / "image.nii.gz", values, AFFINE)
    done("infer", tmp_path / "image.nii.gz", "-m", tmp_path / "model", "-o", tmp_path / "out")
    np.testing.assert_array_equal(read_labels(output_file(tmp_path / "out")), predicted(made, values).argmax(0))


def test_regions_overwrite_each_other_in_their_order(tmp_path: Path) -> None:
    regions = {"labels": {"background": 0, "whole": [1, 2], "core": [2]}, "regions_class_order": [1, 2]}
    (made,) = nnunet_folder.write(tmp_path / "model", dataset=regions, scaled=True)
    values = np.random.default_rng(1).normal(100, 20, SHAPE).astype(np.float32)
    write_nifti(tmp_path / "image.nii.gz", values, AFFINE)
    logits = predicted(made, values)
    expected = np.where(logits[1] > 0, 2, np.where(logits[0] > 0, 1, 0))
    assert len(np.unique(expected)) == 3
    for name, options, wanted in (
        ("all", (), expected),
        ("core", ("--roi-subset", "core"), np.where(expected == 2, 2, 0)),
    ):
        done("infer", tmp_path / "image.nii.gz", "-m", tmp_path / "model", "-o", tmp_path / name, *options)
        np.testing.assert_array_equal(read_labels(output_file(tmp_path / name)), wanted)


def test_a_reader_that_turns_images_gives_the_same_labels_however_they_are_stored(tmp_path: Path) -> None:
    nnunet_folder.write(tmp_path / "model", patch_size=[8, 16, 16], spacing=[2.0, 1.0, 1.0], scaled=True)
    plans = json.loads((tmp_path / "model" / "plans.json").read_text())
    plans["image_reader_writer"] = "NibabelIOWithReorient"
    (tmp_path / "model" / "plans.json").write_text(json.dumps(plans))
    values, found = np.random.default_rng(1).normal(100, 20, (20, 19, 11)).astype(np.int16), []
    for name, stored, x, z in (("right", values, 1.0, 2.0), ("left", values[::-1, :, ::-1], -1.0, -2.0)):
        image = write_nifti(tmp_path / f"{name}.nii.gz", stored.copy(), np.diag([x, 1.0, z, 1.0]))
        done("infer", image, "-m", tmp_path / "model", "-o", tmp_path / name)
        found.append(read_labels(output_file(tmp_path / name)))
    np.testing.assert_array_equal(found[1][::-1, :, ::-1], found[0])  # tiles overlap by weights with a peak off centre


def test_a_2d_network_runs_plane_by_plane(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    import torch

    flat = {"patch_size": [16, 24], "spacing": [0.8, 0.8]}
    folder = tmp_path / "nnUNetTrainer__nnUNetPlans__2d"
    (made,) = nnunet_folder.write(folder, flat=True, configuration="2d", scaled=True, **flat)
    values = np.random.default_rng(1).normal(100, 20, (24, 16, 7)).astype(np.float32)
    write_nifti(tmp_path / "image.nii.gz", values, np.diag([0.8, 0.8, 5.0, 1.0]))
    model = read_model(converted_model(folder, BUDGET))
    assert (model.patch, model.spacing, model.mirror) == ((1, 16, 24), (0.0, 0.8, 0.8), "yz")
    given = run("apps.imaging", "infer", tmp_path / "image.nii.gz", "-m", folder, "-o", tmp_path / "out", "--json")
    assert given.code == 0, given.err
    kept(given.record)
    score = (values - values.mean()) / values.std()
    with torch.inference_mode():
        logits = made(torch.from_numpy(score.transpose(2, 1, 0))[:, None]).numpy()
    np.testing.assert_array_equal(read_labels(output_file(tmp_path / "out")), logits.argmax(1).transpose(2, 1, 0))


def test_weights_of_batch_normalisation_decide_against_the_plan(tmp_path: Path) -> None:
    (made,) = nnunet_folder.write(tmp_path, norm="BatchNorm3d", trainer="nnUNetTrainerBN", scaled=True)
    values = np.random.default_rng(1).normal(100, 20, SHAPE).astype(np.float32)
    write_nifti(tmp_path / "image.nii.gz", values, AFFINE)
    done("infer", tmp_path / "image.nii.gz", "-m", tmp_path, "-o", tmp_path / "out")
    np.testing.assert_array_equal(read_labels(output_file(tmp_path / "out")), predicted(made, values).argmax(0))


def test_weights_of_another_network_are_refused_with_their_trainer(tmp_path: Path) -> None:
    nnunet_folder.write(tmp_path, trainer="nnUNetTrainerOwn")
    plans = json.loads((tmp_path / "plans.json").read_text())
    plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]["features_per_stage"] = [4, 8, 16]
    (tmp_path / "plans.json").write_text(json.dumps(plans))
    with pytest.raises(BadInput, match=r"do not fit the network of the plan \(nnUNetTrainerOwn may build another\)"):
        converted_model(tmp_path, BUDGET)


def test_folds_and_checkpoints_are_chosen(tmp_path: Path) -> None:
    nnunet_folder.write(tmp_path, seeds=(0, 1), checkpoint="checkpoint_best.pth")
    with pytest.raises(BadInput, match=r"--checkpoint checkpoint_best takes checkpoint_best\.pth"):
        converted_model(tmp_path, BUDGET)
    both = read_model(converted_model(tmp_path, BUDGET, Weights.of((), "best")))
    one = read_model(converted_model(tmp_path, BUDGET, Weights.of(("1",), "checkpoint_best")))
    assert (both.arguments["members"], one.arguments["members"]) == (2, 1)
    with pytest.raises(UsageError, match=r"--folds 3: no checkpoint_best\.pth .* folds 0,1 have"):
        converted_model(tmp_path, BUDGET, Weights.of(("1", "3"), "best"))
    (tmp_path / "fold_1" / "checkpoint_best.pth").rename(tmp_path / "fold_1" / "checkpoint_latest.pth")
    with pytest.raises(BadInput, match=r"fold 1 has no checkpoint_best\.pth; --folds 0 takes"):
        converted_model(tmp_path, BUDGET, Weights.of((), "best"))
    with pytest.raises(UsageError, match="nnU-Net"):
        converted_model(tmp_path / "fold_0", BUDGET, Weights.of(("1",)))


def test_other_folders_of_nnunet_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "old" / "fold_0").mkdir(parents=True)
    (tmp_path / "old" / "plans.pkl").write_bytes(b"")
    with pytest.raises(BadInput, match=r"nnU-Net v1.*nnUNetv2_convert_old_nnUNet_dataset"):
        converted_model(tmp_path / "old", BUDGET)
    for name in ("2d", "3d_fullres"):
        nnunet_folder.write(tmp_path / "both" / f"nnUNetTrainer__nnUNetPlans__{name}", seeds=())
    with pytest.raises(
        BadInput, match="choose nnUNetTrainer__nnUNetPlans__2d or nnUNetTrainer__nnUNetPlans__3d_fullres"
    ):
        converted_model(tmp_path / "both", BUDGET)


def test_a_hole_is_normalised_and_the_outside_is_not(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """nnU-Net's mask is what no path of zeros connects to the border, over both channels."""
    import torch
    from scipy.ndimage import binary_fill_holes

    masked = {"use_mask_for_norm": [True, True], "channels": 2}
    (made,) = nnunet_folder.write(tmp_path / "model", scaled=True, **masked)
    random = np.random.default_rng(2)
    channels = random.normal(100, 20, (2, *SHAPE)).astype(np.int16)
    channels[:, 10:13, 6:9, 3:5] = 0  # a hole
    channels[0, 3:6] = 0  # nonzero in the other channel
    channels[:, :3, :4] = 0
    channels[:, 0, 10], channels[:, :, :, 0] = 50, 60
    channels[:, :2, :2, 0] = 0
    (tmp_path / "in").mkdir()
    for number, values in enumerate(channels):
        write_nifti(tmp_path / "in" / f"case_{number:04d}.nii.gz", values, AFFINE)
    given = run("apps.imaging", "infer", tmp_path / "in", "-m", tmp_path / "model", "-o", tmp_path / "out", "--json")
    assert given.code == 0, given.err
    kept(given.record)
    inside = binary_fill_holes((channels != 0).any(axis=0))
    scored = [
        np.where(inside, (one - one[inside].mean()) / one[inside].std(), one) for one in channels.astype(np.float32)
    ]
    with torch.inference_mode():
        logits = made(torch.from_numpy(np.stack(scored).transpose(0, 3, 2, 1)).float()[None])[0].numpy()
    expected = logits.argmax(0).transpose(2, 1, 0)
    np.testing.assert_array_equal(read_labels(output_file(tmp_path / "out")), expected)


@pytest.mark.parametrize(
    ("names", "shape", "says"),
    [
        (("case_0000.nii.gz",), (24, 16, 8), "case_0001"),
        (("case_0000.nii.gz", "case_0001.nii.gz"), (24, 16, 7), "grid"),
        (("case_0001.nii.gz",), (24, 16, 8), "case_0000|CASE_0000"),
    ],
)
def test_channels_that_are_missing_or_do_not_match_are_refused(
    tmp_path: Path, names: tuple[str, ...], shape: tuple[int, int, int], says: str
) -> None:
    nnunet_folder.write(tmp_path / "model", channels=2, seeds=(3,))
    for name, size in zip(names, ((24, 16, 8), shape), strict=False):
        write_nifti(tmp_path / name, np.ones(size, np.int16), np.diag([0.8, 0.8, 3.6, 1.0]))
    with pytest.raises(BadInput, match=says):
        done("infer", tmp_path / names[0], "-m", tmp_path / "model", "-o", tmp_path / "out")
    assert not list(tmp_path.glob("out/*.nii.gz"))
