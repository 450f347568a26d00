"""The recipe that ``imaging fingerprint`` writes and ``imaging train --recipe`` reads, as a file that people edit."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired, TypedDict

from apps.imaging.models.networks import registry
from apps.imaging.training.data.dataset import Dataset, own_grid
from apps.imaging.volumes.intensity import check_operations
from common import typed_json
from common.errors import BadInput, UsageError
from common.files import write_text

VERSION: Literal[1] = 1
Voxels = Annotated[int, ("minimum", 1), ("maximum", 4096)]
Millimetres = Annotated[float, ("exclusiveMinimum", 0), ("maximum", 10_000)]
Count = Annotated[int, ("minimum", 0)]
Axes = tuple[Voxels, Voxels, Voxels]
Lengths = tuple[Millimetres, Millimetres, Millimetres]
LEVELS: Mapping[str, Mapping[str, str]] = {
    "dynunet": {"features": "filters", "strides": "strides", "kernels": "kernel_size"},
    "plainconvunet": {"features": "features_per_stage", "strides": "strides", "kernels": "kernel_sizes"},
    "residualencoderunet": {"features": "features_per_stage", "strides": "strides", "kernels": "kernel_sizes"},
}
"""Networks whose levels a recipe describes, and their names of a choice's fields."""
RESIDUAL_BLOCKS = (1, 3, 4, 6)
"""Residual blocks of the levels of nnU-Net's residual encoders; further levels have as many as the last one."""


class CaseEntry(TypedDict):
    """One case."""

    name: str
    shape: Axes
    """Voxels along the model's axes, as stored."""
    spacing: Lengths
    """Millimetres."""


class ChannelEntry(TypedDict):
    """Intensities of one channel at labelled voxels; null if there are none."""

    name: str
    mean: float | None
    std: float | None
    minimum: float | None
    percentile_00_5: float | None
    median: float | None
    percentile_99_5: float | None
    maximum: float | None


class ClassEntry(TypedDict):
    """One class."""

    value: Count
    name: str
    voxels: Count
    """Of all cases."""
    cases: Count
    """In which it occurs."""


class FingerprintEntry(TypedDict):
    """What was found in the data set."""

    channels: Annotated[list[ChannelEntry], ("minItems", 1)]
    classes: Annotated[list[ClassEntry], ("minItems", 2)]
    cases: Annotated[list[CaseEntry], ("minItems", 1)]


class ChoiceEntry(TypedDict):
    """A patch, and a network for it."""

    patch: Axes
    """Voxels along the model's axes."""
    features: NotRequired[Annotated[list[Voxels], ("minItems", 2)]]
    """Of each level. Without these three the network has its usual levels."""
    strides: NotRequired[Annotated[list[Axes], ("minItems", 2)]]
    kernels: NotRequired[Annotated[list[Axes], ("minItems", 2)]]


class RecipeEntry(TypedDict):
    """A recipe."""

    peakline_recipe: Literal[1]
    """Version of this format."""
    network: str
    spacing: Lengths
    """Millimetres of the network's grid along the model's axes."""
    batch: Annotated[int, ("minimum", 1), ("maximum", 4096)]
    """Patches of a step."""
    normalisation: list[list[Mapping[str, Any]]]
    """Operations on the intensities of each channel, as in ``model.json``."""
    choices: Annotated[list[ChoiceEntry], ("minItems", 1)]
    """From the best to the smallest; the first that fits under the ceiling is trained."""
    fingerprint: FingerprintEntry


def write(path: Path, recipe: RecipeEntry) -> None:
    """Write a recipe, with a line for each entry of its lists."""
    write_text(path, _text(recipe, "") + "\n")


def _text(value: Any, indent: str) -> str:
    """JSON in which objects of the first levels and lists of objects are spread over lines."""
    deeper = indent + "  "
    if isinstance(value, dict) and len(indent) < 4:
        items = [f"{json.dumps(key)}: {_text(item, deeper)}" for key, item in value.items()]
        return "{\n" + ",\n".join(deeper + item for item in items) + f"\n{indent}}}"
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return "[\n" + ",\n".join(deeper + json.dumps(item, ensure_ascii=False) for item in value) + f"\n{indent}]"
    return json.dumps(value, ensure_ascii=False)


def read(path: Path) -> RecipeEntry:
    """Read a recipe and check it.

    Raises
    ------
    UsageError
        A file that is no recipe, a misspelt key, a value of another type, an unknown network or operation.
    """
    try:
        recipe: RecipeEntry = typed_json.read(path, RecipeEntry, what="recipe", closed=True)
    except BadInput as error:
        raise UsageError(f"--recipe {error}") from None
    if recipe["network"] not in registry.NETWORKS:
        raise UsageError(f"--recipe {path}: network {recipe['network']!r}; there are {', '.join(registry.NETWORKS)}")
    channels = recipe["fingerprint"]["channels"]
    if len(recipe["normalisation"]) != len(channels):
        found = len(recipe["normalisation"])
        raise UsageError(f"--recipe {path}: normalisation of {found} channels; its fingerprint has {len(channels)}")
    for operations in recipe["normalisation"]:
        try:
            check_operations(operations)
        except (ValueError, KeyError, TypeError) as error:
            raise UsageError(f"--recipe {path}: normalisation: {error}") from None
        if other := [one["op"] for one in operations if one["op"] not in ("zscore", "clip", "scale", "range")]:
            raise UsageError(f"--recipe {path}: normalisation: {other[0]} is not done in a training")
    return recipe


def changes(place: str, network: str, choice: ChoiceEntry) -> dict[str, Any]:
    """Arguments of a network that a choice sets.

    Parameters
    ----------
    place
        Of the choice, for messages.

    Raises
    ------
    UsageError
        Levels for a network that has no such arguments.
    """
    given = {key: choice[key] for key in ("features", "strides", "kernels") if key in choice}
    if given and network not in LEVELS:
        raise UsageError(
            f"{place}: {network} takes no {', '.join(given)}; leave them out, or choose {', '.join(LEVELS)}"
        )
    made: dict[str, Any] = {}
    for key, value in given.items():
        made[LEVELS[network][key]] = [list(level) if isinstance(level, tuple | list) else level for level in value]
    if network == "residualencoderunet" and "strides" in made:
        count = len(made["strides"])
        made["n_blocks_per_stage"] = [RESIDUAL_BLOCKS[min(level, len(RESIDUAL_BLOCKS) - 1)] for level in range(count)]
    return made


def differences(recipe: RecipeEntry, dataset: Dataset) -> list[str]:
    """What a data set has otherwise than the fingerprint, in lines; nothing of that makes the recipe unusable."""
    described = {case["name"]: case for case in recipe["fingerprint"]["cases"]}
    present = {case.name: case for case in dataset.cases}
    lines = []
    for name in sorted(described.keys() & present.keys()):
        shape, spacing = own_grid(present[name])
        then = described[name]
        same = all(abs(now - was) <= 1e-3 * was for now, was in zip(spacing, then["spacing"], strict=True))
        if list(shape) != list(then["shape"]) or not same:
            lines.append(
                f"case {name} has {_grid(shape, spacing)}, its fingerprint {_grid(then['shape'], then['spacing'])}"
            )
    for names, where in ((present.keys() - described, "not in the fingerprint"), (described.keys() - present, "gone")):
        if names:
            first, more = min(names), f" and {len(names) - 1} more" if len(names) > 1 else ""
            lines.append(f"case {first}{more}: {where}")
    return lines


def check_same_kind(path: Path, recipe: RecipeEntry, dataset: Dataset) -> None:
    """Refuse a data set of other channels or classes than the fingerprint has.

    Raises
    ------
    BadInput
        With both.
    """
    fingerprint = recipe["fingerprint"]
    channels = [one["name"] for one in fingerprint["channels"]], list(dataset.channels)
    classes = [one["value"] for one in fingerprint["classes"]], list(dataset.labels)
    for what, (then, now) in {"channels": channels, "label values": classes}.items():
        if then != now:
            message = f"its data set has the {what} {then}, this one {now}; imaging fingerprint makes another"
            raise BadInput(f"--recipe {path}: {message}", public=f"{what} of the recipe")


def _grid(shape: Sequence[int], spacing: Sequence[float]) -> str:
    return f"{'x'.join(map(str, shape))} voxels of {'x'.join(f'{edge:g}' for edge in spacing)} mm"
