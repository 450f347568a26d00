"""A configuration of nnU-Net's ``plans.json``: the network, the resampling and the labels, in our model folder's terms.

Plans before version 2.3.1 have no ``architecture``; nnU-Net makes one of their other fields, and so do we. A network of
2D convolutions is one of 3D convolutions that are one voxel deep.
"""

from collections.abc import Mapping
from typing import Any

from apps.imaging.models.networks.nnunet import NETWORKS
from common.errors import BadInput

SPLINE, LINEAR, NONE = "resample_data_or_seg_to_shape", "resample_torch_fornnunet", "no_resampling_hack"
"""nnU-Net's functions for resampling."""
DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    SPLINE: {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": False},
    LINEAR: {"is_seg": False, "force_separate_z": None, "memefficient_seg_resampling": False},
    NONE: {},
}
"""Arguments that are read, with their defaults."""
MOST_STAGE_LABELS = 255
"""Most labels of a previous stage: they are kept as bytes."""
LAYERS = {"Conv2d": "Conv3d", "InstanceNorm2d": "InstanceNorm3d", "BatchNorm2d": "BatchNorm3d"}


def configuration_of(plans: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A configuration with all that it inherits.

    Raises
    ------
    BadInput
        If configurations inherit from each other in a circle.
    """
    seen, inherited = [name], dict(plans["configurations"][name])
    while parent := inherited.pop("inherits_from", None):
        if parent in seen:
            raise BadInput(f"the configurations {', '.join(seen)} inherit from each other")
        seen.append(parent)
        inherited = {**plans["configurations"][parent], **inherited}
    return inherited


def architecture(configuration: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The network's name in our table and its arguments, for three dimensions and without the channels.

    Raises
    ------
    BadInput
        A network that is not nnU-Net's.
    """
    described = configuration.get("architecture") or _rebuilt(configuration)
    named = str(described["network_class_name"])
    name = named.rpartition(".")[2].lower()
    if not named.startswith("dynamic_network_architectures.") or name not in NETWORKS:
        raise BadInput(f"network {named!r}; only {', '.join(NETWORKS.values())} are read")
    arguments, flat = dict(described["arch_kwargs"]), len(configuration["patch_size"]) == 2
    for key in ("kernel_sizes", "strides"):
        arguments[key] = [_triple(size, flat=flat) for size in arguments[key]]
    if flat:
        for key in ("conv_op", "norm_op"):
            module, _, layer = str(arguments[key]).rpartition(".")
            arguments[key] = f"{module}.{LAYERS.get(layer, layer)}"
    return name, arguments


def _triple(size: Any, *, flat: bool) -> list[Any]:
    sides = list(size) if isinstance(size, list) else [size] * (2 if flat else 3)
    return [1, *sides] if flat else sides


def _rebuilt(configuration: Mapping[str, Any]) -> dict[str, Any]:
    """``architecture`` of a configuration before nnU-Net 2.3.1."""
    stages, flat = configuration["n_conv_per_stage_encoder"], len(configuration["patch_size"]) == 2
    first, most = configuration["UNet_base_num_features"], configuration["unet_max_num_features"]
    name = configuration["UNet_class_name"]
    dimensions = "2d" if flat else "3d"
    return {
        "network_class_name": f"dynamic_network_architectures.architectures.unet.{name}",
        "arch_kwargs": {
            "n_stages": len(stages),
            "features_per_stage": [min(first * 2**stage, most) for stage in range(len(stages))],
            "conv_op": f"torch.nn.modules.conv.Conv{dimensions}",
            "kernel_sizes": configuration["conv_kernel_sizes"],
            "strides": configuration["pool_op_kernel_sizes"],
            "n_conv_per_stage" if name == "PlainConvUNet" else "n_blocks_per_stage": stages,
            "n_conv_per_stage_decoder": configuration["n_conv_per_stage_decoder"],
            "conv_bias": True,
            "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{dimensions}",
            "norm_op_kwargs": {"eps": 1e-05, "affine": True},
            "dropout_op": None,
            "dropout_op_kwargs": None,
            "nonlin": "torch.nn.LeakyReLU",
            "nonlin_kwargs": {"inplace": True},
        },
    }


def resampling(configuration: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of our ``inference`` about resampling; ``resampled`` is False if images keep their grid.

    Raises
    ------
    BadInput
        A function or argument that is not imitated.
    """
    chosen: dict[str, tuple[str, dict[str, Any]]] = {}
    for key in ("data", "probabilities"):
        function, options = configuration[f"resampling_fn_{key}"], dict(configuration[f"resampling_fn_{key}_kwargs"])
        if function not in DEFAULTS:
            raise BadInput(f"resampling of {key} by {function}; only {', '.join(DEFAULTS)} are read")
        defaults = DEFAULTS[function]
        unread = [
            name for name in options if name not in defaults or (name.startswith(("is", "order_z")) and options[name])
        ]
        allowed = (1, 3) if key == "data" else (1,)
        arguments = {**defaults, **options}
        if unread or (function == SPLINE and arguments["order"] not in allowed):
            raise BadInput(f"resampling of {key} by {function} with {options} is not read")
        chosen[key] = function, arguments
    (images, first), (predictions, second) = chosen.values()
    if (images == NONE) != (predictions == NONE):
        raise BadInput(f"images are resampled by {images} and predictions by {predictions}")
    return {
        "resampled": images != NONE,
        "interpolation": "cubic" if first.get("order") == 3 else "linear",
        "separate": [first.get("force_separate_z"), second.get("force_separate_z")],
    }


def stage_labels(configuration: Mapping[str, Any], dataset: Mapping[str, Any]) -> tuple[int, ...]:
    """Labels of a cascade's previous stage that are channels of its second one.

    Raises
    ------
    BadInput
        Labels that are resampled in a way that is not imitated, or a normalisation that depends on them.
    """
    function, options = configuration["resampling_fn_seg"], dict(configuration["resampling_fn_seg_kwargs"])
    images = {**DEFAULTS.get(function, {}), **dict(configuration["resampling_fn_data_kwargs"])}
    plain = function == SPLINE and options.get("order") == 1 and options.get("order_z", 0) == 0
    same = options.get("force_separate_z", False) == images.get("force_separate_z")
    if function != NONE and not (plain and same):
        raise BadInput(f"labels of the previous stage resampled by {function} with {options} are not read")
    if any(configuration["use_mask_for_norm"]):
        raise BadInput("use_mask_for_norm in the second stage of a cascade is not read")
    values = [value for name, value in dataset["labels"].items() if name != "ignore"]
    flat = {one for value in values for one in (value if isinstance(value, list) else [value])}
    if len(flat) > MOST_STAGE_LABELS:
        raise BadInput(f"{len(flat)} labels of a previous stage")
    return tuple(sorted(flat - {0}))


def decision(dataset: Mapping[str, Any]) -> tuple[dict[str, int], dict[str, Any], int]:
    """Labels of a data set by name, fields of our ``inference`` about them, and the number of output channels.

    A label has the name of the last region that writes it. That of a region inside which other regions are is the rest
    of the region.

    Raises
    ------
    BadInput
        If ``regions_class_order`` is missing or has another length.
    """
    described = {name: value for name, value in dataset["labels"].items() if name != "ignore"}
    regions = {
        name: value for name, value in described.items() if set(value if isinstance(value, list) else [value]) != {0}
    }
    if not any(isinstance(value, list) and len(value) > 1 for value in described.values()):
        single = {name: value[0] if isinstance(value, list) else value for name, value in described.items()}
        if not all(isinstance(value, int) for value in single.values()):
            raise BadInput("labels that are no whole numbers")
        return dict(sorted(single.items(), key=lambda item: item[1])), {}, len(single)
    order = dataset.get("regions_class_order")
    if not isinstance(order, list) or len(order) != len(regions):
        raise BadInput(f"regions_class_order {order!r} does not have a label for each of {', '.join(regions)}")
    names = {value: name for name, value in zip(regions, order, strict=True)}
    labels = {"background": 0, **{names[value]: value for value in sorted(set(order))}}
    return labels, {"decision": "regions", "regions": order}, len(order)
