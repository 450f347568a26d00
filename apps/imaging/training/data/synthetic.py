"""A generated data set in the Decathlon's layout, for tests and in place of a real one that cannot be downloaded.

Each case is a small MR-like volume: a curved body of two touching ellipsoids (the classes) in tissue of varying
brightness, with noise, a bias field, and an intensity scale of its own.
``python -m apps.imaging.training.data.synthetic DIRECTORY``.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import numpy.typing as npt

from apps.imaging.volumes.nifti import label_header, write_labels
from common.files import write_text

CASES = 40
EDGES = ((31, 43), (40, 59), (24, 47))
"""Least and most voxels along x, y, z; those of the hippocampus set."""
NOISE = 0.08
BIAS = 0.25

Array = npt.NDArray[np.floating]


def case(random: np.random.Generator) -> tuple[npt.NDArray[np.int16], npt.NDArray[np.uint8]]:
    """Draw one image and its labels (0 background, 1 front, 2 back), both (x, y, z)."""
    shape = tuple(int(random.integers(low, high + 1)) for low, high in EDGES)
    axes = [np.linspace(-1, 1, size, dtype=np.float32) for size in shape]
    x, y, z = np.meshgrid(*axes, indexing="ij")
    centre = random.uniform(-0.12, 0.12, 3)
    bend = random.uniform(0.15, 0.35)
    height = z - centre[2] - bend * (y - centre[1]) ** 2
    front = _ellipsoid(
        x - centre[0], y - centre[1] - 0.32, height, random.uniform((0.3, 0.32, 0.3), (0.42, 0.42, 0.42))
    )
    back = _ellipsoid(
        x - centre[0], y - centre[1] + 0.3, height, random.uniform((0.22, 0.36, 0.22), (0.34, 0.48, 0.34))
    )
    labels = np.where(front < 1, 1, np.where(back < 1, 2, 0)).astype(np.uint8)
    shell = np.minimum(front, back)
    image = 0.5 + 0.35 * _waves(random, x, y, z)
    image = np.where(labels > 0, 0.68 + 0.06 * (labels == 2), np.where(shell < 1.5, 0.25, image))
    image *= 1 + BIAS * _waves(random, x / 3, y / 3, z / 3)
    image += random.normal(0, NOISE, shape)
    scale = float(random.choice([150, 600, 4000]))
    return np.clip(image * scale, 0, 32000).astype(np.int16), labels


def _ellipsoid(x: Array, y: Array, z: Array, radii: npt.NDArray[np.float64]) -> Array:
    """Squared distance from the centre in radii: less than 1 inside the ellipsoid."""
    distance: Array = (x / radii[0]) ** 2 + (y / radii[1]) ** 2 + (z / radii[2]) ** 2
    return distance


def _waves(random: np.random.Generator, x: Array, y: Array, z: Array) -> Array:
    """Smooth random structure in [-1, 1]."""
    total: Array = np.zeros_like(x)
    for _ in range(3):
        a, b, c, phase = random.uniform(-5, 5, 4)
        total += np.sin(a * x + b * y + c * z + phase)
    return total / 3


def write_sample(directory: Path, *, cases: int = CASES, seed: int = 0) -> Path:
    """Write ``imagesTr``, ``labelsTr`` and ``dataset.json`` below ``directory``; the same seed gives the same bytes."""
    training = []
    for number in range(1, cases + 1):
        image, labels = case(np.random.default_rng([seed, number]))
        name = f"sample_{number:03d}.nii.gz"
        for folder, voxels in (("imagesTr", image), ("labelsTr", labels)):
            header = label_header(np.eye(4), voxels.dtype, voxels.shape)
            with write_labels(directory / folder / name, header) as writer:
                writer.write(voxels)
        training.append({"image": f"./imagesTr/{name}", "label": f"./labelsTr/{name}"})
    description = {
        "name": "peakline sample",
        "description": "generated ellipsoid anatomy, not real data",
        "licence": "Apache-2.0",
        "tensorImageSize": "3D",
        "modality": {"0": "MRI"},
        "labels": {"0": "background", "1": "front", "2": "back"},
        "numTraining": cases,
        "training": training,
    }
    write_text(directory / "dataset.json", json.dumps(description, indent=1) + "\n")
    return directory


def main() -> None:
    """Write a data set into the folder that the command line names."""
    parser = argparse.ArgumentParser(prog="python -m apps.imaging.training.data.synthetic", description=__doc__)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--cases", type=int, default=CASES)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    write_sample(args.directory, cases=args.cases, seed=args.seed)


if __name__ == "__main__":
    main()
