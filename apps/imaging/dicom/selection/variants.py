"""Header values by which the volumes of one series differ: diffusion weighting, echo, time."""

from typing import Any

Variant = tuple[float | str | None, ...]
"""Values of ``NAMES``, in their order."""

NAMES = {
    "DiffusionBValue": "b-value",
    "EchoTime": "echo time",
    "EchoNumbers": "echo number",
    "TemporalPositionIdentifier": "temporal position",
    "TriggerTime": "trigger time",
    "InversionTime": "inversion time",
    "FlipAngle": "flip angle",
    "AcquisitionNumber": "acquisition number",
    "AcquisitionTime": "acquisition time",
    "ImageType": "image type",
}
"""Elements, and their names in messages; the first one that tells volumes apart is named."""
_GROUPS = {
    "DiffusionBValue": ("MRDiffusionSequence", "DiffusionBValue"),
    "EchoTime": ("MREchoSequence", "EffectiveEchoTime"),
    "TemporalPositionIdentifier": ("FrameContentSequence", "TemporalPositionIndex"),
    "AcquisitionNumber": ("FrameContentSequence", "FrameAcquisitionNumber"),
}
"""Where an enhanced file has the same, in the functional groups of a frame."""
_TEXTS = ("AcquisitionTime", "ImageType")


def of_header(head: Any) -> Variant:
    """Read a plain header."""
    return tuple(_value(head, name) for name in NAMES)


def of_groups(groups: Any) -> Variant | None:
    """Read an item of functional groups; ``None`` if it has none of the values."""
    places = (_GROUPS.get(name) for name in NAMES)
    values = tuple(_value(first_item(groups, place[0]), place[1]) if place else None for place in places)
    return values if any(value is not None for value in values) else None


def _value(dataset: Any, name: str) -> float | str | None:
    """A number, or text; a value that cannot be read tells nothing apart."""
    try:
        values = values_of(dataset, name)
        if not values:
            return None
        return "/".join(map(str, values)) if name in _TEXTS else float(values[0])
    except (ValueError, TypeError, OverflowError):
        return None


def first_item(dataset: Any, name: str) -> Any:
    """The first item of a sequence; ``None`` without one."""
    sequence = dataset.get(name) if dataset is not None else None
    return sequence[0] if sequence else None


def values_of(dataset: Any, name: str) -> list[Any]:
    """The values of an element; none if it is absent or empty."""
    value = dataset.get(name) if dataset is not None else None
    if value is None:
        return []
    return [value] if isinstance(value, str | int | float) else list(value)
