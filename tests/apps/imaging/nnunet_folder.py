"""nnU-Net v2 trained-model folders with random weights, as nnU-Net lays them out."""

import json
from collections.abc import Mapping
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


def plans(**changes: Any) -> dict[str, Any]:
    """``plans.json``; ``changes`` are of the configuration."""
    configuration = {
        "patch_size": [8, 16, 24],
        "spacing": [3.6, 0.8, 0.8],
        "normalization_schemes": ["ZScoreNormalization"],
        "use_mask_for_norm": [False],
        "resampling_fn_data": "resample_data_or_seg_to_shape",
        "resampling_fn_data_kwargs": {**OPTIONS, "order": 3},
        "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
        "resampling_fn_probabilities_kwargs": {**OPTIONS, "order": 1},
        "architecture": {
            "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
            "arch_kwargs": ARCHITECTURE,
            "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
        },
        **changes,
    }
    return {
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "configurations": {"3d_fullres": configuration},
    }


def network(seed: int, architecture: Mapping[str, Any] = ARCHITECTURE, classes: int = 3) -> Any:
    """nnU-Net's own network, built from its own library."""
    import torch
    from dynamic_network_architectures.architectures.unet import PlainConvUNet
    from torch import nn

    torch.manual_seed(seed)
    layers = {"conv_op": nn.Conv3d, "norm_op": nn.InstanceNorm3d, "nonlin": nn.LeakyReLU}
    return PlainConvUNet(input_channels=1, num_classes=classes, **{**architecture, **layers}, deep_supervision=False)


def write(directory: Path, *, seeds: tuple[int, ...] = (0,), extra: Any = None, **changes: Any) -> list[Any]:
    """A trained-model folder with one fold for each seed; returns the networks."""
    import torch

    directory.mkdir(parents=True, exist_ok=True)
    (directory / "plans.json").write_text(json.dumps(plans(**changes)))
    dataset = {"channel_names": {"0": "MRI"}, "labels": {"background": 0, "one": 1, "two": 2}, "file_ending": ".nii.gz"}
    (directory / "dataset.json").write_text(json.dumps(dataset))
    made = [network(seed).eval() for seed in seeds]
    for fold, each in enumerate(made):
        place = directory / f"fold_{fold}"
        place.mkdir(exist_ok=True)
        checkpoint = {
            "network_weights": each.state_dict(),
            "optimizer_state": {},
            "logging": {"dice": [np.float64(0.5), np.float32(0.25)]},
            "inference_allowed_mirroring_axes": (0, 1, 2),
            "init_args": {"configuration": "3d_fullres"},
            "trainer_name": "nnUNetTrainer",
            "planted": extra,
        }
        torch.save(checkpoint, place / "checkpoint_final.pth")
    return made
