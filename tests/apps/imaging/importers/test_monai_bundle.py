"""MONAI bundles: the labels that MONAI itself gives, and nothing of theirs runs."""

import json
import os
import subprocess
import sys
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
from common.errors import BadInput, DoesNotFit
from common.memory.process.budget import GIB, MIB, MemoryBudget
from tests.apps.imaging import bundle_folder
from tests.apps.imaging.bundle_folder import ARGMAX, INVERT, NETWORK, RANGE, SOFTMAX, THRESHOLD, spaced
from tests.apps.imaging.helpers import Planted, output_file, read_labels, write_nifti
from tests.machine import patience

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
"""The four ways back onto the image's grid, every kind of intensity, and orders and sizes that are unusual."""


@pytest.fixture(scope="session")
def compared(dataset: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A part of a real CT and a folder of bundles, each with the labels that MONAI gives it in a process of its own."""
    folder = tmp_path_factory.mktemp("bundles")
    whole, image = nib.load(dataset("ct-sample") / "example_ct_sm.nii.gz"), folder / "image.nii.gz"
    nib.save(whole.slicer[24:88, 24:80], image)
    bundles = [bundle_folder.write(folder / name, **changes) for name, changes in CASES.items()]
    command = [sys.executable, "-W", "ignore", "-m", "tests.apps.imaging.bundle_folder", image, *bundles]
    subprocess.run(list(map(str, command)), check=True, capture_output=True, timeout=patience(300))
    return image, folder


@pytest.mark.parametrize("case", CASES)
def test_labels_are_those_of_monai(run, compared: tuple[Path, Path], case: str) -> None:  # type: ignore[no-untyped-def]
    image, folder = compared
    out = folder / f"out-{case}"
    done = run("apps.imaging", "infer", image, "-m", folder / case, "-o", out, "--memory", "2GiB", "--threads", "2")
    assert done.code == 0, done.err
    found, expected = read_labels(output_file(out)), np.load(folder / case / "expected.npy")
    assert len(np.unique(expected)) >= 3
    assert (found == expected).mean() >= 0.9999


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
}


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_of_the_table_gives_its_logits(tmp_path: Path, name: str) -> None:
    import torch

    from apps.imaging.models.networks import monai_bundle

    network = {"_target_": name, "spatial_dims": 3, "in_channels": 1, "out_channels": 3, **DESCRIPTIONS[name]}
    place = tmp_path / "converted"
    place.mkdir()
    convert_bundle(bundle_folder.write(tmp_path, network=network), place)
    model = read_model(place)
    x, y, z = monai_bundle.divisors(name, model.arguments)
    tile = np.random.default_rng(0).standard_normal((1, 1, max(8, x), max(8, y), 2 * z)).astype(np.float32)
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
    done = run("apps.imaging", "infer", image, "-m", folder, "-o", tmp_path / "out", "--memory", "2GiB")
    assert done.code == 4 and "system" in done.err, done.err
    assert len(done.err.strip().splitlines()) == 1
    assert not trace.exists() and not list(tmp_path.glob("out/*.nii.gz"))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"network": {**NETWORK, "_target_": "scripts.nets.UNet"}}, "scripts.nets.UNet"),
        ({"network": {**NETWORK, "_target_": "monai.networks.nets.SwinUNETR"}}, "SwinUNETR"),
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
