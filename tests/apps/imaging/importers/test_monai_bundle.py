"""MONAI bundles: the labels that MONAI itself gives, and nothing of theirs runs."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from apps.imaging.importers import monai_bundle
from apps.imaging.importers.convert import convert_bundle, converted_model, price
from apps.imaging.models.model_folder import TORCH_NETWORK, read_model
from apps.imaging.models.networks.monai_bundle import NETWORKS
from common.engines.registry import open_engine
from common.errors import BadInput, DoesNotFit, UsageError
from common.memory.process.budget import GIB, MIB, MemoryBudget
from tests.apps.imaging import bundle_folder
from tests.apps.imaging.bundle_folder import ARGMAX, INVERT, NETWORK, RANGE, SIGMOID, SOFTMAX, THRESHOLD, spaced
from tests.apps.imaging.helpers import Planted, output_file, read_labels, write_nifti
from tests.apps.imaging.in_process import done
from tests.messages import refused
from tests.promise import kept

BUDGET = MemoryBudget(2 * GIB)
SEGRESNET = {
    "_target_": "monai.networks.nets.SegResNet",
    "spatial_dims": 3,
    "in_channels": 1,
    "out_channels": 4,
    "init_filters": 8,
    "blocks_down": [1, 2],
    "blocks_up": [1],
    "dropout_prob": 0.2,
}
ZSCORE = {"_target_": "NormalizeIntensityd", "nonzero": True, "channel_wise": True}
TO_ONE = {"_target_": "ScaleIntensityd", "minv": -1.0, "maxv": 1.0}
PERCENTILES = {
    "_target_": "monai.transforms.ScaleIntensityRangePercentilesd",
    "lower": 1,
    "upper": 99,
    "b_min": 0,
    "b_max": 1,
    "clip": True,
}
NEAREST = INVERT | {"nearest_interp": True}

TO_ZERO = {**RANGE, "b_min": 0.0}
CROP = {"_target_": "CropForegroundd", "source_key": "@image_key"}
LARGEST = {"_target_": "KeepLargestConnectedComponentd", "applied_labels": [1, 2]}
CHOICE = {
    "_target_": "Lambdad",
    "func": "$lambda x: torch.where(x[[2]] > 0, 4, torch.where(x[[0]] > 0, 1, torch.where(x[[1]] > 0, 2, 0)))",
}
CASES: dict[str, dict[str, Any]] = {
    "softmax-interpolated": {},
    "labels-nearest-small-image": {
        "network": SEGRESNET,
        "before": (*spaced(2.3, 2.5, 3.4), {**ZSCORE, "nonzero": False}, TO_ONE),
        "after": (SOFTMAX, ARGMAX, NEAREST),
        "inferer": {"padding_mode": "replicate", "roi_size": [64, 64, 64]},
    },
    "own-spacing-percentiles": {
        "before": ({"_target_": "Orientationd", "axcodes": "LPS"}, PERCENTILES),
        "after": (ARGMAX, NEAREST),
        "inferer": {"mode": "constant"},
    },
    "clipped-before-resampling": {
        "before": (RANGE, *spaced(2.3, 2.5, 3.4, orientation="PIR")),
        "after": (INVERT, ARGMAX),
    },
}
"""The four ways back onto the image's grid, every kind of intensity, orders and sizes that are unusual; crops, masks
and components."""
CASES |= {
    "cropped": {
        "before": (*spaced(2.0, 2.5, 3.4), TO_ZERO, {**CROP, "mode": ["minimum"]}),
        "after": (SOFTMAX, INVERT, ARGMAX),
    },
    "cropped-beyond": {"before": (TO_ZERO, {**CROP, "margin": [2, 3, 4]}, ZSCORE), "after": (INVERT, ARGMAX)},
    "largest": {"after": (SOFTMAX, INVERT, ARGMAX, LARGEST)},
    "largest-first": {"after": (ARGMAX, LARGEST, INVERT)},
    "one-mask": {
        "network": {**NETWORK, "out_channels": 1},
        "after": (SIGMOID, INVERT, {**THRESHOLD, "threshold": 0.4}),
    },
    "regions": {"after": (SIGMOID, INVERT, THRESHOLD, CHOICE), "channel_names": ["core", "whole", "enhancing"]},
    "masks": {
        "before": (*spaced(2.3, 2.5, 3.4), RANGE),
        "after": (SIGMOID, THRESHOLD, NEAREST),
        "channel_names": ["core", "whole", "enhancing one"],
    },
}


@pytest.fixture(scope="session")
def compared(dataset: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A part of a real CT and a folder of bundles, each with the labels that MONAI gives it."""
    folder = tmp_path_factory.mktemp("bundles")
    whole, image = nib.load(dataset("ct-sample") / "example_ct_sm.nii.gz"), folder / "image.nii.gz"
    nib.save(whole.slicer[24:88, 24:80], image)
    bundles = [bundle_folder.write(folder / name, **changes) for name, changes in CASES.items()]
    bundle_folder.with_monai(image, *bundles)
    return image, folder


def both_engines_agree(run: Any, image: Path, bundle: Path, expected: Any, folder: Path) -> None:
    """Both engines give these labels, but for one voxel in ten thousand; OpenVINO keeps the promise."""
    words = ("infer", image, "-m", bundle, "-o")
    given = run("apps.imaging", *words, folder / "openvino", "--engine", "openvino", "--json")
    assert given.code == 0, given.err
    kept(given.record)
    done(*words, folder / "torch", "--engine", "torch")
    for engine in ("openvino", "torch"):
        assert (read_labels(output_file(folder / engine)) == expected).mean() >= 0.9999


@pytest.mark.parametrize("case", CASES)
def test_labels_are_those_of_monai(compared: tuple[Path, Path], case: str) -> None:
    image, folder = compared
    out = folder / f"out-{case}"
    done("infer", image, "-m", folder / case, "-o", out)
    expected = np.load(folder / case / "expected.npy")
    if case == "masks":
        for name, mask in zip(("core", "whole", "enhancing_one"), expected, strict=True):
            assert 0 < mask.mean() < 1
            assert (read_labels(out / f"image-{name}.nii.gz") == mask).mean() >= 0.9999
        return
    found, labels = read_labels(output_file(out)), np.rint(expected[0])
    assert len(np.unique(labels)) >= (2 if case == "one-mask" else 3)
    assert (found == labels).mean() >= 0.9999


DESCRIPTIONS: dict[str, dict[str, Any]] = {
    "UNet": {"channels": [4, 8], "strides": [[1, 2, 2]], "num_res_units": 2, "act": ["leakyrelu", {"inplace": True}]},
    "AttentionUnet": {"channels": [4, 8, 8], "strides": [2, 2]},
    "BasicUNet": {"features": [4, 4, 8, 8, 8, 4], "norm": ["group", {"num_groups": 2}], "upsample": "nontrainable"},
    "SegResNet": {"init_filters": 8, "blocks_down": [1, 1], "blocks_up": [1], "norm": "batch"},
    "DynUNet": {
        "kernel_size": [3, 3, 3],
        "strides": [1, 2, [2, 2, 1]],
        "upsample_kernel_size": [2, [2, 2, 1]],
        "filters": [4, 8, 8],
        "deep_supervision": True,
        "norm_name": "batch",
    },
    "VNet": {"dropout_prob_down": None},
    "SwinUNETR": {"feature_size": 12, "depths": [1, 1, 1, 1], "num_heads": [1, 2, 3, 4]},
}


SEARCHED: dict[str, Any] = {
    "network": {
        "_target_": "monai.networks.nets.DiNTS",
        "dints_space": "@dints_space",
        "in_channels": 1,
        "num_classes": 3,
        "use_downsample": True,
        "node_a": "$torch.from_numpy(@arch_ckpt['node_a'])",
    },
    "dints_space": {
        "_target_": "monai.networks.nets.TopologyInstance",
        "channel_mul": 0.25,
        "num_blocks": 2,
        "num_depths": 2,
        "use_downsample": True,
        "arch_code": ["$@arch_ckpt['arch_code_a']", "$@arch_ckpt['arch_code_c']"],
        "device": "$torch.device('cpu')",
    },
    "arch_ckpt_path": "$@bundle_root + '/models/code.pt'",
    "arch_ckpt": "$torch.load(@arch_ckpt_path, map_location=torch.device('cpu'))",
    "codes": {
        "arch_code_a": [[1, 1, 0, 1], [1, 0, 1, 1]],
        "arch_code_c": [[1, 2, 3, 4], [4, 3, 2, 1]],
        "node_a": [[1, 1]] * 3,
    },
}
"""A bundle of DiNTS, as the model zoo lays it out."""


@pytest.mark.parametrize("name", [name for name in NETWORKS if name != monai_bundle.VISTA])
def test_every_network_of_the_table_gives_its_logits(tmp_path: Path, name: str) -> None:
    import torch

    from apps.imaging.models.networks import monai_bundle

    network = {"_target_": name, "spatial_dims": 3, "in_channels": 1, "out_channels": 3, **DESCRIPTIONS.get(name, {})}
    place = tmp_path / "converted"
    place.mkdir()
    changes = SEARCHED if name == "DiNTS" else {"network": network, "inferer": {"roi_size": [64, 64, 32]}}
    convert_bundle(bundle_folder.write(tmp_path, **changes), place)
    model = read_model(place)
    x, y, z = monai_bundle.divisors(name, model.arguments)
    static = monai_bundle.NETWORKS[name].static
    shape = model.patch if static else (max(8, x), max(8, y), 2 * z)
    tile = np.random.default_rng(0).standard_normal((1, 1, *shape)).astype(np.float32)
    module = monai_bundle.build(name, model.arguments).eval()
    module.load_state_dict(torch.load(tmp_path / "models" / "model.pt", weights_only=True))
    with torch.inference_mode():
        expected = module(torch.from_numpy(tile)).numpy()
    for engine in ("openvino", "torch"):
        opened = open_engine(
            place, name=engine, precision="float32", tile=tile.shape[2:], batch=1, threads=1, head=model.head,
            builder=TORCH_NETWORK,
        )  # fmt: skip
        np.testing.assert_allclose(opened(tile), expected, atol=2e-4)


def test_codes_elsewhere_are_refused(tmp_path: Path) -> None:
    for changes, says in (
        ({"arch_ckpt_path": "../code.pt"}, "outside"),
        ({"arch_ckpt": "$exec(@arch_ckpt_path)"}, "torch.load"),
        ({"network": {**SEARCHED["network"], "node_a": "$print(@arch_ckpt['node_a'])"}}, "node_a"),
    ):
        bundle_folder.write(tmp_path, weights=False, **{**SEARCHED, **changes})
        (tmp_path / "models" / "model.pt").write_bytes(b"never read")
        with pytest.raises(BadInput, match=says):
            monai_bundle.read_plan(tmp_path)


def test_all_blockers_are_named_at_once(tmp_path: Path) -> None:
    changes: dict[str, Any] = {
        "network": {"_target_": "scripts.nets.Own"},
        "before": ({"_target_": "scripts.own.Stepsd"}, {**RANGE, "dither": 1}),
        "after": ({"_target_": "VoteEnsembled"}, ARGMAX),
        "inferer": {"_target_": "SaliencyInferer"},
    }
    bundle_folder.write(tmp_path, weights=False, **changes)
    with pytest.raises(BadInput, match=r"Own.*Steps.*dither.*SaliencyInferer.*VoteEnsemble.*no weights"):
        monai_bundle.read_plan(tmp_path)


def two_channels(tmp_path: Path, *transforms: dict[str, Any]) -> tuple[Path, Path]:
    """A bundle of two channels, and a folder of two images."""
    bundle = bundle_folder.write(tmp_path / "bundle", network={**NETWORK, "in_channels": 2}, before=transforms)
    random = np.random.default_rng(0)
    (tmp_path / "in").mkdir()
    for channel in range(2):
        values = random.normal(100 * (channel + 1), 30, (34, 30, 26)).astype(np.int16)
        write_nifti(tmp_path / "in" / f"case_{channel:04d}.nii.gz", values, np.diag([2.0, 2.0, 3.0, 1.0]))
    return bundle, tmp_path / "in"


def test_two_channels_are_two_files(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    bundle, images = two_channels(tmp_path, *spaced(2.0, 2.5, 3.4), ZSCORE)
    bundle_folder.with_monai(images, bundle)
    given = run("apps.imaging", "infer", images, "-m", bundle, "-o", tmp_path / "out", "--json")
    assert given.code == 0, given.err
    kept(given.record)
    expected = np.load(bundle / "expected.npy")[0]
    assert len(np.unique(expected)) == 3
    assert (read_labels(output_file(tmp_path / "out")) == expected).mean() >= 0.9999


def test_statistics_of_all_channels_together_are_refused(tmp_path: Path) -> None:
    bundle, _ = two_channels(tmp_path, {"_target_": "NormalizeIntensityd"})
    with pytest.raises(BadInput, match=r"NormalizeIntensityd.*channel_wise"):
        monai_bundle.read_plan(bundle)


def test_a_simple_inferer_sees_the_whole_image(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    bundle = bundle_folder.write(tmp_path / "bundle", before=(ZSCORE,))
    _simple(bundle)
    random = np.random.default_rng(0)
    for name, shape in (("one", (36, 28, 24)), ("other", (36, 28, 20)), ("odd", (36, 27, 24))):
        write_nifti(tmp_path / f"{name}.nii.gz", random.normal(100, 30, shape).astype(np.int16))
    bundle_folder.with_monai(tmp_path / "one.nii.gz", bundle)
    words = ("apps.imaging", "infer", "-m", bundle, "-o")
    given = run(*words, tmp_path / "out", "--json", tmp_path / "one.nii.gz")
    assert given.code == 0, given.err
    kept(given.record)
    expected = np.load(bundle / "expected.npy")[0]
    assert (read_labels(output_file(tmp_path / "out")) == expected).mean() >= 0.9999
    for inputs, says in ((("one", "other"), "differ in size"), (("odd",), "multiples of 4x4x4")):
        with refused(BadInput, says, "--tile"):
            done(*words[1:], tmp_path / "none", *(tmp_path / f"{name}.nii.gz" for name in inputs))


def test_images_by_name_are_joined_and_masks_merged(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    names = ["artery", "vein"]
    joined = {"_target_": "scripts.my_transforms.ConcatImages", "keys_merge": names, "keys_out": "image"}
    changes: dict[str, Any] = {
        "network": {**NETWORK, "in_channels": 2, "out_channels": 4},
        "before": (*spaced(2.0, 2.5, 3.4, orientation="LPS"), joined, {**TO_ZERO, "keys": "image", "clip": True}),
        "after": (
            {**INVERT, "orig_keys": "artery"}, SIGMOID, THRESHOLD, {"_target_": "scripts.my_transforms.MergeClassesd"},
        ),
        "image_key": names,
        "channel_names": ["background", "artery", "vein", "ureter"],
    }  # fmt: skip
    _, images = two_channels(tmp_path)
    bundle = bundle_folder.write(tmp_path / "merged", **changes)
    bundle_folder.with_monai(images, bundle)
    expected = np.load(bundle / "expected.npy")[0]
    assert len(np.unique(expected)) == 4
    both_engines_agree(run, images, bundle, expected, tmp_path)
    model = read_model(converted_model(bundle, BUDGET))
    assert model.channels == ("artery", "vein")
    assert [label.name for label in model.labels] == ["background", "artery", "vein", "ureter"]


LABELS = {"spleen": 1, "background": 0}
CLICKS: dict[str, Any] = {
    "network": {
        "_target_": "DynUNet",
        "spatial_dims": 3,
        "in_channels": 3,
        "out_channels": 2,
        "kernel_size": [3, 3, 3],
        "strides": [1, 2, [2, 2, 1]],
        "upsample_kernel_size": [2, [2, 2, 1]],
        "filters": [8, 16, 16],
        "norm_name": "instance",
        "res_block": True,
    },
    "before": (
        spaced(1.0)[0],
        TO_ZERO,
        {
            "_target_": "scripts.transforms.OrientationGuidanceMultipleLabelDeepEditd",
            "ref_image": "@image_key",
            "label_names": LABELS,
        },
        {"_target_": "AddGuidanceFromPointsDeepEditd", "ref_image": "@image_key", "label_names": LABELS},
        {"_target_": "Resized", "spatial_size": [32, 24, 32], "mode": "area"},
        {"_target_": "ResizeGuidanceMultipleLabelDeepEditd", "guidance": "guidance", "ref_image": "@image_key"},
        {"_target_": "AddGuidanceSignalDeepEditd", "guidance": "guidance", "number_intensity_ch": 1},
    ),
    "channel_names": ["background", "spleen"],
}
"""The model zoo's DeepEdit, smaller."""


def test_a_bundle_for_clicks_runs_without_them(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    bundle = bundle_folder.write(tmp_path / "bundle", **CLICKS)
    _simple(bundle)
    values = np.random.default_rng(0).normal(60, 90, (12, 14, 11)).repeat(4, 0).repeat(4, 1)
    affine = np.diag([-1.5, 1.5, 4.0, 1.0])  # x from left to right, and more slices to make than there are
    image = write_nifti(tmp_path / "image.nii.gz", values.astype(np.int16), affine)
    bundle_folder.with_monai(image, bundle)
    expected = np.load(bundle / "expected.npy")[0]
    assert 0.05 < expected.mean() < 0.95
    both_engines_agree(run, image, bundle, expected, tmp_path)
    with refused(UsageError, "32x24x32"):
        done("infer", image, "-m", bundle, "-o", tmp_path / "none", "--tile", "16,16,16")


VISTA: dict[str, Any] = {
    "network": "$monai.networks.nets.vista3d132(in_channels=@input_channels, encoder_embed_dim=8)",
    "before": (
        {**spaced(2.5)[1], "pixdim": [2.5, 2.5, 2.5]},
        {**CROP, "margin": 3, "allow_smaller": True},
        {"_target_": "monai.apps.vista3d.transforms.VistaPreTransformd", "labels_dict": "@labels_dict"},
        {**TO_ZERO, "clip": True},
        spaced(1.0, orientation="LPS")[0],
    ),
    "after": (
        {"_target_": "monai.apps.vista3d.transforms.VistaPostTransformd"},
        NEAREST,
        {"_target_": "Lambdad", "func": "$lambda x: torch.nan_to_num(x, nan=255)"},
    ),
    "inferer": {
        "_target_": "scripts.inferer.Vista3dInferer",
        "roi_size": [48, 48, 32],
        "overlap": 0.3,
        "use_point_window": True,
    },
    "input_channels": 1,
    "labels_dict": "$dict()",
    "evaluator": {"hyper_kwargs": {"everything_labels": "$list(set([i+1 for i in range(9)]) - set([2, 4]))"}},
    "channel_names": ["background", "liver", "kidney", "spleen"],
}
"""The model zoo's VISTA3D, smaller; it turns images last."""


def test_vista3d_without_questions_finds_every_class(run, dataset, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    bundle, image = bundle_folder.write(tmp_path / "bundle", **VISTA), tmp_path / "image.nii.gz"
    path = bundle / "configs" / "inference.json"
    content = json.loads(path.read_text())
    content["inferer"] = {**VISTA["inferer"], "sw_batch_size": 1}
    path.write_text(json.dumps(content))
    nib.save(nib.load(dataset("ct-sample") / "example_ct_sm.nii.gz").slicer[30:83, 22:81, 3:], image)
    bundle_folder.with_monai(image, bundle)
    expected = np.load(bundle / "expected.npy")[0]
    assert {*np.unique(expected)} <= {0, 1, 3, 5, 6, 7, 8, 9} and len(np.unique(expected)) >= 4
    both_engines_agree(run, image, bundle, expected, tmp_path)
    model = read_model(converted_model(bundle, BUDGET))
    assert [(label.value, label.name) for label in model.labels][:4] == [
        (0, "background"), (1, "liver"), (3, "spleen"), (5, "class 5"),
    ]  # fmt: skip
    assert model.head is not None and model.features == 8


def _simple(bundle: Path) -> None:
    """Have a bundle see each image as one tile."""
    path = bundle / "configs" / "inference.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"inferer": {"_target_": "SimpleInferer"}}))


@pytest.mark.parametrize("after", [(SIGMOID, INVERT, THRESHOLD), (SIGMOID, INVERT, THRESHOLD, CHOICE)])
def test_masks_of_a_network_without_a_head_run_by_torch(tmp_path: Path, after: Any) -> None:
    bundle = bundle_folder.write(tmp_path / "bundle", before=(ZSCORE,), after=after, channel_names=["a", "b", "c"])
    path = write_nifti(tmp_path / "case.nii.gz", np.random.default_rng(0).normal(9, 3, (36, 28, 24)).astype(np.int16))
    labels = []
    for engine in ("openvino", "torch"):
        out = tmp_path / engine
        done("infer", path, "-m", bundle, "-o", out, "--engine", engine, "--split-classes")
        labels.append(np.stack([read_labels(out / f"case-{name}.nii.gz") for name in "abc"]))
    assert (labels[0] == labels[1]).mean() >= 0.9999


def test_masks_have_statistics_and_a_picture_and_no_dicom(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    after = (SIGMOID, INVERT, THRESHOLD)
    bundle = bundle_folder.write(tmp_path / "bundle", before=(ZSCORE,), after=after, channel_names=["a b", "c", "d"])
    values = np.random.default_rng(0).normal(100, 30, (36, 28, 24)).astype(np.int16)
    path = write_nifti(tmp_path / "case.nii.gz", values)
    words = ("apps.imaging", "infer", path, "-m", bundle)
    given = run(*words, "-o", tmp_path / "out", "--statistics", "--preview", "--json")
    assert given.code == 0, given.err
    kept(given.record)
    names = sorted(one.name for one in (tmp_path / "out").iterdir())
    masks = ["case-a_b.nii.gz", "case-c.nii.gz", "case-d.nii.gz"]
    assert names == sorted(
        [*masks, "case-statistics.csv", "case-statistics.json", "case.png", "run.json", "studies.csv"]
    )
    rows = json.loads((tmp_path / "out" / "case-statistics.json").read_text())["classes"]
    for row, name in zip(rows, masks, strict=True):
        mask = read_labels(tmp_path / "out" / name)
        assert mask.dtype == np.uint8 and row["voxels"] == mask.sum() > 0
        assert row["mean"] == pytest.approx(values[mask == 1].mean(), abs=0.01)
    assert "case" not in json.dumps(given.record["results"])
    for options in (("--output-type", "dicom-seg"), ("--remove-small", "1")):
        with refused(UsageError, "overlap"):
            done(*words[1:], "-o", tmp_path / "none", *options)


def test_split_classes_are_the_labels(tmp_path: Path) -> None:
    bundle = bundle_folder.write(tmp_path / "bundle", before=(ZSCORE,))
    path = write_nifti(tmp_path / "case.nii.gz", np.random.default_rng(0).normal(9, 3, (36, 28, 24)).astype(np.int16))
    for name, options in (("one", ()), ("split", ("--split-classes", "--roi-subset", "spleen"))):
        done("infer", path, "-m", bundle, "-o", tmp_path / name, *options)
    labels = read_labels(output_file(tmp_path / "one"))
    assert sorted(one.name for one in tmp_path.glob("split/*.nii.gz")) == ["case-spleen.nii.gz"]
    np.testing.assert_array_equal(read_labels(tmp_path / "split" / "case-spleen.nii.gz"), labels == 2)


def test_what_a_bundle_says_is_in_the_model_folder(tmp_path: Path) -> None:
    place = converted_model(bundle_folder.write(tmp_path, before=(*spaced(1.5, 2.0), RANGE)), BUDGET)
    model = read_model(place)
    assert [label.name for label in model.labels] == ["background", "liver", "spleen"] and model.channels == ("CT",)
    assert (model.convention, model.orientation, model.spacing, model.patch) == (
        "bundle", "RAS", (1.5, 2.0, 2.0), (32, 32, 24),
    )  # fmt: skip
    assert (model.inference.overlap, model.inference.importance, model.inference.restored) == (
        0.25, "gaussian", "softmax",
    )  # fmt: skip
    assert model.intensity == (
        {"op": "resample"}, {"op": "scale", "low": 50.0, "high": 300.0}, {"op": "clip", "low": -1.0, "high": 1.0},
    )  # fmt: skip
    assert converted_model(tmp_path, BUDGET) == place


def planted_weights(directory: Path, trace: Path) -> None:
    """A checkpoint that is a call."""
    import torch

    torch.save({"model": Planted(trace)}, directory / "models" / "model.pt")


COMMAND = "__import__('os').system('touch {}')"


@pytest.mark.parametrize("where", ["expression", "target", "transform", "inferer", "weights"])
def test_a_planted_command_does_not_run(run, tmp_path: Path, where: str) -> None:  # type: ignore[no-untyped-def]
    trace, folder = tmp_path / "trace", tmp_path / "bundle"
    call = COMMAND.format(trace)
    changes: dict[str, Any] = {
        "expression": {"network": {**NETWORK, "channels": f"${call}"}},
        "target": {"network": {**NETWORK, "_target_": "os.system"}},
        "transform": {"before": ({"_target_": "os.system", "command": f"touch {trace}"},)},
        "inferer": {"inferer": {"overlap": f"$[0.25, {call}][0]"}},
    }.get(where, {})
    bundle_folder.write(folder, weights=where == "weights", initialize=[f"${call}"], run=[f"${call}"], **changes)
    if where == "weights":
        planted_weights(folder, trace)
    else:
        (folder / "models" / "model.pt").write_bytes(b"never read")
    image = write_nifti(tmp_path / "image.nii.gz", np.ones((24, 24, 12), np.int16))
    given = run("apps.imaging", "infer", image, "-m", folder, "-o", tmp_path / "out", "--memory", "2GiB")
    assert given.code == 4 and "system" in given.err, given.err
    assert len(given.err.strip().splitlines()) == 1
    assert not trace.exists() and not list(tmp_path.glob("out/*.nii.gz"))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"network": {**NETWORK, "_target_": "scripts.nets.UNet"}}, "scripts.nets.UNet"),
        (
            {"network": {"_target_": "scripts.networks.unest.UNesT", "in_channels": 1, "out_channels": 4}},
            "code of the bundle's own, which is never run",
        ),
        ({"network": {**NETWORK, "_target_": "monai.networks.nets.UNETR"}}, "UNETR"),
        ({"network": {"_target_": "DiNTS", "dints_space": {"_target_": "os.system"}}}, "TopologyInstance"),
        ({"network": {**NETWORK, "spatial_dims": 2}}, "2 dimensions"),
        ({"network": {**NETWORK, "act": "eval"}}, "act.*'eval'"),
        ({"network": {**NETWORK, "channels": [10**9, 16, 32]}}, "channels"),
        ({"network": {**NETWORK, "hook": 1}}, "'hook'"),
        ({"before": ({"_target_": "CropForegroundd", "k_divisible": 16},)}, "CropForegroundd.*k_divisible"),
        ({"before": ({"_target_": "CropForegroundd"}, *spaced(1.0))}, "CropForegroundd"),
        ({"before": ({**spaced(1.0)[1], "mode": "nearest"},)}, "mode.*'nearest'"),
        ({"before": ({**RANGE, "b_max": "$torch.inf"},)}, "torch"),
        ({"before": ({**RANGE, "dither": 1},)}, "'dither'"),
        ({"after": (SOFTMAX, {"_target_": "AsDiscreted", "threshold": 0.5})}, "threshold of 0.5"),
        ({"after": (THRESHOLD, INVERT)}, "nearest_interp"),
        ({"after": (ARGMAX, {"_target_": "scripts.my_transforms.MergeClassesd"})}, "MergeClassesd.*only masks"),
        (
            {"before": ({"_target_": "scripts.my_transforms.ConcatImages", "keys_merge": ["a", "b"]},)},
            "2 images are joined.*1 channel",
        ),
        ({"after": (THRESHOLD, {"_target_": "Lambdad", "func": "$lambda x: exit()"})}, r"exit\(\)"),
        ({"after": (ARGMAX, {"_target_": "KeepLargestConnectedComponentd", "num_components": 2})}, "num_components"),
        ({"inferer": {"_target_": "SaliencyInferer"}}, "SaliencyInferer"),
        ({"inferer": {"roi_size": [32, 32, -1]}}, "roi_size"),
        ({"inferer": {"overlap": "@missing#0"}}, "@missing#0"),
        ({"inferer": {"overlap": "%other.json#overlap"}}, "%other.json"),
        ({"overlap": "@overlap"}, "circle"),
        ({"checkpointloader": {"load_path": "../model.pt"}}, "outside"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    bundle_folder.write(tmp_path, weights=False, **changes)
    (tmp_path / "models" / "model.pt").write_bytes(b"never read")
    with pytest.raises(BadInput, match=says):
        monai_bundle.read_plan(tmp_path)


def test_torchscript_is_refused_by_name(tmp_path: Path) -> None:
    import torch

    bundle_folder.write(tmp_path, weights=False)
    script = torch.jit.trace(torch.nn.ReLU(), torch.zeros(1))  # type: ignore[no-untyped-call]
    torch.jit.save(script, tmp_path / "models" / "model.ts")  # type: ignore[no-untyped-call]
    with pytest.raises(BadInput, match=r"model\.ts.*TorchScript"):
        converted_model(tmp_path, BUDGET)
    os.rename(tmp_path / "models" / "model.ts", tmp_path / "models" / "model.pt")
    with pytest.raises(BadInput, match=r"model\.pt.*TorchScript"):
        converted_model(tmp_path, BUDGET)


def test_yaml_says_the_same(tmp_path: Path) -> None:
    yaml = pytest.importorskip("yaml")
    bundle_folder.write(tmp_path, weights=False)
    (tmp_path / "models" / "model.pt").write_bytes(b"never read")
    expected, path = monai_bundle.read_plan(tmp_path), tmp_path / "configs" / "inference.json"
    (tmp_path / "configs" / "inference.yaml").write_text(yaml.safe_dump(json.loads(path.read_text())))
    path.unlink()
    assert monai_bundle.read_plan(tmp_path) == expected
    (tmp_path / "configs" / "inference.yaml").write_text("network_def: !!python/object/apply:os.system ['true']\n")
    with pytest.raises(BadInput, match="python/object"):
        monai_bundle.read_plan(tmp_path)


def test_a_ceiling_too_small_for_the_conversion_is_refused(tmp_path: Path) -> None:
    bundle_folder.write(tmp_path, seed=7)
    with pytest.raises(DoesNotFit) as refused:
        converted_model(tmp_path, MemoryBudget(256 * MIB))
    smallest = refused.value.smallest_feasible_bytes
    assert smallest is not None and price([]) <= smallest <= 512 * MIB
    assert (converted_model(tmp_path, MemoryBudget(smallest)) / "model.json").is_file()
