"""The preview picture: three planes through the segmentation's centre, overlay and legend."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from apps.imaging.models.model_folder import Label
from apps.imaging.volumes import nifti
from apps.imaging.volumes.geometry import AxisMapping
from apps.imaging.volumes.volume import Shape, Volume, blocks, spacing
from common.files import atomic_file

PANEL = 320
"""Pixels of the longest side of all three panels."""
OPACITY = 0.5
SHOWN_LABELS = 24
"""Most names in the legend; labels that are in the picture come first."""
_ROW = 18
_GAP = 8
_TITLES = ("sagittal", "coronal", "axial")


class Centre:
    """Running centre of gravity of all voxels that are not background."""

    def __init__(self, shape: Shape) -> None:
        self._shape = shape
        self._counts = [np.zeros(size, np.int64) for size in shape]
        self.voxels = self._planes = 0

    def write(self, slab: npt.NDArray[Any]) -> None:
        """Add the labels of the next planes, (x, y, k)."""
        inside = slab != 0
        across, along = inside.sum(axis=2), inside.sum(axis=(0, 1))
        self._counts[0] += across.sum(axis=1)
        self._counts[1] += across.sum(axis=0)
        self._counts[2][self._planes : self._planes + len(along)] += along
        self._planes += len(along)
        self.voxels += int(along.sum())

    @property
    def index(self) -> Shape:
        """Voxel index of the centre; the middle of the volume if all is background."""
        if not self.voxels:
            x, y, z = (size // 2 for size in self._shape)
        else:
            x, y, z = (int(np.dot(c, np.arange(len(c))) // self.voxels) for c in self._counts)
        return x, y, z


def write(path: Path, volume: Volume, labels_path: Path, centre: Centre, labels: Sequence[Label]) -> None:
    """Draw the picture, from one more pass over the image and over the label file."""
    import PIL.Image

    images = three_planes(volume, centre.index)
    masks = three_planes(nifti.open_nifti(labels_path), centre.index)
    low, high = np.percentile(np.concatenate([image.ravel() for image in images]), (1, 99))
    mapping, edges = AxisMapping.between(volume.affine, "RAS"), spacing(volume.affine)
    millimetres = [size * edge for size, edge in zip(volume.shape, edges, strict=True)]
    scale = PANEL / max(millimetres)
    panels = []
    for axis in range(3):
        others = [a for a in range(3) if a != axis]
        image, mask = (_upright(planes[axis], mapping, others) for planes in (images, masks))
        across, down = sorted(others, key=lambda a: mapping.axes[a])
        size = max(1, round(millimetres[across] * scale)), max(1, round(millimetres[down] * scale))
        grey = np.clip((image - low) / max(high - low, 1e-6) * 255, 0, 255).astype(np.uint8)
        panel = np.asarray(PIL.Image.fromarray(grey).resize(size, PIL.Image.Resampling.BILINEAR).convert("RGB"))
        chosen = PIL.Image.fromarray(mask.astype(np.uint16)).resize(size, PIL.Image.Resampling.NEAREST)
        panels.append((mapping.axes[axis], _overlay(panel, np.asarray(chosen), labels)))
    seen = {int(value) for mask in masks for value in np.unique(mask)}
    named = sorted(labels[1:], key=lambda label: label.value not in seen)
    with atomic_file(path) as draft:
        _compose([panel for _, panel in sorted(panels, key=lambda p: p[0])], named, centre).save(draft, format="PNG")


def three_planes(volume: Volume, index: Shape) -> list[npt.NDArray[np.float32]]:
    """The planes x = i, y = j and z = k of a volume, in one pass.

    Parameters
    ----------
    index
        (i, j, k).

    Returns
    -------
    list of arrays
        float32, (y, z), (x, z) and (x, y); values that are not finite are zero or the largest.
    """
    x, y, z = volume.shape
    planes = [np.empty((y, z), np.float32), np.empty((x, z), np.float32), np.empty((x, y), np.float32)]
    start = 0
    for block in blocks(volume):
        stop = start + len(block)
        planes[0][:, start:stop] = block[:, :, index[0]].T
        planes[1][:, start:stop] = block[:, index[1], :].T
        if start <= index[2] < stop:
            planes[2][...] = block[index[2] - start].T
        start = stop
    return [np.nan_to_num(plane) for plane in planes]


def _upright(plane: npt.NDArray[Any], mapping: AxisMapping, axes: list[int]) -> npt.NDArray[Any]:
    """Turn a plane over two file axes as radiologists view it: superior or anterior up, the patient's right left."""
    steps = tuple(slice(None, None, -1) if mapping.flips[axis] else slice(None) for axis in axes)
    turned = plane[steps]
    if mapping.axes[axes[0]] > mapping.axes[axes[1]]:
        turned = turned.T
    return np.ascontiguousarray(turned[::-1, ::-1].T)


def _overlay(panel: npt.NDArray[np.uint8], mask: npt.NDArray[Any], labels: Sequence[Label]) -> npt.NDArray[np.uint8]:
    result = panel.astype(np.float32)
    for label in labels[1:]:
        inside = mask == label.value
        result[inside] = (1 - OPACITY) * result[inside] + OPACITY * np.asarray(label.color, np.float32)
    return result.astype(np.uint8)


def _compose(panels: Sequence[npt.NDArray[np.uint8]], labels: Sequence[Label], centre: Centre) -> Any:
    import PIL.Image
    import PIL.ImageDraw
    import PIL.ImageFont

    font = PIL.ImageFont.load_default(12)
    named = labels[:SHOWN_LABELS]
    width = sum(panel.shape[1] for panel in panels) + _GAP * (len(panels) + 1)
    columns = max(1, width // 160)
    top = _ROW + max(panel.shape[0] for panel in panels) + _GAP
    height = top + _ROW * (-(-len(named) // columns) + 1)
    picture = PIL.Image.new("RGB", (width, height), (16, 16, 16))
    draw = PIL.ImageDraw.Draw(picture)
    left = _GAP
    for title, panel in zip(_TITLES, panels, strict=True):
        draw.text((left, 2), title, fill=(200, 200, 200), font=font)
        picture.paste(PIL.Image.fromarray(panel), (left, _ROW))
        left += panel.shape[1] + _GAP
    for number, label in enumerate(named):
        x, y = _GAP + number % columns * 160, top + number // columns * _ROW
        draw.rectangle((x, y + 2, x + 12, y + 14), fill=label.color)
        draw.text((x + 18, y), label.name[:22], fill=(230, 230, 230), font=font)
    note = "research use, not a medical device" if centre.voxels else "nothing was found; research use"
    if left_out := len(labels) - len(named):
        note = f"and {left_out} more classes; {note}"
    draw.text((_GAP, height - _ROW + 2), note, fill=(130, 130, 130), font=font)
    return picture
