"""The ``results`` in the record of each ``imaging`` command that ended well, field by field."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, NotRequired, TypedDict

from common.memory.report.run_json import RanksJson

Count = Annotated[int, ("minimum", 0)]
Share = Annotated[float, ("minimum", 0), ("maximum", 1)]


class HeldOutMetrics(TypedDict, total=False):
    """On the held-out cases; empty where none were held out."""

    mean_dice: Share | None
    per_class: Mapping[str, Share | None]
    """By the class's name."""
    cases: Count


class TrainResults(TypedDict):
    """Results of ``imaging train``."""

    metrics: HeldOutMetrics
    steps: Count
    """Optimiser steps."""
    model: str
    """The model folder, from the record's place."""
    ranks: NotRequired[RanksJson]


class FingerprintResults(TypedDict):
    """Results of ``imaging fingerprint``."""

    cases: Count
    """That were read."""
    classes: Count
    spacing: list[float]
    """Millimetres of the proposed grid."""
    patches: list[list[int]]
    """From the largest to the smallest."""


class StudyResults(TypedDict):
    """One study."""

    study: str
    """``study-0001`` and so on, in the order of the inputs."""
    status: Literal["done", "skipped", "failed"]
    reason: str | None
    """Why it was skipped or failed."""
    outputs: list[str]
    """Endings of its files, such as ``.nii.gz``; their names, which may be a patient's, are in ``studies.csv``."""


class InferResults(TypedDict):
    """Results of ``imaging infer``."""

    studies: list[StudyResults]
    constant_tiles: NotRequired[Count]
    """Tiles that held one value, air or padding, and were not computed again."""
    network_seconds: NotRequired[Annotated[float, ("minimum", 0)]]
    """In the network, of all studies; the rest is reading, blending, labels and writing."""
    left_out: NotRequired[list[str]]
    """Why something that was found is no study, once for each."""


class ClassMeasures(TypedDict):
    """Agreement of one class of one case with its reference; null where a measure is not defined."""

    dice: Share | None
    hd95_mm: float | None
    """95th percentile of the distances between the surfaces."""
    surface_dice: Share | None
    """At ``tolerance_mm``."""
    volume_error: float | None
    """(predicted - reference) / reference."""
    volume_ml: NotRequired[float]
    reference_ml: NotRequired[float]
    name: NotRequired[str]
    references: NotRequired[Count]
    """Cases whose reference has the class."""
    missed: NotRequired[Count]
    """Those of them where it was not found at all."""
    false_alarms: NotRequired[Count]
    """Cases where it was found and the reference does not have it."""


class CaseResults(TypedDict):
    """One case."""

    case: str
    dice: Share | None
    """Mean over its classes."""
    classes: Mapping[str, ClassMeasures]
    """By the label's value."""


class EvaluateResults(TypedDict):
    """Results of ``imaging evaluate``."""

    cases: Count
    mean_dice: Share | None
    """Mean over the classes."""
    tolerance_mm: float
    missed: NotRequired[Count]
    """Structures of references that were not found at all."""
    per_class: Mapping[str, ClassMeasures]
    """By the label's value: means over the cases that have it."""
    per_case: list[CaseResults]


class ShrinkResults(TypedDict):
    """Results of ``imaging compress`` for a smaller network."""

    bytes_before: Count
    """Of ``weights.safetensors``."""
    bytes_after: Count
    network_bytes_before: Count
    """Of ``network.onnx``."""
    network_bytes_after: Count
    parameters_before: Count
    parameters_after: Count
    metrics: Mapping[str, Any]


class CompressResults(TypedDict):
    """Results of ``imaging compress --int8``."""

    bytes_before: Count
    bytes_after: Count
    tiles: Count
    """Calibrated on."""
    metrics: Mapping[str, Any]


RESULTS: Mapping[str, tuple[Any, ...]] = {
    "imaging fingerprint": (FingerprintResults,),
    "imaging train": (TrainResults,),
    "imaging infer": (InferResults,),
    "imaging evaluate": (EvaluateResults,),
    "imaging compress": (CompressResults, ShrinkResults),
}
"""Command -> what its results may be."""
