"""A recipe's file as ``imaging train`` follows it: checked against the data set, with complete networks."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from apps.imaging.models.networks import registry
from apps.imaging.models.networks.patches import check_patch
from apps.imaging.training.data.dataset import Dataset, Warn
from apps.imaging.training.proposal import recipe_file
from apps.imaging.volumes.volume import Shape
from common.errors import UsageError

Choice = tuple[Shape, Mapping[str, Any]]
"""A patch, and the arguments of the network for it."""
DIFFERENCES_SHOWN = 3


@dataclass(frozen=True, slots=True)
class Proposal:
    """What a recipe decides of a training."""

    network: str
    spacing: tuple[float, float, float]
    batch: int
    operations: Sequence[Sequence[Mapping[str, Any]]]
    """On the intensities of each channel."""
    choices: tuple[Choice, ...]
    """From the best to the smallest; at least one."""

    @property
    def normalisation_sha256(self) -> str:
        """SHA-256 of the operations."""
        return hashlib.sha256(json.dumps(self.operations, sort_keys=True).encode()).hexdigest()


def read_proposal(path: Path, dataset: Dataset, warn: Warn) -> Proposal:
    """Read a recipe for a data set.

    Parameters
    ----------
    warn
        Called with each difference between the data set and the fingerprint.

    Raises
    ------
    UsageError
        No recipe, or a choice of which no network can be built.
    BadInput
        A data set of other channels or classes.
    """
    entry = recipe_file.read(path)
    recipe_file.check_same_kind(path, entry, dataset)
    different = recipe_file.differences(entry, dataset)
    for line in different[:DIFFERENCES_SHOWN]:
        warn(f"--recipe {path.name}: {line}")
    if different[DIFFERENCES_SHOWN:]:
        warn(f"--recipe {path.name}: and {len(different) - DIFFERENCES_SHOWN} more differences")
    network = entry["network"]
    choices: list[Choice] = []
    sizes = {"in_channels": len(dataset.channels), "out_channels": len(dataset.labels)}
    for number, choice in enumerate(entry["choices"], 1):
        place = f"--recipe {path}: choice {number}"
        changes = recipe_file.changes(place, network, choice)
        try:
            arguments = registry.arguments(network, changes, **sizes)
        except UsageError as error:
            raise UsageError(f"{place}: {error}") from None
        x, y, z = choice["patch"]
        check_patch(f"{place}: patch", (x, y, z), network, arguments)
        choices.append(((x, y, z), arguments))
    edges = float(entry["spacing"][0]), float(entry["spacing"][1]), float(entry["spacing"][2])
    return Proposal(network, edges, entry["batch"], entry["normalisation"], tuple(choices))
