"""Forms in which an image can be stored: smaller numbers, image codecs, fewer voxels; each with its way back."""

import io
import zlib
from collections.abc import Callable, Sequence
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

Image = npt.NDArray[np.float32]
"""(x, y, z), in the scale of the file."""
Form = Callable[[Image], tuple[int, Image]]
"""Stores an image; returns the bytes that it takes and the image that is read back."""
Planes = Sequence[npt.NDArray[np.unsignedinteger]]

LEVEL = 6
"""Of zlib, as in a .nii.gz."""


def levels(image: Image, bits: int) -> tuple[npt.NDArray[np.uint16], float, float]:
    """Spread an image's range over whole numbers of so many bits.

    Returns
    -------
    tuple
        The numbers, and the scale and offset that lead back.

    Examples
    --------
    >>> stored, scale, offset = levels(np.array([[[-1.0, 0.0, 1.0]]], np.float32), 8)
    >>> stored.tolist(), offset
    ([[[0, 128, 255]]], -1.0)
    """
    low, high = float(image.min()), float(image.max())
    scale = (high - low) / (2**bits - 1) or 1.0
    return np.rint((image - low) / scale).astype(np.uint16), scale, low


def _numbers(dtype: str) -> Form:
    def form(image: Image) -> tuple[int, Image]:
        stored = image.astype(dtype)
        return stored.nbytes, stored.astype(np.float32)

    return form


def _normalised(image: Image) -> tuple[int, Image]:
    """Half precision of mean 0 and standard deviation 1, as ``imaging train --set store=float16`` has it."""
    mean, deviation = image.mean(dtype=np.float64), float(image.std(dtype=np.float64)) or 1.0
    stored = ((image - mean) / deviation).astype(np.float16)
    return stored.nbytes, (stored.astype(np.float64) * deviation + mean).astype(np.float32)


def _whole_numbers(bits: int, *, deflated: bool = False) -> Form:
    def form(image: Image) -> tuple[int, Image]:
        stored, scale, offset = levels(image, bits)
        packed = stored.astype(np.uint8) if bits <= 8 else stored
        size = len(zlib.compress(packed.tobytes(), LEVEL)) if deflated else packed.nbytes
        return size, (stored * scale + offset).astype(np.float32)

    return form


def _by_plane(
    bits: int, codec: Callable[[npt.NDArray[np.unsignedinteger]], tuple[int, npt.NDArray[np.generic]]]
) -> Form:
    """Each plane along z by a codec of two-dimensional images."""

    def form(image: Image) -> tuple[int, Image]:
        stored, scale, offset = levels(image, bits)
        planes = np.moveaxis(stored.astype(np.uint8) if bits <= 8 else stored, 2, 0)
        size, back = 0, np.empty(planes.shape, np.float32)
        for plane, out in zip(planes, back, strict=True):
            length, out[...] = codec(np.ascontiguousarray(plane))
            size += length
        return size, np.moveaxis(back * np.float32(scale) + np.float32(offset), 0, 2)

    return form


def _pillow(
    kind: str, **options: int
) -> Callable[[npt.NDArray[np.unsignedinteger]], tuple[int, npt.NDArray[np.generic]]]:
    def codec(plane: npt.NDArray[np.unsignedinteger]) -> tuple[int, npt.NDArray[np.generic]]:
        from PIL import Image as Pillow

        stream = io.BytesIO()
        Pillow.fromarray(plane).save(stream, kind, **options)
        stream.seek(0)
        return len(stream.getvalue()), np.asarray(Pillow.open(stream))

    return codec


def _jpeg_2000(ratio: float) -> Callable[[npt.NDArray[np.unsignedinteger]], tuple[int, npt.NDArray[np.generic]]]:
    def codec(plane: npt.NDArray[np.unsignedinteger]) -> tuple[int, npt.NDArray[np.generic]]:
        from openjpeg.utils import decode, encode_array

        ratios = [ratio] if ratio > 1 else None
        stream = encode_array(plane, bits_stored=12, compression_ratios=ratios)
        return len(stream), decode(stream)

    return codec


def _jpeg_ls(error: int) -> Callable[[npt.NDArray[np.unsignedinteger]], tuple[int, npt.NDArray[np.generic]]]:
    def codec(plane: npt.NDArray[np.unsignedinteger]) -> tuple[int, npt.NDArray[np.generic]]:
        import jpeg_ls

        stream = np.frombuffer(bytes(jpeg_ls.encode_array(plane, lossy_error=error)), np.uint8)
        return stream.size, jpeg_ls.decode(stream)

    return codec


def halved(image: Image) -> tuple[int, Image]:
    """Half the voxels along each axis, each the mean of those it stands for; back by linear interpolation."""
    from apps.imaging.volumes.geometry import resample

    x, y, z = (-(-size // 2) for size in image.shape)
    small = resample(image, (x, y, z))
    return small.nbytes, resample(small, image.shape)


FORMS: MappingProxyType[str, Form] = MappingProxyType(
    {
        "float32": _numbers("f4"),
        "float16": _normalised,
        "float16-as-is": _numbers("f2"),
        "uint16": _whole_numbers(16),
        "uint8": _whole_numbers(8),
        "uint8-deflate": _whole_numbers(8, deflated=True),
        "png-16": _by_plane(16, _pillow("PNG")),
        "png-8": _by_plane(8, _pillow("PNG")),
        "jpeg-95": _by_plane(8, _pillow("JPEG", quality=95)),
        "jpeg-80": _by_plane(8, _pillow("JPEG", quality=80)),
        "jpeg-50": _by_plane(8, _pillow("JPEG", quality=50)),
        "jpeg2000-lossless": _by_plane(12, _jpeg_2000(1)),
        "jpeg2000-5": _by_plane(12, _jpeg_2000(5)),
        "jpeg2000-10": _by_plane(12, _jpeg_2000(10)),
        "jpeg2000-20": _by_plane(12, _jpeg_2000(20)),
        "jpegls-0": _by_plane(12, _jpeg_ls(0)),
        "jpegls-20": _by_plane(12, _jpeg_ls(20)),
        "jpegls-80": _by_plane(12, _jpeg_ls(80)),
        "half": halved,
    }
)
"""By name. The numbers after JPEG are its quality, after JPEG 2000 the ratio that is asked for, after JPEG-LS the
largest error in 1/4095 of the range."""
