"""MONAI bundles with random weights, laid out as those of MONAI's model zoo, and MONAI's own inference."""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

NETWORK: Mapping[str, Any] = {
    "_target_": "UNet",
    "spatial_dims": 3,
    "in_channels": 1,
    "out_channels": 3,
    "channels": [8, 16, 32],
    "strides": [2, 2],
    "num_res_units": 1,
    "norm": "batch",
}
RANGE = {"_target_": "ScaleIntensityRanged", "a_min": -200, "a_max": 300, "b_min": -1, "b_max": 1, "clip": True}
LOAD = ({"_target_": "LoadImaged"}, {"_target_": "EnsureChannelFirstd"})
SOFTMAX = {"_target_": "Activationsd", "softmax": True}
SIGMOID = {"_target_": "Activationsd", "sigmoid": True}
THRESHOLD = {"_target_": "AsDiscreted", "threshold": 0.5}
ARGMAX = {"_target_": "AsDiscreted", "argmax": True}
INVERT = {"_target_": "Invertd", "transform": "@preprocessing", "orig_keys": "@image_key", "nearest_interp": False}


def spaced(*pixdim: float, orientation: str = "RAS") -> list[dict[str, Any]]:
    """Transforms that bring an image onto a grid."""
    turned = {"_target_": "Orientationd", "axcodes": orientation}
    return [turned, {"_target_": "Spacingd", "pixdim": list(pixdim), "mode": "bilinear"}]


def configuration(
    *,
    network: Mapping[str, Any] | str = NETWORK,
    before: Sequence[Mapping[str, Any]] = (*spaced(2.0, 2.5, 3.4), RANGE),
    after: Sequence[Mapping[str, Any]] = (SOFTMAX, INVERT, ARGMAX),
    inferer: Mapping[str, Any] | None = None,
    **further: Any,
) -> dict[str, Any]:
    """``inference.json``."""

    def keyed(key: str, transforms: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        return {
            "_target_": "Compose",
            "transforms": [one if "ref_image" in one else {"keys": key, **one} for one in transforms],
        }

    device = "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')"
    return {
        "imports": ["$import glob", "$import os"],
        "bundle_root": ".",
        "image_key": "image",
        "overlap": 0.25,
        "modelname": "$'model.pt' if @overlap < 0.5 else 'another.pt'",
        "device": device,
        "network_def": network,
        "network": "$@network_def.to(@device)",
        "preprocessing": keyed("@image_key", [*LOAD, *before, {"_target_": "EnsureTyped", "device": "@device"}]),
        "inferer": {
            "_target_": "SlidingWindowInferer",
            "roi_size": [32, 32, 24],
            "sw_batch_size": 2,
            "overlap": "@overlap",
            "mode": "gaussian",
            "device": device,
            **(inferer or {}),
        },
        "postprocessing": keyed("pred", [*after, {"_target_": "SaveImaged", "output_dir": "$@bundle_root + '/eval'"}]),
        "checkpointloader": {
            "_target_": "CheckpointLoader",
            "load_path": "$@bundle_root + '/models/' + @modelname",
            "load_dict": {"model": "@network"},
        },
        "initialize": ["$monai.utils.set_determinism(seed=123)", "$@checkpointloader(@evaluator)"],
        "run": ["$@evaluator.run()"],
        **further,
    }


def write(
    directory: Path,
    *,
    seed: int = 0,
    weights: bool = True,
    channel_names: Sequence[str] | None = None,
    codes: Mapping[str, Any] | None = None,
    **changes: Any,
) -> Path:
    """A bundle; ``changes`` are of the configuration, and ``codes`` the result of DiNTS's search."""
    content = configuration(**changes)
    for folder in ("configs", "models"):
        (directory / folder).mkdir(parents=True, exist_ok=True)
    (directory / "configs" / "inference.json").write_text(json.dumps(content))
    described = content["network_def"]
    if isinstance(described, str):  # a call
        described = {"_target_": described, "out_channels": len(channel_names or ())}
    outputs = described.get("out_channels", described.get("num_classes", 2))
    names = (["background", "liver", "spleen", "kidney"] if channel_names is None else channel_names)[:outputs]
    definition = {"pred": {"channel_def": {str(index): name for index, name in enumerate(names)}}}
    formats = {"inputs": {"image": {"channel_def": {"0": "CT"}}}, "outputs": definition}
    (directory / "configs" / "metadata.json").write_text(json.dumps({"network_data_format": formats}))
    if codes is not None:
        import numpy as np
        import torch

        torch.save({key: np.array(table) for key, table in codes.items()}, directory / "models" / "code.pt")
    if weights:
        import torch

        torch.manual_seed(seed)
        torch.save(_network(directory, content).state_dict(), directory / "models" / "model.pt")
    return directory


def _parsed(directory: Path, content: Mapping[str, Any]) -> Any:
    """MONAI's parser of a configuration, with the bundle's place."""
    import numpy as np
    import torch

    from apps.imaging.models.networks.registry import import_monai

    import_monai()
    from monai.bundle import ConfigParser

    torch.serialization.add_safe_globals(
        [np._core.multiarray._reconstruct, np.ndarray, np.dtype, type(np.dtype("i8"))]  # type: ignore[attr-defined]
    )
    return ConfigParser({**content, "bundle_root": str(directory)})


def _network(directory: Path, content: Mapping[str, Any]) -> Any:
    """MONAI's network, normalised by what it sees of noise, so that its classes are all found somewhere."""
    import torch

    described = content["network_def"]
    network = _parsed(directory, content).get_parsed_content("network_def")
    if isinstance(described, str):
        return network.eval()
    for module in network.modules():
        if hasattr(module, "momentum"):
            module.momentum = None  # statistics are the mean of the passes, so a few are enough
    outputs, channels = described.get("out_channels", described.get("num_classes", 2)), described.get("in_channels", 1)
    noise = torch.randn(2, channels, *([64, 64, 32] if "Swin" in str(described["_target_"]) else [32] * 3))
    with torch.no_grad():
        for _ in range(3):
            network.train()(noise)
        layers = [one for one in network.modules() if isinstance(one, torch.nn.Conv3d | torch.nn.ConvTranspose3d)]
        last = [one for one in layers if one.out_channels == outputs and one.bias is not None][-1:]
        for head in last if not described.get("deep_supervision") else []:
            head.bias.sub_(network.eval()(noise).mean((0, 2, 3, 4)))
    return network.eval()


def infer(bundle: Path, image: Path, out: Path) -> None:
    """Run a bundle with MONAI itself: its parser, its transforms, its inferer. Writes the prediction as ``.npy``.

    Components are kept by SciPy instead of MONAI, which needs a further library for them.
    """
    import monai.transforms  # noqa: F401
    import numpy as np
    import torch
    from monai.data import MetaTensor

    content = json.loads((bundle / "configs" / "inference.json").read_text())
    parser, names = _parsed(bundle, content), content.get("image_key", "image")
    _scripts()
    after = parser["postprocessing"]["transforms"]
    after.pop()  # SaveImaged
    network = parser.get_parsed_content("network_def").eval()
    network.load_state_dict(torch.load(bundle / "models" / "model.pt", weights_only=True))
    folder = sorted(image.glob("*.nii.gz")) if image.is_dir() else []
    channels = network.in_channels if hasattr(network, "in_channels") else 1
    asked = {}
    if "Vista" in content["inferer"]["_target_"]:
        classes = parser.get_parsed_content("evaluator#hyper_kwargs#everything_labels")
        asked = {"class_vector": torch.tensor(classes)[:, None]}
    files: Any = list(map(str, folder[:channels])) or str(image)
    given = {"image": files} if isinstance(names, str) else dict(zip(names, files, strict=True))
    data = parser.get_parsed_content("preprocessing")(given)
    with torch.no_grad():
        found = parser.get_parsed_content("inferer")(torch.as_tensor(data["image"])[None], network, **asked)[0]
    source = data[next(iter(given))]
    data["pred"] = MetaTensor(found, meta=source.meta, applied_operations=source.applied_operations)
    if asked:
        data["label_prompt"] = asked["class_vector"]
    for index, step in enumerate(after):
        if "KeepLargest" in step["_target_"]:
            data["pred"][0] = torch.from_numpy(_largest(data["pred"][0].numpy(), step["applied_labels"]))
        else:
            data = parser.get_parsed_content(f"postprocessing#transforms#{index}")(data)
    np.save(out, data["pred"].numpy())


def _scripts() -> None:
    """Modules in the place of a bundle's ``scripts``, whose transforms do what those of the model zoo do."""
    import types

    import torch

    class ConcatImages:
        def __init__(self, keys: Any, keys_merge: Sequence[str], keys_out: str) -> None:
            self.names, self.out = keys_merge, keys_out

        def __call__(self, data: Any) -> Any:
            return {**data, self.out: torch.cat([torch.as_tensor(data[name]) for name in self.names])}

        def inverse(self, data: Any) -> Any:
            return data

    class MergeClassesd:
        def __init__(self, keys: str) -> None:
            self.key = keys

        def __call__(self, data: Any) -> Any:
            """The number of the first mask but that of the background that is true."""
            masks = torch.as_tensor(data[self.key])[1:] > 0
            return {**data, self.key: ((masks.int().argmax(0) + 1) * masks.any(0))[None]}

    class OrientationGuidanceMultipleLabelDeepEditd:
        def __init__(self, ref_image: str, label_names: Any) -> None:
            pass

        def __call__(self, data: Any) -> Any:
            """Without clicks there is nothing to turn."""
            return data

    class Vista3dInferer:
        def __init__(self, **arguments: Any) -> None:
            self.sides = arguments["roi_size"]

        def __call__(self, images: Any, network: Any, class_vector: Any) -> Any:
            from monai.inferers import SlidingWindowInfererAdapt

            inferer = SlidingWindowInfererAdapt(roi_size=self.sides, with_coord=True)
            return inferer(images, network, transpose=True, class_vector=class_vector)

    classes = {
        "my_transforms": (ConcatImages, MergeClassesd),
        "transforms": (OrientationGuidanceMultipleLabelDeepEditd,),
        "inferer": (Vista3dInferer,),
    }
    scripts = sys.modules["scripts"] = types.ModuleType("scripts")
    for name, members in classes.items():
        module = sys.modules[f"scripts.{name}"] = types.ModuleType(f"scripts.{name}")
        for member in members:
            setattr(module, member.__name__, member)
        setattr(scripts, name, module)


def _largest(labels: Any, values: Sequence[int]) -> Any:
    """Of each of these labels only the largest component."""
    import numpy as np
    from scipy import ndimage

    kept = labels.copy()
    for value in values:
        parts, _ = ndimage.label(labels == value, np.ones((3, 3, 3)))
        sizes = np.bincount(parts.ravel())
        sizes[0] = 0
        kept[(labels == value) & (parts != sizes.argmax())] = 0
    return kept


def with_monai(image: Path, *bundles: Path) -> None:
    """Write MONAI's own prediction of an image into each bundle's folder."""
    for folder in bundles:
        infer(folder, image, folder / "expected.npy")
