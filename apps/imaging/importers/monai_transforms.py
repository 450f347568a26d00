"""A bundle's transforms and inferer, translated to our model folder's fields. Transforms are looked up by name.

Each transform that is read has a function that removes its arguments from a mapping; an argument that remains is
refused by name. Transforms without an effect here are in ``HARMLESS``.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from common.errors import BadInput

Operation = Mapping[str, Any]
Arguments = dict[str, Any]

HARMLESS = frozenset({"EnsureChannelFirst", "EnsureType", "ToTensor", "CastToType", "ToDevice", "DeleteItems"})
"""Transforms of containers, types and devices of arrays, which have no effect here."""
READERS = (None, "NibabelReader", "ITKReader", "nibabelreader", "itkreader")
IGNORED = frozenset({"keys", "allow_missing_keys", "meta_keys", "meta_key_postfix", "lazy", "dtype"})
"""Arguments of any transform that do not change voxels."""


def transform_name(target: object, package: str = "monai.transforms") -> str:
    """MONAI's name of a transform, without module and without the letter of its variant for dictionaries.

    Raises
    ------
    BadInput
        If it is not one of MONAI's.

    Examples
    --------
    >>> transform_name("monai.transforms.Spacingd"), transform_name("SaveImaged")
    ('Spacing', 'SaveImage')
    """
    module, _, name = str(target).rpartition(".")
    if module and module != package and not module.startswith(f"{package}."):
        raise BadInput(f"{target!r} is not one of MONAI's own")
    for suffix in ("Dict", "D", "d"):
        if name.endswith(suffix):
            return name.removesuffix(suffix)
    return name


@dataclass(slots=True)
class Preprocessing:
    """The fields of the model folder, gathered transform by transform."""

    orientation: str = "file:xyz"
    spacing: list[float] | None = None
    """Millimetres; ``None``: the image's own."""
    intensity: list[Operation] = field(default_factory=list)
    """Operations; ``{"op": "resample"}`` is the place of the resampling to the network's grid."""


def _take(arguments: Arguments, key: str, default: Any, *allowed: Any) -> Any:
    """Remove an argument and return its value, or the one value of a list.

    Parameters
    ----------
    allowed
        The only values that are read; without any, all are.
    """
    value = arguments.pop(key, default)
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if allowed and value not in allowed:
        raise BadInput(f"{key} {value!r} is not read")
    return value


def _number(arguments: Arguments, key: str, default: Any = None) -> float:
    value = _take(arguments, key, default)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BadInput(f"{key} {value!r} is no number")
    return float(value)


def _load(gathered: Preprocessing, arguments: Arguments) -> None:
    _take(arguments, "reader", None, *READERS)
    for key in ("image_only", "ensure_channel_first", "simple_keys", "prune_meta_pattern", "overwriting"):
        arguments.pop(key, None)


def _orientation(gathered: Preprocessing, arguments: Arguments) -> None:
    if gathered.spacing is not None:
        raise BadInput("comes after Spacingd; only the other order is read")
    axcodes = _take(arguments, "axcodes", None)
    if _take(arguments, "as_closest_canonical", False, True, False):
        axcodes = "RAS"
    code = str(axcodes).upper() if isinstance(axcodes, str) else ""
    if sorted({"L": "R", "P": "A", "I": "S"}.get(letter, letter) for letter in code) != ["A", "R", "S"]:
        raise BadInput(f"axcodes {axcodes!r} is not an orientation")
    gathered.orientation = code


def _spacing(gathered: Preprocessing, arguments: Arguments) -> None:
    pixdim = arguments.pop("pixdim", None)
    pixdim = pixdim if isinstance(pixdim, list) else [pixdim]
    if not pixdim or not all(isinstance(size, int | float) and not isinstance(size, bool) for size in pixdim):
        raise BadInput(f"pixdim {pixdim!r} is no spacing")
    _take(arguments, "mode", "bilinear", "bilinear", "BILINEAR", 1)
    _take(arguments, "padding_mode", "border", "border", "BORDER")
    for key in ("diagonal", "scale_extent"):
        _take(arguments, key, False, False)
    for key in ("min_pixdim", "max_pixdim"):
        _take(arguments, key, None, None)
    for key in ("align_corners", "recompute_affine", "ensure_same_shape"):
        arguments.pop(key, None)
    if gathered.spacing is not None:
        raise BadInput("a second one is not read")
    complete = [*pixdim, *[pixdim[-1]] * 2][:3]
    gathered.spacing = [max(0.0, float(size)) for size in complete]
    gathered.intensity.append({"op": "resample"})


def _scale_range(gathered: Preprocessing, arguments: Arguments) -> None:
    a_min, a_max = _number(arguments, "a_min"), _number(arguments, "a_max")
    b_min, b_max = _number(arguments, "b_min", 0.0), _number(arguments, "b_max", 1.0)
    if not (a_min < a_max and b_min < b_max):
        raise BadInput("ranges must grow")
    width = (a_max - a_min) / (b_max - b_min)
    low = a_min - b_min * width
    gathered.intensity.append({"op": "scale", "low": low, "high": low + width})
    if _take(arguments, "clip", False, True, False):
        gathered.intensity.append({"op": "clip", "low": b_min, "high": b_max})


def _normalize(gathered: Preprocessing, arguments: Arguments) -> None:
    arguments.pop("channel_wise", None)  # there is one channel
    nonzero = bool(_take(arguments, "nonzero", False, True, False))
    mean, deviation = arguments.pop("subtrahend", None), arguments.pop("divisor", None)
    if mean is None and deviation is None:
        gathered.intensity.append({"op": "zscore", "nonzero": True} if nonzero else {"op": "zscore"})
        return
    constants: Arguments = {"subtrahend": mean, "divisor": deviation}
    shift, width = _number(constants, "subtrahend"), _number(constants, "divisor")
    if nonzero or width <= 0:
        raise BadInput("subtrahend and divisor are read for all voxels, and positive")
    gathered.intensity.append({"op": "scale", "low": shift, "high": shift + width})


def _scale(gathered: Preprocessing, arguments: Arguments) -> None:
    arguments.pop("channel_wise", None)
    _take(arguments, "factor", None, None)
    low, high = _number(arguments, "minv", 0.0), _number(arguments, "maxv", 1.0)
    gathered.intensity.append({"op": "range", "low": low, "high": high})


def _scale_percentiles(gathered: Preprocessing, arguments: Arguments) -> None:
    arguments.pop("channel_wise", None)
    _take(arguments, "relative", False, False)
    shares = _number(arguments, "lower"), _number(arguments, "upper")
    low, high = _number(arguments, "b_min"), _number(arguments, "b_max")
    gathered.intensity.append({"op": "range", "from": list(shares), "low": low, "high": high})
    if _take(arguments, "clip", False, True, False):
        gathered.intensity.append({"op": "clip", "low": low, "high": high})


TRANSFORMS: Mapping[str, Callable[[Preprocessing, Arguments], None]] = MappingProxyType(
    {
        "LoadImage": _load,
        "Orientation": _orientation,
        "Spacing": _spacing,
        "ScaleIntensityRange": _scale_range,
        "ScaleIntensity": _scale,
        "ScaleIntensityRangePercentiles": _scale_percentiles,
        "NormalizeIntensity": _normalize,
    }
)


def preprocessing(transforms: list[Arguments]) -> Preprocessing:
    """Translate a bundle's transforms in front of the network.

    Parameters
    ----------
    transforms
        ``_target_`` and arguments of each, in order.

    Raises
    ------
    BadInput
        A transform or argument that is not read, by its name.
    """
    gathered = Preprocessing()
    for arguments in transforms:
        target = arguments.pop("_target_", None)
        name = transform_name(target)
        if name in HARMLESS:
            continue
        if name not in TRANSFORMS:
            raise BadInput(f"the transform {target!r} is not read; only {', '.join(TRANSFORMS)} are")
        left = {key: value for key, value in arguments.items() if key not in IGNORED}
        try:
            TRANSFORMS[name](gathered, left)
        except BadInput as error:
            raise BadInput(f"{target}: {error}") from None
        if left:
            raise BadInput(f"{target}: the argument {next(iter(left))!r} is not read")
    if gathered.spacing is None:
        gathered.intensity.insert(0, {"op": "resample"})
    return gathered


def restoring(transforms: list[Arguments]) -> str:
    """Translate a bundle's transforms after the network.

    Returns
    -------
    str
        The values that are resampled to the image's grid: ``logits``, ``softmax`` or ``sigmoid``, which are
        interpolated, or ``labels``, of which the nearest is taken.

    Raises
    ------
    BadInput
        A transform that is not read, or an output that is not one label for each voxel.
    """
    state, restored = "logits", ""
    for arguments in transforms:
        target = arguments.pop("_target_", None)
        name = transform_name(target)
        if name == "Activations":
            state = _activation(state, arguments)
        elif name == "AsDiscrete":
            if arguments.get("argmax") is not True or any(arguments.get(key) for key in ("threshold", "rounding")):
                raise BadInput(f"{target}: only argmax is read")
            state = "labels"
        elif name == "Invert":
            nearest = arguments.get("nearest_interp", True) is not False
            if state == "labels" and not nearest:
                raise BadInput(f"{target}: labels would be interpolated (nearest_interp)")
            restored = restored or ("labels" if nearest else state)
        elif name not in HARMLESS | {"SaveImage"}:
            raise BadInput(f"the transform {target!r} is not read after the network")
    if state != "labels":
        raise BadInput("no AsDiscreted with argmax: not one label for each voxel")
    return restored or "logits"


def _activation(state: str, arguments: Arguments) -> str:
    chosen = [name for name in ("softmax", "sigmoid") if arguments.get(name)]
    if arguments.get("other") is not None or len(chosen) > 1 or state == "labels":
        raise BadInput("Activationsd: only softmax or sigmoid of the network's output are read")
    return chosen[0] if chosen else state


@dataclass(frozen=True, slots=True)
class Inferer:
    """Division of an image into tiles, and the way in which their results are combined."""

    patch: tuple[int, int, int]
    overlap: float
    importance: str
    """``gaussian`` or ``constant``."""
    padding: str
    """``zero`` or ``edge``: values around an image that is smaller than a tile."""


def inferer(arguments: Arguments) -> Inferer:
    """Translate MONAI's ``SlidingWindowInferer``.

    Raises
    ------
    BadInput
        Another inferer, or an argument that is not read.
    """
    target = arguments.pop("_target_", None)
    if transform_name(target, "monai.inferers") != "SlidingWindowInferer":
        raise BadInput(f"the inferer {target!r} is not read; only SlidingWindowInferer is")
    try:
        return _sliding_window(arguments)
    except BadInput as error:
        raise BadInput(f"{target}: {error}") from None


def _sliding_window(arguments: Arguments) -> Inferer:
    size = arguments.pop("roi_size", None)
    sides = size if isinstance(size, list) else [size] * 3
    if len(sides) != 3 or not all(isinstance(side, int) and 0 < side <= 4096 for side in sides):
        raise BadInput(f"roi_size {size!r} is not three sides in voxels")
    overlap = arguments.pop("overlap", 0.25)
    if isinstance(overlap, list) and len(set(overlap)) == 1:
        overlap = overlap[0]
    if not isinstance(overlap, int | float) or not 0 <= overlap < 1:
        raise BadInput(f"overlap {overlap!r} is not read")
    padding = _take(arguments, "padding_mode", "constant", "constant", "replicate", "CONSTANT", "REPLICATE").lower()
    importance = _take(arguments, "mode", "constant", "constant", "gaussian", "CONSTANT", "GAUSSIAN").lower()
    _take(arguments, "sigma_scale", 0.125, 0.125)
    _take(arguments, "cval", 0.0, 0.0, 0)
    _take(arguments, "with_coord", False, False)
    for key in ("sw_batch_size", "progress", "cache_roi_weight_map", "cpu_thresh", "buffer_steps", "buffer_dim"):
        arguments.pop(key, None)  # these decide speed and memory, not the result
    if arguments:
        raise BadInput(f"the argument {next(iter(arguments))!r} is not read")
    x, y, z = sides
    return Inferer((x, y, z), float(overlap), importance, "edge" if padding == "replicate" else "zero")
