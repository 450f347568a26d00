"""Hyper-parameters that a search varies, and their ranges."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Choice:
    """One of several values."""

    values: tuple[int | float | str, ...]


@dataclass(frozen=True, slots=True)
class Range:
    """A number in an interval, log-uniform."""

    low: float
    high: float


Dimension = Choice | Range
Space = Mapping[str, Dimension]
"""Name of a hyper-parameter -> its values."""


def to_json(space: Space) -> dict[str, dict[str, Any]]:
    """The space as the record holds it."""
    return {name: asdict(dimension) for name, dimension in space.items()}


def from_json(written: Mapping[str, Mapping[str, Any]]) -> Space:
    """The space that ``to_json`` wrote."""
    return {
        name: Choice(tuple(one["values"])) if "values" in one else Range(one["low"], one["high"])
        for name, one in written.items()
    }
