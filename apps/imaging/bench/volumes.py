"""Reads whole volumes into memory, for benchmarks and tests; the application itself never does."""

from pathlib import Path

import numpy as np
import numpy.typing as npt

from apps.imaging.volumes.nifti import open_nifti
from apps.imaging.volumes.volume import Affine, scaled


def read_whole(path: Path) -> tuple[npt.NDArray[np.float32], Affine]:
    """Read a NIfTI file: scaled voxels, float32 (x, y, z), and its affine."""
    volume = open_nifti(path)
    x, y, z = volume.shape
    stored = np.empty((z, y, x), volume.dtype)
    with volume.open() as reader:
        reader.read(stored)
    return scaled(volume, stored).transpose(2, 1, 0), volume.affine
