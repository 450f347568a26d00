"""A bundle's transforms and inferer, translated to our model folder's fields. Transforms are looked up by name.

Each transform that is read has a function that removes its arguments from a mapping; an argument that remains is
refused by name. Transforms without an effect here are in ``HARMLESS``.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from common.errors import BadInput

Operation = Mapping[str, Any]
Arguments = dict[str, Any]

HARMLESS = frozenset(
    {"EnsureChannelFirst", "AddChannel", "EnsureType", "ToTensor", "CastToType", "ToDevice", "DeleteItems"}
)
"""Transforms of containers, types and devices of arrays, which have no effect here."""
WRITTEN_ANEW: Mapping[str, str] = MappingProxyType(
    {
        "scripts.my_transforms.ConcatImages": "ConcatImages",
        "scripts.my_transforms.MergeClassesd": "MergeClasses",
        "scripts.transforms.OrientationGuidanceMultipleLabelDeepEditd": "ResizeGuidanceMultipleLabelDeepEdit",
    }
)
"""Transforms that are code of published bundles, by their full names. The code is never run: what the published one
does is written anew here, and a bundle that has another one under the same name is not told apart."""
WITHOUT_CLICKS = frozenset(
    {"AddGuidanceFromPointsDeepEdit", "ResizeGuidanceMultipleLabelDeepEdit", "VistaPreTransform"}
)
"""Transforms of a user's clicks on an image, or questions. There are none here, so that all that they do is nothing."""
READERS = (None, "NibabelReader", "ITKReader", "nibabelreader", "itkreader")
IGNORED = frozenset({"keys", "allow_missing_keys", "meta_keys", "meta_key_postfix", "lazy", "dtype"})
"""Arguments of any transform that do not change voxels."""


class Blockers:
    """All that keeps a bundle from running, gathered before it is refused."""

    def __init__(self) -> None:
        self._messages: list[str] = []

    @contextmanager
    def gathering(self) -> Iterator[None]:
        """A block whose ``BadInput`` is kept for later."""
        try:
            yield
        except BadInput as error:
            self._messages.append(str(error))

    def raise_any(self) -> None:
        """Refuse the bundle.

        Raises
        ------
        BadInput
            If something was gathered, with all of it.
        """
        if self._messages:  # what is read is in many of them, and said once
            parts = [part for message in self._messages for part in message.split("; ")]
            raise BadInput("; ".join(dict.fromkeys(parts)))


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
    if str(target) in WRITTEN_ANEW:
        return WRITTEN_ANEW[str(target)]
    module, _, name = str(target).rpartition(".")
    if module and module != package and not module.startswith((f"{package}.", "monai.apps.")):
        raise BadInput(f"{target!r} is not one of MONAI's own")
    for suffix in ("Dict", "D", "d"):
        if name.endswith(suffix):
            return name.removesuffix(suffix)
    return name


@dataclass(slots=True)
class Preprocessing:
    """The fields of the model folder, gathered transform by transform."""

    orientation: str = "file:xyz"
    turned_last: bool = False
    """True if the image is turned after it was resampled."""
    spacing: list[float] | None = None
    """Millimetres; ``None``: the image's own."""
    intensity: list[Operation] = field(default_factory=list)
    """Operations; ``{"op": "resample"}`` is the place of the resampling to the network's grid."""
    joint: list[str] = field(default_factory=list)
    """Transforms whose statistics are of all channels together."""
    channels: tuple[str, ...] = ()
    """Names of images that become the channels, where the configuration has them."""
    size: tuple[int, int, int] | None = None
    """Voxels to which each image is resized, whatever its spacing."""
    clicks: bool = False
    """True if further channels of the network show where a user clicked; they are zero."""


def take(arguments: Arguments, key: str, default: Any, *allowed: Any) -> Any:
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


def flag(arguments: Arguments, key: str, default: bool) -> bool:
    """Remove an argument of which MONAI asks if it is true; any text but an empty one is."""
    value = take(arguments, key, default)
    if not isinstance(value, bool | int | str):
        raise BadInput(f"{key} {value!r} is neither true nor false")
    return bool(value)


def number(arguments: Arguments, key: str, default: Any = None) -> float:
    value = take(arguments, key, default)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BadInput(f"{key} {value!r} is no number")
    return float(value)


def _load(gathered: Preprocessing, arguments: Arguments) -> None:
    take(arguments, "reader", None, *READERS)
    for key in ("image_only", "ensure_channel_first", "simple_keys", "prune_meta_pattern", "overwriting"):
        arguments.pop(key, None)


def _orientation(gathered: Preprocessing, arguments: Arguments) -> None:
    if gathered.size:
        raise BadInput("comes after Resized; only the other order is read")
    if gathered.spacing is not None:
        margins = [one["margin"] for one in gathered.intensity if one["op"] == "crop"]
        if any(len({*sizes}) > 1 for sizes in (gathered.spacing, *margins)):
            raise BadInput("comes after a Spacingd or CropForegroundd that differs along the axes")
        gathered.turned_last = True
    axcodes = take(arguments, "axcodes", None)
    if flag(arguments, "as_closest_canonical", False):
        axcodes = "RAS"
    code = str(axcodes).upper() if isinstance(axcodes, str) else ""
    if sorted({"L": "R", "P": "A", "I": "S"}.get(letter, letter) for letter in code) != ["A", "R", "S"]:
        raise BadInput(f"axcodes {axcodes!r} is not an orientation")
    gathered.orientation = code


def _spacing(gathered: Preprocessing, arguments: Arguments) -> None:
    if any(operation["op"] == "crop" for operation in gathered.intensity):
        raise BadInput("comes after CropForegroundd; only the other order is read")
    pixdim = arguments.pop("pixdim", None)
    pixdim = pixdim if isinstance(pixdim, list) else [pixdim]
    if not pixdim or not all(isinstance(size, int | float) and not isinstance(size, bool) for size in pixdim):
        raise BadInput(f"pixdim {pixdim!r} is no spacing")
    take(arguments, "mode", "bilinear", "bilinear", "BILINEAR", 1)
    take(arguments, "padding_mode", "border", "border", "BORDER")
    for key in ("diagonal", "scale_extent"):
        take(arguments, key, False, False)
    for key in ("min_pixdim", "max_pixdim"):
        take(arguments, key, None, None)
    for key in ("align_corners", "recompute_affine", "ensure_same_shape"):
        arguments.pop(key, None)
    if gathered.spacing is not None or gathered.size:
        raise BadInput("comes after Resized or another one, which is not read")
    complete = [*pixdim, *[pixdim[-1]] * 2][:3]
    gathered.spacing = [max(0.0, float(size)) for size in complete]
    gathered.intensity.append({"op": "resample"})


def _scale_range(gathered: Preprocessing, arguments: Arguments) -> None:
    a_min, a_max = number(arguments, "a_min"), number(arguments, "a_max")
    b_min, b_max = number(arguments, "b_min", 0.0), number(arguments, "b_max", 1.0)
    if not (a_min < a_max and b_min < b_max):
        raise BadInput("ranges must grow")
    width = (a_max - a_min) / (b_max - b_min)
    low = a_min - b_min * width
    gathered.intensity.append({"op": "scale", "low": low, "high": low + width})
    if flag(arguments, "clip", False):
        gathered.intensity.append({"op": "clip", "low": b_min, "high": b_max})


def _normalize(gathered: Preprocessing, arguments: Arguments) -> None:
    joint = not flag(arguments, "channel_wise", False)
    nonzero = flag(arguments, "nonzero", False)
    mean, deviation = arguments.pop("subtrahend", None), arguments.pop("divisor", None)
    if mean is None and deviation is None:
        gathered.joint += ["NormalizeIntensityd"] if joint else []
        gathered.intensity.append({"op": "zscore", "nonzero": True} if nonzero else {"op": "zscore"})
        return
    constants: Arguments = {"subtrahend": mean, "divisor": deviation}
    shift, width = number(constants, "subtrahend"), number(constants, "divisor")
    if nonzero or width <= 0:
        raise BadInput("subtrahend and divisor are read for all voxels, and positive")
    gathered.intensity.append({"op": "scale", "low": shift, "high": shift + width})


def _scale(gathered: Preprocessing, arguments: Arguments) -> None:
    gathered.joint += [] if flag(arguments, "channel_wise", False) else ["ScaleIntensityd"]
    take(arguments, "factor", None, None)
    low, high = number(arguments, "minv", 0.0), number(arguments, "maxv", 1.0)
    gathered.intensity.append({"op": "range", "low": low, "high": high})


def _scale_percentiles(gathered: Preprocessing, arguments: Arguments) -> None:
    gathered.joint += [] if flag(arguments, "channel_wise", False) else ["ScaleIntensityRangePercentilesd"]
    take(arguments, "relative", False, False)
    shares = number(arguments, "lower"), number(arguments, "upper")
    low, high = number(arguments, "b_min"), number(arguments, "b_max")
    gathered.intensity.append({"op": "range", "from": list(shares), "low": low, "high": high})
    if flag(arguments, "clip", False):
        gathered.intensity.append({"op": "clip", "low": low, "high": high})


def _crop(gathered: Preprocessing, arguments: Arguments) -> None:
    if any(operation["op"] == "crop" for operation in gathered.intensity):
        raise BadInput("a second crop is not read")
    if gathered.size:
        raise BadInput("comes after Resized; only Spacingd is read before it")
    arguments.pop("source_key", None)  # the image, the only one that is there
    margin = arguments.pop("margin", 0)
    margins = margin if isinstance(margin, list) else [margin] * 3
    if len(margins) != 3 or not all(isinstance(one, int) and 0 <= one <= 4096 for one in margins):
        raise BadInput(f"margin {margin!r} is not in voxels")
    smaller = flag(arguments, "allow_smaller", False)
    take(arguments, "k_divisible", 1, 1)
    for key in ("select_fn", "channel_indices", "return_coords", "start_coord_key", "end_coord_key"):
        if key not in ("start_coord_key", "end_coord_key"):
            take(arguments, key, None, None)
        arguments.pop(key, None)
    take(arguments, "mode", "constant", "constant", *([] if any(margins) else ["minimum", "edge", "replicate"]))
    gathered.intensity.append({"op": "crop", "margin": margins, "smaller": smaller})


def _resize(gathered: Preprocessing, arguments: Arguments) -> None:
    if gathered.spacing is not None or gathered.size or any(one["op"] == "crop" for one in gathered.intensity):
        raise BadInput("comes after another transform of the grid")
    size = arguments.pop("spatial_size", None)
    sides = size if isinstance(size, list) else []
    if len(sides) != 3 or not all(isinstance(side, int) and 0 < side <= 4096 for side in sides):
        raise BadInput(f"spatial_size {size!r} is not three sides in voxels")
    take(arguments, "size_mode", "all", "all")
    take(arguments, "mode", "area", "area", "AREA")
    take(arguments, "anti_aliasing", False, False)
    for key in ("align_corners", "anti_aliasing_sigma"):
        take(arguments, key, None, None)
    gathered.size = (sides[0], sides[1], sides[2])
    gathered.intensity.append({"op": "resample"})


def _clicks(gathered: Preprocessing, arguments: Arguments) -> None:
    if gathered.clicks:
        raise BadInput("comes twice")
    take(arguments, "number_intensity_ch", 1, 1)
    take(arguments, "sigma", 3)
    arguments.pop("guidance", None)
    gathered.clicks = True


def _concatenate(gathered: Preprocessing, arguments: Arguments) -> None:
    names = arguments.pop("keys_merge", None)
    arguments.pop("keys_out", None)
    if gathered.channels:
        raise BadInput("comes twice")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names) or len({*names}) != len(names):
        raise BadInput(f"keys_merge {names!r} are not names of images")
    gathered.channels = tuple(names)


TRANSFORMS: Mapping[str, Callable[[Preprocessing, Arguments], None]] = MappingProxyType(
    {
        "LoadImage": _load,
        "Orientation": _orientation,
        "Spacing": _spacing,
        "ScaleIntensityRange": _scale_range,
        "ScaleIntensity": _scale,
        "ScaleIntensityRangePercentiles": _scale_percentiles,
        "NormalizeIntensity": _normalize,
        "CropForeground": _crop,
        "ConcatImages": _concatenate,
        "Resize": _resize,
        "AddGuidanceSignalDeepEdit": _clicks,
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
    gathered, blockers = Preprocessing(), Blockers()
    for arguments in transforms:
        with blockers.gathering():
            _preprocess(gathered, arguments)
    blockers.raise_any()
    if gathered.spacing is None and gathered.size is None:
        gathered.intensity.insert(0, {"op": "resample"})
    return gathered


def _preprocess(gathered: Preprocessing, arguments: Arguments) -> None:
    target = arguments.pop("_target_", None)
    name = transform_name(target)
    if name in HARMLESS | WITHOUT_CLICKS:
        return
    if name not in TRANSFORMS:
        raise BadInput(f"the transform {target!r} is not read; only {', '.join(TRANSFORMS)} are")
    left = {key: value for key, value in arguments.items() if key not in IGNORED}
    try:
        TRANSFORMS[name](gathered, left)
    except BadInput as error:
        raise BadInput(f"{target}: {error}") from None
    if left:
        raise BadInput(f"{target}: the argument {next(iter(left))!r} is not read")
