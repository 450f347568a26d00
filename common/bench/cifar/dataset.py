"""CIFAR-10 as the seed's workload reads it: JPEG bytes, or decoded once; normalised where it is used.

The set lies as ``train.npz`` and ``test.npz`` with ``jpeg`` (all files back to back), ``offset`` and ``label``; it is
found through ``common.datasets`` and is never part of the repository.
"""

import io
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from common.datasets import find
from common.errors import BadInput

if TYPE_CHECKING:
    from torch import Tensor

Pixels = npt.NDArray[np.uint8]

NAME = "cifar10"
CLASSES = 10
SHAPE = (3, 32, 32)
IMAGE_BYTES = 3 * 32 * 32
MEAN = (0.4914, 0.4822, 0.4465)
DEVIATION = (0.2470, 0.2435, 0.2616)
"""By channel, of pixels between 0 and 1."""


def directory() -> Path:
    """Where the set lies.

    Raises
    ------
    BadInput
        If it is not at hand.
    """
    place = find(NAME)
    if place is None or not (place / "train.npz").is_file():
        raise BadInput(f"{NAME}: not found; set PEAKLINE_DATA to a folder that has {NAME}/train.npz and test.npz")
    return place


class Images:
    """One part of the set: as bytes that are decoded when asked for, or as pixels.

    Parameters
    ----------
    part
        ``"train"`` or ``"test"``.
    decode
        Hold pixels (3,072 bytes an image) instead of JPEG files (about 920).
    limit
        Use only so many images, evenly spaced (the file is sorted by class).
    """

    def __init__(self, part: str, *, decode: bool, limit: int | None = None) -> None:
        with np.load(directory() / f"{part}.npz") as stored:
            self._jpeg: npt.NDArray[np.uint8] | None = stored["jpeg"]
            self._offset, labels = stored["offset"], stored["label"]
        self._chosen = np.linspace(0, len(labels) - 1, min(limit or len(labels), len(labels)), dtype=np.int64)
        self.labels: npt.NDArray[np.uint8] = labels[self._chosen]
        self._pixels: Pixels | None = None
        if decode:
            self._pixels = self._decode(range(len(self)))
            self._jpeg = None

    def __len__(self) -> int:
        return len(self._chosen)

    def __getitem__(self, indices: Sequence[int] | npt.NDArray[np.int64]) -> Pixels:
        """Pixels (len(indices), 3, 32, 32), a copy."""
        return self._decode(indices) if self._pixels is None else self._pixels[np.asarray(indices)]

    def _decode(self, indices: Sequence[int] | npt.NDArray[np.int64]) -> Pixels:
        from PIL import Image

        assert self._jpeg is not None
        pixels = np.empty((len(indices), *SHAPE), np.uint8)
        for row, index in enumerate(self._chosen[np.asarray(indices)]):
            file = self._jpeg[self._offset[index] : self._offset[index + 1]]
            with Image.open(io.BytesIO(file.tobytes())) as image:
                pixels[row] = np.asarray(image).transpose(2, 0, 1)
        return pixels


def stored(part: str, *, limit: int | None = None) -> tuple[int, int]:
    """Number of images that would be used, and bytes of all JPEG files, from the archive's headers alone.

    Raises
    ------
    BadInput
        If the set is not at hand, or not what is expected.
    """
    path = directory() / f"{part}.npz"
    try:
        with zipfile.ZipFile(path) as archive:
            images, size = (_length(archive, name) for name in ("label", "jpeg"))
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise BadInput(f"{path}: not an archive of jpeg, offset and label ({error})") from None
    return min(limit or images, images), size


def _length(archive: zipfile.ZipFile, name: str) -> int:
    with archive.open(f"{name}.npy") as stream:
        np.lib.format.read_magic(stream)
        shape, _, _ = np.lib.format.read_array_header_1_0(stream)
    return int(shape[0])


def order(count: int, *, seed: int, epoch: int) -> npt.NDArray[np.int64]:
    """The order of one epoch; the same for every way of training."""
    return np.random.default_rng((seed, epoch)).permutation(count)


def normalise(pixels: "Tensor") -> "Tensor":
    """uint8 (N, 3, 32, 32) -> float32 of mean 0 and deviation 1 by channel, one tensor of that size."""
    import torch

    mean, deviation = (torch.tensor(values, device=pixels.device).view(3, 1, 1) for values in (MEAN, DEVIATION))
    return pixels.float().div_(255).sub_(mean).div_(deviation)
