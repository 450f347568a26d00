"""Writes nnU-Net v2 trained-model folders with random weights, for tests and for measuring memory and time."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
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
OPTIONS = {"is_seg": False, "order_z": 0, "force_separate_z": None}

INTENSITIES = {"mean": 0.0, "std": 1.0, "percentile_00_5": -1.0, "percentile_99_5": 1.0}
"""Intensity statistics of each channel; z-score normalisation does not use them."""


def plans(*, architecture: Mapping[str, Any] = ARCHITECTURE, channels: int = 1, **changes: Any) -> dict[str, Any]:
    """Return the content of ``plans.json``; ``changes`` replace fields of the configuration."""
    configuration = {
        "data_identifier": "nnUNetPlans_3d_fullres",
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
        "architecture": {
            "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
            "arch_kwargs": dict(architecture),
            "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
        },
        **changes,
    }
    return {
        "dataset_name": "Dataset999_random",
        "plans_name": "nnUNetPlans",
        "image_reader_writer": "SimpleITKIO",
        "label_manager": "LabelManager",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "foreground_intensity_properties_per_channel": {str(number): INTENSITIES for number in range(channels)},
        "configurations": {"3d_fullres": configuration},
    }


def network(seed: int, architecture: Mapping[str, Any] = ARCHITECTURE, *, classes: int = 3, channels: int = 1) -> Any:
    """Build nnU-Net's own network with its own library."""
    import torch
    from dynamic_network_architectures.architectures.unet import PlainConvUNet
    from torch import nn

    torch.manual_seed(seed)
    layers = {"conv_op": nn.Conv3d, "norm_op": nn.InstanceNorm3d, "nonlin": nn.LeakyReLU}
    return PlainConvUNet(
        input_channels=channels, num_classes=classes, **{**architecture, **layers}, deep_supervision=False
    )


def write(
    directory: Path,
    *,
    seeds: Sequence[int] = (0,),
    extra: Any = None,
    architecture: Mapping[str, Any] = ARCHITECTURE,
    classes: int = 3,
    channels: int = 1,
    **changes: Any,
) -> list[Any]:
    """Write a trained-model folder with one fold per seed, and return the networks.

    Parameters
    ----------
    extra
        An additional value in the checkpoints, which a loader has to refuse or ignore.
    """
    import torch

    directory.mkdir(parents=True, exist_ok=True)
    described = plans(architecture=architecture, channels=channels, **changes)
    (directory / "plans.json").write_text(json.dumps(described))
    dataset = {
        "channel_names": {str(number): f"MRI {number}" for number in range(channels)},
        "labels": {"background": 0, **{f"class {number}": number for number in range(1, classes)}},
        "file_ending": ".nii.gz",
    }
    (directory / "dataset.json").write_text(json.dumps(dataset))
    made = [network(seed, architecture, classes=classes, channels=channels).eval() for seed in seeds]
    for fold, each in enumerate(made):
        folder = directory / f"fold_{fold}"
        folder.mkdir(exist_ok=True)
        checkpoint = {
            "network_weights": each.state_dict(),
            "optimizer_state": {},
            "logging": {"dice": [np.float64(0.5), np.float32(0.25)]},
            "inference_allowed_mirroring_axes": (0, 1, 2),
            "init_args": {"configuration": "3d_fullres"},
            "trainer_name": "nnUNetTrainer",
            "planted": extra,
        }
        torch.save(checkpoint, folder / "checkpoint_final.pth")
    return made
