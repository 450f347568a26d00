"""MONAI bundles: ``configs/inference.json`` and ``configs/metadata.json``, translated to our model folder's fields.

Only four parts of the configuration are read: the network, the transforms before and after it, and the inferer. Data
sets, handlers and the bundle's own program are not evaluated. ``convert`` reads weights, in a child.
"""

import json
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from apps.imaging.importers.monai_expressions import Configuration
from apps.imaging.importers.monai_inferer import Inferer, inferer
from apps.imaging.importers.monai_postprocessing import Restoring, restoring
from apps.imaging.importers.monai_transforms import (
    HARMLESS,
    IGNORED,
    WITHOUT_CLICKS,
    Blockers,
    preprocessing,
    transform_name,
)
from apps.imaging.models.networks import monai_bundle
from apps.imaging.volumes.intensity import Operation
from common.errors import BadInput, UsageError

METADATA, WEIGHTS = "configs/metadata.json", "models/model.pt"
CONFIGURATIONS = ("configs/inference.json", "configs/inference.yaml", "configs/inference.yml")
MOST_CLASSES = 512
"""Of VISTA3D, with those that it was not trained for."""
LARGEST_FILE = 4 << 20
"""Bytes of a configuration."""
UNREAD = frozenset({"device", "sw_device", "transform", "orig_keys", "orig_meta_keys", "to_tensor"}) | IGNORED
"""Arguments that are not evaluated: devices, and names in MONAI's dictionaries."""


@dataclass(frozen=True, slots=True)
class BundlePlan:
    """The input that a bundle expects, and its prediction."""

    network: str
    arguments: Mapping[str, Any]
    channels: tuple[str, ...]
    labels: tuple[str, ...]
    spacing: tuple[float, ...]
    """Millimetres; 0: the image's own."""
    orientation: str
    intensity: tuple[Operation, ...]
    further_intensity: tuple[tuple[Operation, ...], ...]
    """Operations on the other channels."""
    inferer: Inferer
    inference: Mapping[str, Any]
    """The field of the model folder, without that of tiles."""
    values: tuple[int, ...]
    """Of the labels."""
    weights: Path
    clicks: int = 0
    """Further channels of the network's weights, which would show a user's clicks."""
    codes: Path | None = None
    """DiNTS's architecture, tables that are read as weights are."""


def is_bundle(directory: Path) -> bool:
    """True if a folder is a MONAI bundle with a configuration for inference."""
    return (directory / METADATA).is_file() and any((directory / name).is_file() for name in CONFIGURATIONS)


def files(directory: Path, plan: BundlePlan) -> list[Path]:
    """Files that the conversion reads."""
    present = [directory / name for name in (METADATA, *CONFIGURATIONS) if (directory / name).is_file()]
    return [*present[:2], plan.weights, *([] if plan.codes is None else [plan.codes])]


def read_plan(directory: Path) -> BundlePlan:
    """Read and check the two files.

    Raises
    ------
    BadInput
        Files that cannot be read, or something that is not supported, by its name.
    """
    path = next(directory / name for name in CONFIGURATIONS if (directory / name).is_file())
    try:
        metadata, content = _parsed(directory / METADATA), _parsed(path)
        return _plan(directory, metadata, Configuration(content))
    except UsageError:
        raise
    except BadInput as error:
        raise BadInput(f"{path}: {error}", public="bundle not supported") from None
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, RecursionError) as error:
        raise BadInput(f"{path}: not a bundle's configuration ({error!r})", public="bundle unreadable") from None


def _parsed(path: Path) -> dict[str, Any]:
    if path.stat().st_size > LARGEST_FILE:
        raise BadInput(f"{path.name} is larger than {LARGEST_FILE} bytes")
    text = path.read_text("utf-8")
    if path.suffix == ".json":
        content = json.loads(text)
    else:
        try:
            import yaml
        except ImportError:
            raise UsageError(f"{path.name} is YAML, which needs the extra 'bundle' (PyYAML); JSON needs none") from None
        try:
            content = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise BadInput(f"not YAML ({' '.join(str(error).split())[:200]})") from None
    if not isinstance(content, dict):
        raise BadInput(f"{path.name} holds no mapping")
    return content


def _plan(directory: Path, metadata: Mapping[str, Any], configuration: Configuration) -> BundlePlan:
    blockers = Blockers()
    network, arguments, weights, codes = "", {"in_channels": 1, "out_channels": 1}, directory, None
    before, after, tiles = preprocessing([]), Restoring(), Inferer(None, 0.0, "constant", "zero")
    with blockers.gathering():
        network, arguments, found = _network(configuration)
        codes = _inside(directory, found) if found else None
    with blockers.gathering():
        before = preprocessing(_transforms(configuration, "preprocessing", blockers))
    with blockers.gathering():
        tiles = inferer(_arguments(configuration, configuration["inferer"]))
    with blockers.gathering():
        after = restoring(_transforms(configuration, "postprocessing", blockers))
    with blockers.gathering():
        weights = _weights(directory, configuration)
    blockers.raise_any()
    channels, outputs = arguments["in_channels"], arguments["out_channels"]
    if channels > 1 and before.joint:
        joint = " and ".join(dict.fromkeys(before.joint))
        raise BadInput(f"{joint}: statistics of all channels together are not read; those of each (channel_wise) are")
    if before.channels and len(before.channels) != channels:
        raise BadInput(f"{len(before.channels)} images are joined, and the network has {channels} channels")
    clicks = 0
    if before.clicks:
        clicks, channels = channels - 1, 1
        arguments["in_channels"] = 1
    if before.size and (tiles.patch or after.restored == "labels"):
        raise BadInput("Resized is read with a SimpleInferer, and where Invertd comes before the labels")
    classes: list[int] = []
    if (network == VISTA) != after.asked:
        raise BadInput(f"{VISTA} is read with VistaPostTransformd, and no other network is")
    if network == VISTA:
        classes = _asked(configuration)
        arguments["out_channels"] = outputs = 1 + len(classes)
    formats, inference = metadata.get("network_data_format", {}), after.inference(outputs)
    values, labels = _labels(formats.get("outputs"), outputs, inference)
    if classes:
        values, labels = (0, *classes), ("background", *_names_of(formats.get("outputs"), classes))
    return BundlePlan(
        network=network,
        arguments=arguments,
        channels=before.channels or _names(formats.get("inputs"), channels, "image"),
        labels=labels,
        values=values,
        spacing=tuple(before.spacing or (0.0, 0.0, 0.0)),
        orientation=before.orientation,
        intensity=tuple(before.intensity),
        further_intensity=(tuple(before.intensity),) * (channels - 1),
        inferer=replace(tiles, patch=before.size) if before.size else tiles,
        inference=inference
        | ({"size": [*before.size]} if before.size else {})
        | ({"turned_last": True} if before.turned_last else {}),
        weights=weights,
        clicks=clicks,
        codes=codes,
    )


def _labels(formats: Any, outputs: int, inference: Mapping[str, Any]) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Values and names of the labels; a mask has the name of its channel."""
    decision = inference.get("decision", "largest")
    if decision == "largest":
        return tuple(range(outputs)), _names(formats, outputs, "class")
    names = _names(formats, outputs, "mask")
    written = inference["regions"] if decision == "regions" else [1 << channel for channel in range(outputs)]
    named = dict(sorted((value, name) for value, name in zip(written, names, strict=True) if value))
    return (0, *named), ("background", *named.values())


def _network(configuration: Configuration) -> tuple[str, dict[str, Any], str]:
    """The network's name in the table, its checked arguments, and the file with its codes, if it has one."""
    key = "network_def" if "network_def" in configuration else "network"
    described = _described(configuration, key)
    if not isinstance(described, dict):
        raise BadInput(f"{key} is not a network's description")
    target = str(configuration.value(described.get("_target_")))
    module, _, name = target.rpartition(".")
    described, codes = _without_codes(configuration, described) if name == "DiNTS" else (described, "")
    arguments = _arguments(configuration, described)
    arguments.pop("_target_")
    arguments.pop("img_size", None)  # of older MONAI, where it only checked shapes
    if name not in monai_bundle.NETWORKS or not (module == "" or f"{module}.".startswith("monai.networks.nets.")):
        own = " is code of the bundle's own, which is never run" if module.split(".")[0] not in ("", "monai") else ""
        raise BadInput(f"network {target!r}{own}; only MONAI's {', '.join(monai_bundle.NETWORKS)} are read")
    dimensions = arguments.pop("spatial_dims", arguments.pop("dimensions", 3))
    if dimensions != 3:
        raise BadInput(f"network {name}: {dimensions} dimensions; only 3 are read")
    outputs = arguments.pop("out_channels", arguments.pop("num_classes", 2))
    channels = {"in_channels": arguments.pop("in_channels", 1), "out_channels": outputs}
    return name, monai_bundle.checked(name, arguments | channels), codes


VISTA = "vista3d132"
CALLED = re.compile(r"\$\s*(monai\.networks\.nets\.\w+)\(((?:\w+=[^=,()]+,?\s*)*)\)")


def _described(configuration: Configuration, key: str) -> Any:
    """A network's description, also that of a plain call with keywords."""
    called = CALLED.fullmatch(str(configuration.raw(key)))
    if called is None:
        return configuration[key]
    pairs = (pair.split("=") for pair in called[2].split(",") if pair.strip())
    return {"_target_": called[1], **{name.strip(): f"${value}" for name, value in pairs}}


def _asked(configuration: Configuration) -> list[int]:
    """The classes that VISTA3D is asked for where the user asks for none: all that the bundle lists.

    Raises
    ------
    BadInput
        No list of classes that VISTA3D has.
    """
    evaluator = configuration.raw("evaluator")
    options = configuration.value(evaluator.get("hyper_kwargs", {})) if isinstance(evaluator, dict) else {}
    classes = configuration.plain(options.get("everything_labels"))
    if not isinstance(classes, list) or not all(isinstance(one, int) and 0 < one < MOST_CLASSES for one in classes):
        raise BadInput("evaluator: hyper_kwargs have no everything_labels, the classes of the automatic mode")
    if not classes or len({*classes}) != len(classes):
        raise BadInput("evaluator: everything_labels are empty, or not distinct")
    return classes


def _names_of(formats: Any, values: list[int]) -> list[str]:
    """Names of classes from ``channel_def``, where the key is a class's value."""
    first: Any = next(iter(formats.values()), {}) if isinstance(formats, dict) else {}
    definition = first.get("channel_def", {})
    return [str(definition.get(str(value)) or f"class {value}") for value in values]


LOADED = re.compile(r"\$torch\.load\((@\w+|'[^']*')(,[^()]*(\([^()]*\))?)?\)")
CODE = re.compile(r"\$(?:torch\.from_numpy\()?@(\w+)\['(\w+)'\]\)?")


def _without_codes(configuration: Configuration, described: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """The arguments of DiNTS with those of its space, without the codes; and the file that has them.

    Raises
    ------
    BadInput
        Codes that are not ``@FILE['arch_code_a']``, ``['arch_code_c']`` and ``['node_a']``, of a ``torch.load``.
    """
    space = configuration.value(described.get("dints_space"))
    if not isinstance(space, dict) or str(space.get("_target_")).rpartition(".")[2] != "TopologyInstance":
        raise BadInput("network DiNTS: dints_space is not a TopologyInstance")
    texts = [*(space.get("arch_code") or []), described.get("node_a")]
    codes = [CODE.fullmatch(str(text).replace(" ", "")) for text in texts]
    if [match[2] if match else "" for match in codes] != list(monai_bundle.CODES):
        raise BadInput(f"network DiNTS: its codes are not {', '.join(monai_bundle.CODES)} of a file")
    sources = {match[1] for match in codes if match}
    loaded = LOADED.fullmatch(str(configuration.raw(sources.pop()))) if len(sources) == 1 else None
    if loaded is None:
        raise BadInput("network DiNTS: its codes are not read by torch.load from one file")
    path = configuration.value(loaded[1] if loaded[1].startswith("@") else loaded[1].strip("'"))
    unread = {"_target_", "arch_code", "device", "spatial_dims"}
    inner = {key: value for key, value in space.items() if key not in unread}
    outer = {key: value for key, value in described.items() if key not in ("dints_space", "node_a")}
    return {**inner, **outer}, str(path)


def _arguments(configuration: Configuration, component: Any) -> dict[str, Any]:
    """``_target_`` and the evaluated arguments of a component."""
    if not isinstance(component, dict) or "_target_" not in component:
        raise BadInput("a component has no _target_")
    if component.get("_mode_", "default") != "default":
        raise BadInput(f"_mode_ {component['_mode_']!r} is not read")
    unread = UNREAD | {"_mode_", "_desc_", "_requires_", "_disabled_"}
    return {
        key: value if key == "func" else configuration.plain(value)  # a function is text for whoever reads it
        for key, value in component.items()
        if key not in unread
    }


def _transforms(configuration: Configuration, key: str, blockers: Blockers) -> list[dict[str, Any]]:
    """The components of a ``Compose``; of those without an effect here only the name."""
    composed = configuration[key]
    if not isinstance(composed, dict) or transform_name(composed.get("_target_")) != "Compose":
        raise BadInput(f"{key} is not a Compose of transforms")
    transforms: list[dict[str, Any]] = []
    for item in configuration.value(composed["transforms"]):
        component = configuration.value(item)
        if configuration.value(component.get("_disabled_", False)) is True:
            continue
        target = configuration.value(component.get("_target_"))
        with blockers.gathering():
            harmless = transform_name(target) in HARMLESS | WITHOUT_CLICKS | {"SaveImage"}
            transforms.append({"_target_": target} if harmless else _arguments(configuration, component))
    return transforms


def _names(formats: Any, count: int, default: str) -> tuple[str, ...]:
    """Names of channels or classes from ``channel_def``; numbered names if it does not have ``count`` of them."""
    first: Any = next(iter(formats.values()), {}) if isinstance(formats, dict) else {}
    definition = first.get("channel_def", {})
    names = [str(definition.get(str(index), "")) for index in range(count)]
    if len(definition) == count and all(names) and len(set(names)) == count:
        return tuple(names)
    return tuple("background" if default == "class" and not index else f"{default} {index}" for index in range(count))


def _weights(directory: Path, configuration: Configuration) -> Path:
    """Path from which ``CheckpointLoader`` would read weights; never outside the bundle.

    Raises
    ------
    BadInput
        If there are no weights, or they are TorchScript, which is a program.
    """
    handlers = [configuration.get("checkpointloader", None), *configuration.get("handlers", [])]
    loaders = [handler for handler in handlers if isinstance(handler, dict) and "load_path" in handler]
    name = str(configuration.value(loaders[0]["load_path"])) if loaders else WEIGHTS
    path = _inside(directory, name)
    if not path.is_file():
        scripts = [script.name for script in sorted((directory / "models").glob("*.ts"))]
        only = f"; {scripts[0]} is TorchScript, a program, which is not run" if scripts else ""
        raise BadInput(f"no weights in {name}{only}")
    if is_torchscript(path):
        raise BadInput(f"{name} is TorchScript, a program, which is not run; only weights are read")
    return path


def _inside(directory: Path, name: str) -> Path:
    """A path that a bundle names.

    Raises
    ------
    BadInput
        If it is outside the bundle.
    """
    relative = PurePosixPath(name)
    if relative.is_absolute() or ".." in relative.parts:
        raise BadInput(f"{name!r} is outside the bundle")
    return directory / relative


def is_torchscript(path: Path) -> bool:
    """True if a file is an archive with code, as ``torch.jit.save`` writes it."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any("/code/" in member or member.endswith("/constants.pkl") for member in archive.namelist())
