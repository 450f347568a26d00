"""Compressed variants of a model that were measured beside it, as ``imaging infer --allow-quality-loss`` finds them.

The measurement is in the variant's own ``model.json``, with the digests of the model that it was made of. So no file
names another folder: variants are looked for in one folder that the user gave, and in none outside of it.
"""

import math
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from apps.imaging.models.manifest import MeasuredEntry
from apps.imaging.models.model_folder import ImagingModel, read_model
from common.errors import BadInput
from common.model_folder import MANIFEST

FOLDER = "variants"
"""Folder in a model's folder where its variants are looked for, if the user names none."""
MOST = 64
"""Most folders that are looked at."""
ALIKE = (
    *("channels", "spacing", "orientation", "intensities", "patch", "labels", "written", "convention", "mirror"),
    *("inference", "previous"),
)
"""What a variant has in common with its original: all that decides which images it takes and what its labels mean."""


@dataclass(frozen=True, slots=True)
class Variant:
    """A compressed model that may stand in for another."""

    directory: Path
    measured: MeasuredEntry

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.directory.name

    @property
    def loss(self) -> float:
        """Share of the mean Dice that it loses, at least 0."""
        return max(0.0, 1 - self.measured["dice"] / self.measured["dice_before"])

    @property
    def percent(self) -> str:
        """The smallest ``--allow-quality-loss`` that allows it: hundredths of a percent, rounded up."""
        return f"{math.ceil(round(1e4 * self.loss, 6)) / 100:.10g}%"

    def is_within(self, allowed: float) -> bool:
        """True if it loses no more than this share of the mean Dice."""
        return self.loss <= allowed + 1e-9

    @property
    def is_slower(self) -> bool:
        """True if it took longer than its original when it was measured."""
        return self.measured["seconds"] > self.measured["seconds_before"]

    def __str__(self) -> str:
        return f"variant {self.name}: {described(self.measured)}"


def described(measured: MeasuredEntry) -> str:
    """The measurement in one line."""
    dice, before = measured["dice"], measured["dice_before"]
    change = f"{abs(1 - dice / before):.2%} {'less' if dice <= before else 'more'}"
    peaks = " and ".join(f"{measured[key] / 2**20:.1f} MiB" for key in ("peak_bytes", "peak_bytes_before"))
    return (
        f"mean Dice {dice:.4f} and {before:.4f} of the original ({change}; {measured['cases']} cases, measured in"
        f" {measured['seconds']:.1f} and {measured['seconds_before']:.1f} s, at most {peaks})"
    )


def is_of(variant: ImagingModel, original: ImagingModel) -> bool:
    """True if a model was measured beside ``original``, and takes the same images and writes the same labels."""
    measured = variant.measured
    if measured is None or (measured["weights"], measured["network"]) != (
        original.weights_sha256,
        original.network_sha256,
    ):
        return False
    return all(getattr(variant, name) == getattr(original, name) for name in ALIKE)


def find_variants(folder: Path, original: ImagingModel) -> list[Variant]:
    """Find the measured variants of a model in a folder, which may be one itself; the smallest loss first.

    Parameters
    ----------
    folder
        Of the user. What a link in it leads out of it to is not read.
    """
    found = []
    for directory in _models(folder):
        try:
            model = read_model(directory)
        except BadInput:
            continue  # a model that cannot be read stands in for none
        if model.measured is not None and is_of(model, original):
            found.append(Variant(directory, model.measured))
    return sorted(found, key=lambda variant: (variant.loss, variant.name))


def _models(folder: Path) -> Iterator[Path]:
    """The model folders in a folder."""
    if (folder / MANIFEST).is_file():
        yield folder
        return
    try:
        inside = sorted(folder.iterdir())[:MOST]
    except OSError:
        return
    base = folder.resolve()
    for path in inside:
        inner = False
        with suppress(OSError, RuntimeError):  # a folder that may not be read, a link to itself
            inner = all(one.resolve().is_relative_to(base) for one in (path, *path.iterdir()))
        if inner and (path / MANIFEST).is_file():
            yield path
