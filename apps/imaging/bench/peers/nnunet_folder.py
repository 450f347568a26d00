"""Writes nnU-Net v2 trained-model folders with random weights, for tests and for measuring memory and time."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

ARCHITECTURE = {
    "n_stages": 3,
    "features_per_stage": [4, 8, 12],
    "conv_op": "torch.nn.modules.conv.Conv3d",
    "kernel_sizes": [[1, 3, 3], [3, 3, 3], [3, 3, 3]],
    "strides": [[1, 1, 1], [1, 2, 2], [2, 2, 2]],
    "n_conv_per_stage": [2, 2, 2],
    "n_conv_per_stage_decoder": [2, 2],
    "conv_bias": True,
    "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
    "norm_op_kwargs": {"eps": 1e-5, "affine": True},
    "dropout_op": None,
    "dropout_op_kwargs": None,
    "nonlin": "torch.nn.LeakyReLU",
    "nonlin_kwargs": {"inplace": True},
}
FLAT = {
    "conv_op": "torch.nn.modules.conv.Conv2d",
    "norm_op": "torch.nn.modules.instancenorm.InstanceNorm2d",
    "kernel_sizes": [[3, 3]] * 3,
    "strides": [[1, 1], [2, 2], [2, 2]],
}
"""Arguments of a 2D network that differ."""
OPTIONS = {"is_seg": False, "order_z": 0, "force_separate_z": None}

INTENSITIES = {"mean": 300.0, "std": 200.0, "percentile_00_5": 20.0, "percentile_99_5": 800.0}
"""Intensity statistics of each channel; z-score normalisation does not use them."""


def plans(
    *,
    architecture: Mapping[str, Any] = ARCHITECTURE,
    network: str = "PlainConvUNet",
    channels: int = 1,
    old: bool = False,
    transpose: Sequence[int] = (0, 1, 2),
    name: str = "3d_fullres",
    **changes: Any,
) -> dict[str, Any]:
    """Return the content of ``plans.json``; ``changes`` replace fields of the configuration ``name``.

    Parameters
    ----------
    old
        True for the fields of nnU-Net before 2.3.1, which has no ``architecture``.
    """
    per_stage = "n_conv_per_stage" if network == "PlainConvUNet" else "n_blocks_per_stage"
    described: dict[str, Any] = {
        "architecture": {
            "network_class_name": f"dynamic_network_architectures.architectures.unet.{network}",
            "arch_kwargs": dict(architecture),
            "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
        }
    }
    if old:
        described = {
            "UNet_class_name": network,
            "UNet_base_num_features": architecture["features_per_stage"][0],
            "unet_max_num_features": architecture["features_per_stage"][-1],
            "n_conv_per_stage_encoder": architecture[per_stage],
            "n_conv_per_stage_decoder": architecture["n_conv_per_stage_decoder"],
            "num_pool_per_axis": [2] * len(architecture["strides"][0]),
            "pool_op_kernel_sizes": architecture["strides"],
            "conv_kernel_sizes": architecture["kernel_sizes"],
        }
    configuration = {
        "data_identifier": f"nnUNetPlans_{name}",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": [8, 16, 24],
        "spacing": [3.6, 0.8, 0.8],
        "normalization_schemes": ["ZScoreNormalization"] * channels,
        "use_mask_for_norm": [False] * channels,
        "resampling_fn_data": "resample_data_or_seg_to_shape",
        "resampling_fn_data_kwargs": {**OPTIONS, "order": 3},
        "resampling_fn_seg": "resample_data_or_seg_to_shape",
        "resampling_fn_seg_kwargs": {**OPTIONS, "is_seg": True, "order": 1},
        "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
        "resampling_fn_probabilities_kwargs": {**OPTIONS, "order": 1},
        **described,
        **changes,
    }
    return {
        "dataset_name": "Dataset999_random",
        "plans_name": "nnUNetPlans",
        "image_reader_writer": "SimpleITKIO",
        "label_manager": "LabelManager",
        "transpose_forward": list(transpose),
        "transpose_backward": [list(transpose).index(axis) for axis in range(3)],
        "foreground_intensity_properties_per_channel": {str(number): INTENSITIES for number in range(channels)},
        "configurations": {name: configuration},
    }


def build(
    seed: int,
    architecture: Mapping[str, Any] = ARCHITECTURE,
    *,
    classes: int = 3,
    channels: int = 1,
    kind: str = "PlainConvUNet",
    patch: Sequence[int] = (),
    smooth: int = 0,
    background: float = 0.0,
) -> Any:
    """Build nnU-Net's own network with its own library.

    Parameters
    ----------
    classes
        Output channels.
    patch
        Shape of noise by which the last layer is scaled so that every class occurs; it stays as it is without one.
    smooth
        The finest levels in which nothing is passed around the coarser ones and nothing moves sideways, so that labels
        have parts of 2^smooth voxels along each axis, as a trained network's are wide.
    background
        What the first class has more than the others; their deviation is 3.
    """
    import torch
    from dynamic_network_architectures.architectures import unet
    from torch import nn

    torch.manual_seed(seed)
    layers = {key: getattr(nn, str(architecture[key]).rpartition(".")[2]) for key in ("conv_op", "norm_op", "nonlin")}
    made = getattr(unet, kind)(
        input_channels=channels, num_classes=classes, **{**architecture, **layers}, deep_supervision=False
    )
    if smooth:
        _smooth(made, smooth)
    if patch:
        _scale(made, torch.randn(2, channels, *patch))
        with torch.no_grad():
            made.decoder.seg_layers[-1].bias[0] += background
    return made


def _smooth(network: Any, levels: int) -> None:
    """Let each voxel of the level below the finest ones give all of its finer voxels the same values.

    Weights become zero, and all multiplications are still done.
    """
    import torch

    with torch.no_grad():
        for stage, upwards in zip(network.decoder.stages[-levels:], network.decoder.transpconvs[-levels:], strict=True):
            upwards.weight.copy_(upwards.weight.mean((2, 3, 4), keepdim=True).expand_as(upwards.weight))
            skipped = stage.convs[0].conv.weight
            skipped[:, skipped.shape[1] // 2 :] = 0
            for each in stage.convs:
                middle = each.conv.weight[:, :, 1, 1, 1].clone()
                each.conv.weight.zero_()
                each.conv.weight[:, :, 1, 1, 1] = middle


def _scale(network: Any, noise: Any) -> None:
    """Give batch normalisation its statistics, and every class the same mean and a deviation of 3."""
    import torch

    head = network.decoder.seg_layers[-1]
    with torch.no_grad():
        for _ in range(3):
            network.train()(noise)
        values, rest = network.eval()(noise), (0, *range(2, noise.ndim))
        head.weight.mul_((3 / values.std(rest)).view(-1, *[1] * (noise.ndim - 1)))
        head.bias.sub_(network(noise).mean(rest))


def write(
    directory: Path,
    *,
    seeds: Sequence[int] = (0,),
    extra: Any = None,
    architecture: Mapping[str, Any] = MappingProxyType({}),
    classes: int = 3,
    channels: int = 1,
    network: str = "PlainConvUNet",
    configuration: str = "3d_fullres",
    trainer: str = "nnUNetTrainer",
    checkpoint: str = "checkpoint_final.pth",
    dataset: Mapping[str, Any] | None = None,
    flat: bool = False,
    norm: str = "",
    scaled: bool | Sequence[int] = False,
    masks: int = 0,
    smooth: int = 0,
    background: float = 0.0,
    **changes: Any,
) -> list[Any]:
    """Write a trained-model folder with one fold per seed, and return the networks.

    Parameters
    ----------
    extra
        An additional value in the checkpoints, which a loader has to refuse or ignore.
    architecture
        Changes of ``ARCHITECTURE``.
    dataset
        Changes of ``dataset.json``; with ``regions_class_order`` the network has an output for each region.
    flat
        True for a network of 2D convolutions.
    norm
        Normalisation of the networks, whatever the plan says.
    scaled
        True to scale the last layer so that every class occurs, by noise of the shape of a patch or of this one.
    masks
        Further channels of the networks: labels of a previous stage.
    smooth, background
        As for ``build``.
    """
    import torch

    directory.mkdir(parents=True, exist_ok=True)
    architecture = {**ARCHITECTURE, **(FLAT if flat else {}), **architecture}
    if network == "ResidualEncoderUNet":
        architecture.pop("n_conv_per_stage", None)
    described = plans(architecture=architecture, network=network, channels=channels, name=configuration, **changes)
    (directory / "plans.json").write_text(json.dumps(described))
    content = {
        "channel_names": {str(number): f"MRI {number}" for number in range(channels)},
        "labels": {"background": 0, **{f"class {number}": number for number in range(1, classes)}},
        "file_ending": ".nii.gz",
        **(dataset or {}),
    }
    (directory / "dataset.json").write_text(json.dumps(content))
    outputs = len(content.get("regions_class_order") or [name for name in content["labels"] if name != "ignore"])
    patch = described["configurations"][configuration]["patch_size"] if scaled is True else scaled or ()
    built = {**architecture, **({"norm_op": norm} if norm else {})}
    inputs = channels + masks
    made = [
        build(
            seed,
            built,
            classes=outputs,
            channels=inputs,
            kind=network,
            patch=patch,
            smooth=smooth,
            background=background,
        ).eval()
        for seed in seeds
    ]
    for fold, each in enumerate(made):
        folder = directory / f"fold_{fold}"
        folder.mkdir(exist_ok=True)
        axes = tuple(range(2 if flat else 3))
        saved = {
            "network_weights": each.state_dict(),
            "optimizer_state": {},
            "logging": {"dice": [np.float64(0.5), np.float32(0.25)]},
            "inference_allowed_mirroring_axes": axes,
            "init_args": {"configuration": configuration},
            "trainer_name": trainer,
            "planted": extra,
        }
        torch.save(saved, folder / checkpoint)
    return made
