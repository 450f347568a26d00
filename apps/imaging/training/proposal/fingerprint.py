"""``imaging fingerprint``: read a data set once, and propose a recipe for ``imaging train``."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from apps.imaging.training.data import facts
from apps.imaging.training.data.dataset import Dataset, LabelledCase, Warn, own_grid, read_dataset
from apps.imaging.training.data.facts import CaseFacts, Intensities
from apps.imaging.training.proposal import recipe_file, topology
from apps.imaging.training.proposal.options import FingerprintOptions
from apps.imaging.training.proposal.recipe_file import ChannelEntry, ChoiceEntry, RecipeEntry
from common.cli.session import Session
from common.errors import BadInput

READ = "read"
"""Phase of the pass over the data set."""
DEFAULT_NETWORK = "dynunet"
WIDTH = 16
"""Features of the finest level: half of nnU-Net's, whose step takes 3.3 times as long on a processor (DynUNet of four
levels, patches of 32 x 48 x 48, one thread of an AVX-512 processor; 3.4 in float32, 3.3 in bfloat16)."""
BATCH = 2
"""nnU-Net's least: with accumulated gradients the bytes of a step do not grow with it, and its time does."""


@dataclass(frozen=True, slots=True)
class FingerprintRequest:
    """The options, and the headers of the data set."""

    options: FingerprintOptions
    dataset: Dataset

    @classmethod
    def of(cls, options: FingerprintOptions, warn: Warn) -> "FingerprintRequest":
        """Read the headers.

        Raises
        ------
        BadInput
            As ``read_dataset``.
        """
        return cls(options, read_dataset(options.dataset, skip_bad=options.skip_bad, warn=warn))

    @property
    def sample(self) -> int:
        """Labelled voxels to keep of each case and channel."""
        return facts.sample_size(len(self.dataset.cases), len(self.dataset.channels))


def run(request: FingerprintRequest, session: Session) -> dict[str, Any]:
    """Read every case once and write the recipe.

    Returns
    -------
    dict
        The record's ``results``: ``cases``, ``classes``, ``spacing``, ``patches``.

    Raises
    ------
    BadInput
        The first case that cannot be used; with ``skip_bad``, only if none is left.
    """
    dataset, options = request.dataset, request.options
    cases: list[LabelledCase] = []
    found: list[CaseFacts] = []
    with (
        session.phase(READ),
        session.progress(total=len(dataset.cases), unit="case", label="reading") as bar,
    ):
        for case in dataset.cases:
            try:
                one = facts.read_facts(case, dataset, request.sample)
            except BadInput as error:
                if not options.skip_bad:
                    raise
                session.say(f"skipped: {error}")
            else:
                cases.append(case)
                found.append(one)
                for channel in one.constant:
                    session.say(f"case {case.name}: channel {channel} has one value throughout")
            bar.update()
        if not cases:
            raise BadInput("no usable case")
        recipe = propose(dataset, cases, found, options.network)
    recipe_file.write(options.output, recipe)
    for line in summary(recipe):
        session.say(line)
    return {
        "cases": len(cases),
        "classes": len(dataset.labels),
        "spacing": list(recipe["spacing"]),
        "patches": [list(choice["patch"]) for choice in recipe["choices"]],
    }


def propose(dataset: Dataset, cases: Sequence[LabelledCase], found: Sequence[CaseFacts], network: str) -> RecipeEntry:
    """Make the recipe of a data set.

    Parameters
    ----------
    cases, found
        The usable cases, and the facts of each.
    network
        One of ``recipe_file.LEVELS``.
    """
    grids = [own_grid(case) for case in cases]
    spacing = topology.target_spacing([edges for _, edges in grids], [shape for shape, _ in grids])
    median = np.median([case.shape(spacing) for case in cases], 0)
    choices: list[ChoiceEntry] = [
        {
            "patch": one.patch,
            "features": topology.widths(WIDTH, len(one.strides)),
            "strides": list(one.strides),
            "kernels": list(one.kernels),
        }
        for one in topology.topologies(spacing, [float(side) for side in median])
    ]
    return {
        "peakline_recipe": recipe_file.VERSION,
        "network": network,
        "spacing": spacing,
        "batch": BATCH,
        "normalisation": facts.intensity_operations(dataset, cases, found),  # type: ignore[typeddict-item]
        "choices": choices,
        "fingerprint": {
            "channels": [_channel(name, number, found) for number, name in enumerate(dataset.channels)],
            "classes": [
                {
                    "value": value,
                    "name": name,
                    "voxels": sum(one.voxels.get(value, 0) for one in found),
                    "cases": sum(one.voxels.get(value, 0) > 0 for one in found),
                }
                for value, name in dataset.labels.items()
            ],
            "cases": [
                {"name": case.name, "shape": shape, "spacing": _rounded(edges)}
                for case, (shape, edges) in zip(cases, grids, strict=True)
            ],
        },
    }


def _channel(name: str, number: int, found: Sequence[CaseFacts]) -> ChannelEntry:
    whole = Intensities()
    for one in found:
        whole.merge(one.channels[number])
    edges = facts.percentiles([one.channels[number].sample for one in found], facts.PERCENTILES)
    low, middle, high = edges or (None, None, None)
    known = whole.count > 0
    return {
        "name": name,
        "mean": whole.mean if known else None,
        "std": whole.deviation if known else None,
        "minimum": whole.least if known else None,
        "percentile_00_5": low,
        "median": middle,
        "percentile_99_5": high,
        "maximum": whole.largest if known else None,
    }


def _rounded(edges: tuple[float, float, float]) -> tuple[float, float, float]:
    x, y, z = (round(edge, 6) for edge in edges)
    return x, y, z


def summary(recipe: RecipeEntry) -> list[str]:
    """Lines for the person at the terminal."""
    fingerprint, choices = recipe["fingerprint"], recipe["choices"]
    shapes = np.array([case["shape"] for case in fingerprint["cases"]])
    sides = [
        f"{low}-{high}" if low != high else str(low) for low, high in zip(shapes.min(0), shapes.max(0), strict=True)
    ]
    labelled = sum(one["voxels"] for one in fingerprint["classes"])
    lines = [f"{len(shapes)} cases of {' x '.join(sides)} voxels; spacing {_by(recipe['spacing'], 'x')} mm"]
    lines += [
        f"  {one['value']:>3} {one['name']}: {one['voxels'] / labelled:.3%} of the voxels, in {one['cases']} cases"
        for one in fingerprint["classes"]
    ]
    lines += [
        f"  {one['name']}: mean {one['mean']:.4g}, deviation {one['std']:.4g}, 0.5th and 99.5th percentile "
        f"{one['percentile_00_5']:.4g} and {one['percentile_99_5']:.4g} at labelled voxels"
        for one in fingerprint["channels"]
        if one["mean"] is not None
    ]
    first, last = choices[0], choices[-1]
    return [
        *lines,
        f"{recipe['network']}, {len(choices)} patches from {_by(first['patch'], 'x')} to {_by(last['patch'], 'x')}; "
        f"strides of the first {', '.join(_by(one, 'x') for one in first['strides'])}",
    ]


def _by(values: Sequence[float], sign: str) -> str:
    return sign.join(f"{value:g}" for value in values)
