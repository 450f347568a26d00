"""The preview picture: three planes through the segmentation's centre, overlay, sides, scale and legend."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from apps.imaging.models.model_folder import Label
from apps.imaging.volumes import nifti
from apps.imaging.volumes.geometry import AxisMapping
from apps.imaging.volumes.volume import Affine, Shape, Volume, blocks, spacing
from common.files import atomic_file

PANEL = 320
"""Pixels of the longest side of all three panels."""
OPACITY = 0.5
SHOWN_LABELS = 24
"""Most names in the legend; labels that are in the picture come first."""
SLANTED = 0.25
"""A side has a second letter where its direction is more than about 15 degrees off: ``RA``."""
LONGEST_BAR = 0.45
"""Share of a panel's width that the scale bar takes at most."""
_ROW = 18
_GAP = 8
_NARROWEST = 124
"""Pixels of a column at least, so that its title fits."""
_TITLES = ("sagittal", "coronal", "axial")
_SIDES = ("RL", "AP", "SI")
_WHITE, _BLACK, _YELLOW = (255, 255, 255), (0, 0, 0), (255, 214, 10)


@dataclass(frozen=True, slots=True)
class Panel:
    """One plane, ready to be drawn."""

    image: npt.NDArray[np.uint8]
    """(down, across, 3)."""
    title: str
    place: str
    """Which slice it is, and where."""
    left: str
    """Letter of the patient's side at the left edge; at the right one is the opposite."""
    top: str
    found: bool
    """True if a label is in it."""


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
    panels: list[tuple[int, Panel]] = []
    for axis in range(3):
        others = [a for a in range(3) if a != axis]
        image, mask = (_upright(planes[axis], mapping, others) for planes in (images, masks))
        across, down = sorted(others, key=lambda a: mapping.axes[a])
        size = max(1, round(millimetres[across] * scale)), max(1, round(millimetres[down] * scale))
        grey = np.clip((image - low) / max(high - low, 1e-6) * 255, 0, 255).astype(np.uint8)
        panel = np.asarray(PIL.Image.fromarray(grey).resize(size, PIL.Image.Resampling.BILINEAR).convert("RGB"))
        chosen = PIL.Image.fromarray(mask.astype(np.uint16)).resize(size, PIL.Image.Resampling.NEAREST)
        number = mapping.axes[axis]
        drawn = Panel(
            image=_overlay(panel, np.asarray(chosen), labels),
            title=_TITLES[number],
            place=slice_place(volume, centre.index, axis, number),
            left=side_letters(_towards(volume.affine, mapping, across)),
            top=side_letters(_towards(volume.affine, mapping, down)),
            found=bool(mask.any()),
        )
        panels.append((number, drawn))
    seen = {int(value) for mask in masks for value in np.unique(mask)}
    named = sorted(labels[1:], key=lambda label: label.value not in seen)
    with atomic_file(path) as draft:
        ordered = [panel for _, panel in sorted(panels, key=lambda p: p[0])]
        _compose(ordered, named, centre, scale).save(draft, format="PNG")


def _towards(affine: Affine, mapping: AxisMapping, axis: int) -> npt.NDArray[np.float64]:
    """Direction in the patient, x to the right, y anterior, z superior, in which a panel's left or upper edge lies."""
    column = affine[:3, axis] / np.linalg.norm(affine[:3, axis])
    return -column if mapping.flips[axis] else column


def side_letters(direction: npt.NDArray[np.float64]) -> str:
    """Letters of the patient's side in a direction, the nearest first.

    Parameters
    ----------
    direction
        Unit vector, x to the right, y anterior, z superior.

    Examples
    --------
    >>> side_letters(np.array([-1.0, 0.0, 0.0])), side_letters(np.array([0.0, 0.9, -0.43]))
    ('L', 'AI')
    """
    order = sorted(range(3), key=lambda axis: -abs(direction[axis]))
    return "".join(_SIDES[axis][int(direction[axis] < 0)] for axis in order if abs(direction[axis]) > SLANTED)


def opposite(letters: str) -> str:
    """The other side.

    Examples
    --------
    >>> opposite("AI")
    'PS'
    """
    return "".join(next(pair[1 - pair.index(one)] for pair in _SIDES if one in pair) for one in letters)


def slice_place(volume: Volume, index: Shape, axis: int, patient: int) -> str:
    """Number of a slice, from 1, and where it cuts the patient's axis.

    Parameters
    ----------
    index
        A voxel in it.
    axis, patient
        The file's axis across it, and the patient's that is nearest: 0 to the right, 1 anterior, 2 superior.
    """
    millimetres = float((volume.affine @ [*index, 1])[patient])
    side = _SIDES[patient][int(millimetres < 0)]
    return f"{index[axis] + 1}/{volume.shape[axis]}  {side} {abs(millimetres):.1f} mm"


def bar_millimetres(width: float) -> float:
    """Length of a scale bar: the largest of 1, 2, 5, 10, 20, ... that takes at most its share of ``width`` mm.

    Examples
    --------
    >>> bar_millimetres(350.0), bar_millimetres(30.0), bar_millimetres(1.0)
    (100.0, 10.0, 0.2)
    """
    longest = LONGEST_BAR * width
    decade = 10.0 ** np.floor(np.log10(longest))
    return float(round(max(step * decade for step in (1, 2, 5) if step * decade <= longest), 9))


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


def _compose(panels: Sequence[Panel], labels: Sequence[Label], centre: Centre, scale: float) -> Any:
    """Draw panels next to each other, with the legend below.

    Parameters
    ----------
    scale
        Pixels of a millimetre.
    """
    import PIL.Image
    import PIL.ImageDraw
    import PIL.ImageFont

    font = PIL.ImageFont.load_default(12)
    named = labels[:SHOWN_LABELS]
    columns_of = [max(_NARROWEST, panel.image.shape[1]) for panel in panels]
    width = sum(columns_of) + _GAP * (len(panels) + 1)
    columns = max(1, width // 160)
    tallest = max(panel.image.shape[0] for panel in panels)
    top = 2 * _ROW + tallest + _GAP
    height = top + _ROW * (-(-len(named) // columns) + 1)
    picture = PIL.Image.new("RGB", (width, height), (16, 16, 16))
    draw = PIL.ImageDraw.Draw(picture)
    left = _GAP
    for column, panel in zip(columns_of, panels, strict=True):
        draw.text((left, 2), panel.title, fill=(200, 200, 200), font=font)
        draw.text((left, _ROW), panel.place, fill=(150, 150, 150), font=font)
        picture.paste(PIL.Image.fromarray(panel.image), (left, 2 * _ROW))
        _mark(draw, panel, left, 2 * _ROW, font)
        if centre.voxels and not panel.found:
            down = panel.image.shape[0]
            below = 2 * _ROW + (down + _ROW if down + _ROW <= tallest else down / 2)
            _write(draw, (left + panel.image.shape[1] / 2, below), "no label in this slice", "mm", font, _YELLOW)
        left += column + _GAP
    last = panels[-1].image
    bar = bar_millimetres(last.shape[1] / scale)
    x, y = left - columns_of[-1] - _GAP + 4, 2 * _ROW + last.shape[0] - 5
    draw.rectangle((x - 1, y - 3, x + round(bar * scale) + 1, y + 1), fill=_BLACK)
    draw.rectangle((x, y - 2, x + round(bar * scale), y), fill=_WHITE)
    _write(draw, (x, y - 4), f"{bar:g} mm", "lb", font, _WHITE)
    if not centre.voxels:
        large = PIL.ImageFont.load_default(28)
        _write(draw, (width / 2, 2 * _ROW + tallest / 2), "nothing found", "mm", large, _YELLOW)
    for number, label in enumerate(named):
        x, y = _GAP + number % columns * 160, top + number // columns * _ROW
        draw.rectangle((x, y + 2, x + 12, y + 14), fill=label.color)
        draw.text((x + 18, y), label.name[:22], fill=(230, 230, 230), font=font)
    note = "research use, not a medical device"
    if left_out := len(labels) - len(named):
        note = f"and {left_out} more classes; {note}"
    draw.text((_GAP, height - _ROW + 2), note, fill=(130, 130, 130), font=font)
    return picture


def _mark(draw: Any, panel: Panel, left: int, top: int, font: Any) -> None:
    """Write the letters of a panel's four sides."""
    down, across, _ = panel.image.shape
    right, bottom, middle, centre = left + across, top + down, top + down / 2, left + across / 2
    _write(draw, (left + 3, middle), panel.left, "lm", font, _WHITE)
    _write(draw, (right - 3, middle), opposite(panel.left), "rm", font, _WHITE)
    if down < 3 * _ROW:  # in which they would cover each other
        return
    _write(draw, (centre, top + 2), panel.top, "ma", font, _WHITE)
    _write(draw, (centre, bottom - 2), opposite(panel.top), "md", font, _WHITE)


def _write(draw: Any, place: tuple[float, float], text: str, anchor: str, font: Any, color: tuple[int, ...]) -> None:
    """Write text that can be read on any image."""
    draw.text(place, text, fill=color, font=font, anchor=anchor, stroke_width=1, stroke_fill=_BLACK)
