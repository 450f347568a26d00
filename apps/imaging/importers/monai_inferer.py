"""A bundle's inferer: the division of an image into tiles, and the way in which their results are combined."""

from dataclasses import dataclass

from apps.imaging.importers.monai_transforms import Arguments, take, transform_name
from common.errors import BadInput

VISTA = "scripts.inferer.Vista3dInferer"
"""The inferer of VISTA3D's bundle, code of its own that is written anew here."""


@dataclass(frozen=True, slots=True)
class Inferer:
    """Division of an image into tiles, and the way in which their results are combined."""

    patch: tuple[int, int, int] | None
    """Sides of a tile; ``None``: the whole image is one."""
    overlap: float
    importance: str
    """``gaussian`` or ``constant``."""
    padding: str
    """``zero`` or ``edge``: values around an image that is smaller than a tile."""


def inferer(arguments: Arguments) -> Inferer:
    """Translate MONAI's ``SlidingWindowInferer`` or ``SimpleInferer``.

    Raises
    ------
    BadInput
        Another inferer, or an argument that is not read.
    """
    target = arguments.pop("_target_", None)
    if target == VISTA:
        return _of_vista(arguments)
    name = transform_name(target, "monai.inferers")
    if name == "SimpleInferer" and not arguments:
        return Inferer(None, 0.25, "gaussian", "zero")
    if name != "SlidingWindowInferer":
        raise BadInput(f"the inferer {target!r} is not read; only SlidingWindowInferer and SimpleInferer are")
    try:
        return _sliding_window(arguments)
    except BadInput as error:
        raise BadInput(f"{target}: {error}") from None


def _of_vista(arguments: Arguments) -> Inferer:
    """VISTA3D's inferer where nobody clicked: constant weights, and an overlap that is not the bundle's, which it uses
    only around clicks."""
    arguments.pop("overlap", None)
    arguments.pop("use_point_window", None)
    return _sliding_window(arguments)


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
    padding = take(arguments, "padding_mode", "constant", "constant", "replicate", "CONSTANT", "REPLICATE").lower()
    importance = take(arguments, "mode", "constant", "constant", "gaussian", "CONSTANT", "GAUSSIAN").lower()
    take(arguments, "sigma_scale", 0.125, 0.125)
    take(arguments, "cval", 0.0, 0.0, 0)
    take(arguments, "with_coord", False, False)
    for key in ("sw_batch_size", "progress", "cache_roi_weight_map", "cpu_thresh", "buffer_steps", "buffer_dim"):
        arguments.pop(key, None)  # these decide speed and memory, not the result
    if arguments:
        raise BadInput(f"the argument {next(iter(arguments))!r} is not read")
    x, y, z = sides
    return Inferer((x, y, z), float(overlap), importance, "edge" if padding == "replicate" else "zero")
