"""CIFAR-10 as JPEG bytes or as decoded pixels; a batch is normalised when it is used.

The data set consists of ``train.npz`` and ``test.npz`` with the arrays ``jpeg`` (all files concatenated), ``offset``
and ``label``. ``common.datasets`` finds it; it is never part of the repository.
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
"""Mean and standard deviation of each channel, of pixels between 0 and 1."""


def directory() -> Path:
    """Return the folder of the data set.

    Raises
    ------
    BadInput
        If it cannot be found.
    """
    folder = find(NAME)
    if folder is None or not (folder / "train.npz").is_file():
        raise BadInput(f"{NAME}: not found; set PEAKLINE_DATA to a folder that has {NAME}/train.npz and test.npz")
    return folder


class Images:
    """The training or the test images, stored as JPEG bytes that are decoded on access, or as pixels.

    Parameters
    ----------
    part
        ``"train"`` or ``"test"``.
    decode
        Store pixels (3,072 bytes per image) instead of JPEG files (about 920).
    limit
        Use only this many images, evenly spaced (the file is sorted by class).

    Raises
    ------
    BadInput
        If the data set cannot be found.
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
        """Return a copy of the pixels, uint8 (len(indices), 3, 32, 32)."""
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
    """Read the number of images used and the bytes of all JPEG files from the archive's headers alone.

    Raises
    ------
    BadInput
        If the data set cannot be found or lacks one of its arrays.
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
    """Return the order of the samples in one epoch, int64 (count,); the plain and the controlled run share it."""
    return np.random.default_rng((seed, epoch)).permutation(count)


def normalise(pixels: "Tensor") -> "Tensor":
    """Normalise uint8 (N, 3, 32, 32) to float32 of mean 0 and deviation 1 per channel, allocating one such tensor."""
    import torch

    mean, deviation = (torch.tensor(values, device=pixels.device).view(3, 1, 1) for values in (MEAN, DEVIATION))
    return pixels.float().div_(255).sub_(mean).div_(deviation)
