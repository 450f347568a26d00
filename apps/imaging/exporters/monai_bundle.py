"""Write a model that ``imaging train`` made as a MONAI bundle: ``configs``, ``models/model.pt`` and a description.

``configuration`` and ``metadata`` are plain data; MONAI itself is not needed to write them.
"""

import os
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from apps.imaging.models.model_folder import CARD, ImagingModel
from apps.imaging.models.networks import nnunet, registry
from apps.imaging.volumes.intensity import Operation
from common import __version__
from common.errors import UsageError
from common.files import scratch_directory, write_json

IMAGE, PREDICTION = "image", "pred"
"""Keys of a bundle's dictionary."""
PARTS = ("docs", "models", "configs")
"""Folders of a bundle; without the last it is none."""


def check_exportable(model: ImagingModel, name: Path) -> None:
    """Refuse a model, which the user calls ``name``, that MONAI's transforms and networks cannot express.

    Raises
    ------
    UsageError
        An imported model, an ensemble, or a model whose channels are normalised differently, or otherwise than
        ``imaging train`` does it.
    """
    if model.network not in registry.NETWORKS or model.convention != "monai":
        raise UsageError(f"{name}: only models that imaging train made become a MONAI bundle; --as onnx takes any")
    if model.network in nnunet.NETWORKS:
        raise UsageError(f"{name}: {model.network} is nnU-Net's network and none of MONAI's; --as onnx takes it")
    if registry.RESHAPED in model.arguments:
        raise UsageError(f"{name}: its network was made smaller, which MONAI's arguments cannot say; --as onnx can")
    if "members" in model.arguments:
        raise UsageError(f"{name}: an ensemble; export each of its members, or --as onnx")
    if len(set(map(str, model.intensities))) > 1:
        raise UsageError(
            f"{name}: its channels are normalised differently, which a bundle's one list of transforms"
            " cannot express; --as onnx can"
        )
    list(_intensities(model.intensity, name))


def configuration(model: ImagingModel) -> dict[str, Any]:
    """``configs/inference.json``: MONAI's network, transforms and inferer with the model's own numbers."""
    target, arguments = registry.monai_call(model.network, model.arguments)
    outputs = {"output_dir": "@output_dir", "output_postfix": "seg", "output_dtype": "$np.uint8", "resample": False}
    back = {"orig_keys": IMAGE, "transform": "@preprocessing", "nearest_interp": False, "to_tensor": True}
    return {
        "imports": ["$import glob", "$import os", "$import numpy as np"],
        "bundle_root": ".",
        "dataset_dir": "/path/to/images",
        "output_dir": "$@bundle_root + '/eval'",
        "datalist": "$sorted(glob.glob(os.path.join(@dataset_dir, '*.nii.gz')))",
        "device": "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
        "network_def": {"_target_": target, **arguments},
        "network": "$@network_def.to(@device)",
        "preprocessing": _composed(IMAGE, [*_before(model), {"_target_": "EnsureTyped"}]),
        "dataset": {
            "_target_": "Dataset",
            "data": f"$[{{'{IMAGE}': one}} for one in @datalist]",
            "transform": "@preprocessing",
        },
        "dataloader": {"_target_": "DataLoader", "dataset": "@dataset", "batch_size": 1, "num_workers": 0},
        "inferer": {
            "_target_": "SlidingWindowInferer",
            "roi_size": list(model.patch),
            "sw_batch_size": 1,
            "overlap": model.inference.overlap,
            "mode": model.inference.importance,
        },
        "postprocessing": _composed(
            PREDICTION,
            [
                {"_target_": "Invertd", **back},
                {"_target_": "AsDiscreted", "argmax": True},
                {"_target_": "SaveImaged", **outputs},
            ],
        ),
        "handlers": [
            {
                "_target_": "CheckpointLoader",
                "load_path": "$@bundle_root + '/models/model.pt'",
                "load_dict": {"model": "@network"},
            }
        ],
        "evaluator": {
            "_target_": "SupervisedEvaluator",
            "device": "@device",
            "val_data_loader": "@dataloader",
            "network": "@network",
            "inferer": "@inferer",
            "postprocessing": "@postprocessing",
            "val_handlers": "@handlers",
        },
        "run": ["$@evaluator.run()"],
    }


def metadata(model: ImagingModel) -> dict[str, Any]:
    """``configs/metadata.json``: versions, and what the network expects and answers."""
    names = [label.name for label in model.labels]
    common = {"type": "image", "spatial_shape": list(model.patch), "dtype": "float32", "is_patch_data": True}
    return {
        "schema": "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/meta_schema_20240725.json",
        "version": "0.1.0",
        "changelog": {"0.1.0": f"exported by peakline {__version__}"},
        "monai_version": version("monai"),
        "pytorch_version": version("torch").partition("+")[0],
        "numpy_version": version("numpy"),
        "required_packages_version": {"nibabel": version("nibabel")},
        "task": f"Segmentation of {', '.join(names[1:])}",
        "description": "For research only. Not a medical device; not for diagnosis or treatment. See docs/README.md.",
        "authors": "not stated",
        "copyright": "not stated",
        "network_data_format": {
            "inputs": {
                IMAGE: common
                | {
                    "format": "magnitude",
                    "modality": model.channels[0],
                    "num_channels": len(model.channels),
                    "value_range": [],
                    "channel_def": {str(index): name for index, name in enumerate(model.channels)},
                }
            },
            "outputs": {
                PREDICTION: common
                | {
                    "format": "segmentation",
                    "num_channels": len(names),
                    "value_range": [0, len(names) - 1],
                    "channel_def": {str(index): name for index, name in enumerate(names)},
                }
            },
        },
    }


def write_bundle(model: ImagingModel, directory: Path) -> None:
    """Write the folder of the bundle.

    Parameters
    ----------
    model
        As ``check_exportable`` takes it.
    directory
        The folder, new or empty; its parts appear once they are complete.
    """
    import torch

    from apps.imaging.models.model_folder import torch_network

    network = torch_network(model.directory, "logits")
    directory.mkdir(parents=True, exist_ok=True)
    with scratch_directory(directory, "bundle") as draft:
        for folder in PARTS:
            (draft / folder).mkdir()
        write_json(draft / "configs" / "inference.json", configuration(model))
        write_json(draft / "configs" / "metadata.json", metadata(model))
        (draft / "docs" / "README.md").write_bytes((model.directory / CARD).read_bytes())
        torch.save(network.state_dict(), draft / "models" / "model.pt")
        for folder in PARTS:
            os.replace(draft / folder, directory / folder)


def _composed(key: str, transforms: list[dict[str, Any]]) -> dict[str, Any]:
    return {"_target_": "Compose", "transforms": [{**one, "keys": key} for one in transforms]}


def _before(model: ImagingModel) -> Iterator[dict[str, Any]]:
    """Transforms from the file to the network, in the model's order: intensities, then its grid."""
    yield {"_target_": "LoadImaged"}
    yield {"_target_": "EnsureChannelFirstd"}
    yield {"_target_": "Orientationd", "axcodes": model.orientation}
    yield from _intensities(model.intensity, model.directory)
    yield {"_target_": "Spacingd", "pixdim": list(model.spacing), "mode": "bilinear"}


def _intensities(operations: Sequence[Operation], name: Path) -> Iterator[dict[str, Any]]:
    """MONAI's transform of what ``imaging train`` chooses for a channel; raises as ``check_exportable``."""
    match list(operations):
        case []:
            return
        case [{"op": "zscore", **others}] if not others:
            yield {"_target_": "NormalizeIntensityd", "channel_wise": True}
        case [{"op": "clip", **window}, {"op": "scale", "low": low, "high": high}] if window == {
            "low": low,
            "high": high,
        }:
            # MONAI clips afterwards, peakline before, to the same window.
            sides = {"a_min": low, "a_max": high, "b_min": 0.0, "b_max": 1.0, "clip": True}
            yield {"_target_": "ScaleIntensityRanged", **sides}
        case [{"op": "range", "low": low, "high": high, **others}] if not others:
            yield {"_target_": "ScaleIntensityd", "minv": low, "maxv": high, "channel_wise": True}
        case _:
            raise UsageError(f"{name}: normalised otherwise than by imaging train; --as onnx takes any model")
