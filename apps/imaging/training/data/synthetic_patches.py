"""Training patches whose images are synthesised from label maps. Random choices follow from (seed, step, sample)."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from apps.imaging.training.data.augmentation import turned
from apps.imaging.training.data.label_table import LabelTable
from apps.imaging.training.data.patch_sampling import Volumes, drawn
from apps.imaging.training.data.synthesis import BEND, Spacing, Tissues, cut, paint
from apps.imaging.volumes.volume import Shape
from common.training.distributed.world import ONE, World

if TYPE_CHECKING:
    from torch import Tensor

FIELD_FACTOR, FIELD_OFFSET = (0.6, 1.4), (-0.5, 0.8)
"""Range of factor and offset of a normalised patch: a whole image has another share of air than a patch has. (Heads in
256 mm cubed, of which two thirds are air, and brains without skull: factor 0.7 to 1.1, offset -0.2 to 0.7.)"""


@dataclass(frozen=True, slots=True)
class SynthesisSampler:
    """Draws training batches from label maps that are stored as tissues, without images."""

    volumes: Volumes
    table: LabelTable
    spacing: Spacing
    """Of the patches, in millimetres."""
    patch: Shape
    batch: int
    seed: int
    mirror: str = "x"
    """Axes along which a patch may be reversed; leave out x where left and right are different classes."""
    world: World = ONE
    """The rank whose share of the batch is drawn."""

    def __call__(self, step: int) -> "list[Tensor]":
        """Draw this rank's samples of the batch of one step.

        Returns
        -------
        list
            Images (B, 1, x, y, z) as float32, and classes (B, x, y, z) as uint8.
        """
        share = [np.random.default_rng((self.seed, step, sample)) for sample in self.world.share(self.batch)]
        return drawn(share, 1, self.patch, self._one)

    def _one(self, random: np.random.Generator, image: "Tensor", label: "Tensor") -> None:
        import torch

        values, members = paint(random, self._cut(random), self.table, self.spacing)
        values *= np.float32(random.uniform(*FIELD_FACTOR))
        values += np.float32(random.uniform(*FIELD_OFFSET))
        image.copy_(torch.from_numpy(values))
        label.copy_(torch.from_numpy(members))

    def _cut(self, random: np.random.Generator) -> Tissues:
        """Cut a patch whose centre lies between two labelled voxels, so that most patches see most classes."""
        index = int(random.integers(len(self.volumes)))
        points = self.volumes.points[index]
        matrix = turned(random)
        for axis in self.mirror:
            if random.random() < 0.5:
                matrix[:, "xyz".index(axis)] *= -1
        return cut(
            random,
            lambda low, high: self.volumes.read_classes(index, low, high),
            self.volumes.shapes[index],
            matrix=matrix,
            centre=points[random.integers(len(points), size=2)].mean(0),
            patch=self.patch,
            scale=np.array([self.spacing, self.volumes.spacings[index]]),
            fill=self.table.tissue_of.get(0, 0),
            bend=float(random.uniform(0, BEND)),
        )
