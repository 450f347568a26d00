"""The forms of stored images: what comes back, and in how many bytes."""

from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from apps.imaging.bench.codecs.forms import FORMS, Image

LARGEST_ERROR = {
    "float32": 0.0,
    "float16": 2**-11,
    "float16-as-is": 2**-11,
    "uint16": 0.51 / 65535,
    "png-16": 0.51 / 65535,
    "uint8": 0.51 / 255,
    "uint8-deflate": 0.51 / 255,
    "png-8": 0.51 / 255,
    "jpeg2000-lossless": 0.51 / 4095,
    "jpegls-0": 0.51 / 4095,
    "jpegls-20": 20.51 / 4095,
    "jpegls-80": 80.51 / 4095,
}
"""Of forms with a bound, as a share of the image's range."""


@pytest.fixture(scope="module")
def image(dataset: Callable[[str], Path]) -> Image:
    path = sorted((dataset("msd-hippocampus") / "imagesTr").glob("*.nii.gz"))[0]
    return nib.load(path).get_fdata(dtype=np.float32)  # type: ignore[attr-defined, no-any-return]


@pytest.mark.parametrize("name", FORMS)
def test_what_comes_back_is_within_the_form_s_error(image: Image, name: str) -> None:
    size, back = FORMS[name](image)
    assert back.shape == image.shape and back.dtype == np.float32
    errors = np.abs(back - image) / float(np.ptp(image))
    assert errors.max() <= LARGEST_ERROR.get(name, 1.0) and errors.mean() < 0.1
    assert 0 < size < image.nbytes or name == "float32"


@pytest.mark.parametrize(
    "names",
    [("jpeg-95", "jpeg-80", "jpeg-50"), ("jpeg2000-5", "jpeg2000-10", "jpeg2000-20"), ("jpegls-0", "jpegls-80")],
)
def test_fewer_bytes_cost_a_larger_error(image: Image, names: tuple[str, ...]) -> None:
    sizes, errors = [], []
    for name in names:
        size, back = FORMS[name](image)
        sizes.append(size)
        errors.append(float(np.square(back - image).mean()))
    assert sizes == sorted(sizes, reverse=True) and errors == sorted(errors)
