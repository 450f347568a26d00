"""Series of a DICOM folder or zip as volumes: geometry from the headers of all slices, pixels one slice at a time.

A series that would silently give a wrong volume is refused (``defects``). Accepted and repaired defects are reported.
No patient's identifier is returned or printed.
"""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom.uid import DeflatedExplicitVRLittleEndian

from apps.imaging.dicom.codes import Photometric
from apps.imaging.dicom.defects import Defect, Finding, Outcome, Refusal
from apps.imaging.dicom.headers import FrameHeader, HeaderReader
from apps.imaging.dicom.pixels import NATIVE, PixelReader, check_syntax, frame_bytes, stored_dtype
from apps.imaging.dicom.regridding import Regridder, repair_bytes
from apps.imaging.dicom.selection import variants
from apps.imaging.dicom.selection.files import dicom_files, open_container
from apps.imaging.dicom.selection.volumes import LEAST_SLICES, choose_series, choose_volume, described, no_volume
from apps.imaging.dicom.slice_geometry import SliceLayout, stack
from apps.imaging.volumes.archive import Container
from apps.imaging.volumes.geometry import axis_codes
from apps.imaging.volumes.volume import LARGEST_VALUE, Affine, Shape, spacing
from common.errors import BadInput

ORIENTATION_TOLERANCE = 1e-3
"""Largest difference between direction cosines of slices of one series (0.06 degrees)."""
LEAST_BITS = 2
_HEADER_BYTES = 1 << 20
"""A parsed header and the buffers of an open file."""


@dataclass(frozen=True, slots=True)
class DicomVolume:
    """One series; made by ``open_series``."""

    container: Container
    slices: tuple[FrameHeader, ...]
    """In order along their normal."""
    shape: Shape
    affine: Affine
    dtype: np.dtype[Any]
    slope: float
    intercept: float
    layout: SliceLayout
    findings: tuple[Finding, ...]
    suv: float = 0.0
    """SUVbw of a value of 1 in the series' own unit, if its values are SUVs (``suv.in_suv``); else 0."""

    @property
    def path(self) -> Path:
        """The folder or zip."""
        return self.container.path

    @property
    def repaired(self) -> bool:
        """True if planes are interpolated between the slices."""
        return self.layout.planes > 0

    @property
    def reader_bytes(self) -> int:
        """Bytes of an open reader: one frame, its float32 form if slices are scaled one by one, and interpolation."""
        attributes = self.slices[0].attributes
        scaled = 8 * attributes.rows * attributes.columns if self.dtype.kind == "f" else 0
        repaired = repair_bytes(self.shape) if self.repaired else 0
        return _HEADER_BYTES + frame_bytes(attributes) + scaled + repaired

    @contextmanager
    def open(self) -> Iterator["DicomReader"]:
        """Open a reader at the first slice."""
        pixels = PixelReader(self.container)
        try:
            yield DicomReader(self, pixels)
        finally:
            pixels.close()

    def identity(self) -> str:
        """SHA-256 of the sorted SOPInstanceUIDs, of the repairs, of the volume where a series has several, of SUVs."""
        chosen = [finding for finding in self.findings if finding.defect is Defect.SEVERAL_VOLUMES]
        repairs = [str(finding) for finding in (*self.layout.findings, *chosen)]
        values = [f"SUVbw {self.suv:.9g}"] if self.suv else []
        lines = [*sorted({frame.instance for frame in self.slices}), *repairs, *values]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    def describe(self) -> list[str]:
        """Lines for ``imaging inspect``."""
        attributes = self.slices[0].attributes
        edges = "x".join(f"{size:.4g}" for size in spacing(self.affine))
        axes = "".join(str(code) for code in axis_codes(self.affine))
        stored = stored_dtype(attributes)
        scaled = f"slope {self.slope:g}, intercept {self.intercept:g}" if self.dtype == stored else "per slice"
        return [
            f"DICOM       {attributes.modality}, {len(self.slices)} slices",
            f"grid        {'x'.join(map(str, self.shape))} voxels of {edges} mm, {axes}",
            *self._acquired(),
            f"stored      {stored.name} ({attributes.stored} bits used), scale {scaled}",
            *(f"found       {finding}" for finding in self.findings),
        ]

    def _acquired(self) -> Iterator[str]:
        """Numbers of the acquisition of an MR image, as far as the first slice has them."""
        variant = self.slices[0].variant
        named = dict(zip(variants.NAMES.values(), variant or (), strict=False))
        units = {"echo time": " ms", "inversion time": " ms", "flip angle": " degrees"}
        parts = [
            f"{name} {value:g}{unit}" for name, unit in units.items() if isinstance(value := named.get(name), float)
        ]
        if parts:
            yield f"acquired    {', '.join(parts)}"


class DicomReader:
    """Reads the slices of a series, decoded one at a time in the order of their position."""

    def __init__(self, volume: DicomVolume, pixels: PixelReader) -> None:
        self._volume, self._pixels, self._next = volume, pixels, 0
        self._grid = Regridder(volume.layout, volume.shape, self._scaled) if volume.repaired else None

    def read(self, out: npt.NDArray[Any]) -> None:
        """Fill ``out``, (k, y, x) of the volume's dtype, with the next k planes.

        Raises
        ------
        BadInput
            If pixels are damaged, or not what the header says.
        """
        if self._grid is not None:
            self._grid.read(out)
            return
        for plane in out:
            if self._volume.dtype.kind == "f":
                plane[...] = self._scaled()
            else:
                plane[...] = self._stored()[1]

    def _stored(self) -> tuple[FrameHeader, npt.NDArray[Any]]:
        frame = self._volume.slices[self._next]
        self._next += 1
        return frame, self._pixels.read(frame)

    def _scaled(self) -> npt.NDArray[np.float32]:
        frame, stored = self._stored()
        values = stored.astype(np.float32)
        slope, intercept = scale(frame)
        values *= np.float32(slope)
        values += np.float32(intercept)
        return values


def scale(frame: FrameHeader) -> tuple[float, float]:
    """Slope and intercept of stored values; those of MONOCHROME1, whose largest value is black, also invert it."""
    if frame.attributes.photometric != Photometric.MONOCHROME1:
        return frame.slope, frame.intercept
    lowest_plus_highest = -1 if frame.attributes.signed else 2**frame.attributes.stored - 1
    return -frame.slope, frame.intercept + frame.slope * lowest_plus_highest


def open_series(
    path: Path, series: str | None = None, repair: frozenset[str] = frozenset(), volume: int | None = None
) -> DicomVolume:
    """Read all headers of a folder or zip and make the volume of one series.

    Parameters
    ----------
    path
        A folder with DICOM files directly in it, a zip with such files anywhere, or a folder inside a zip.
    series
        Number (from 1, in the order of the message) or SeriesInstanceUID, if there are several.
    repair
        Defects to interpolate away: ``tilt``, ``spacing``.
    volume
        Number, from 1, of the volume in a series of several.

    Raises
    ------
    BadInput
        No images, several series or volumes without a choice, a file that is damaged, or a series that is not one
        regular volume.
    """
    container, groups = grouped(path)
    frames, left_out = choose_series(path, groups, series)
    made = _volume(container, frames, repair, volume)
    return replace(made, findings=(*left_out, *made.findings))


def each_series(
    path: Path, repair: frozenset[str] = frozenset(), volume: int | None = None
) -> Iterator[tuple[str, DicomVolume | BadInput]]:
    """Open every series of a folder or zip that may be a volume, after one pass over the headers.

    Parameters are those of ``open_series``.

    Yields
    ------
    tuple
        The series as ``--series`` numbers it, described; its volume, or why it is none.
    """
    container, groups = grouped(path)
    for number, frames in enumerate(groups.values(), start=1):
        made: DicomVolume | BadInput
        try:
            if reason := no_volume(frames):
                raise Refusal(path, Defect.NO_VOLUME, f"left out, {reason}")
            made = _volume(container, frames, repair, volume)
        except BadInput as error:
            made = error
        yield f"{number}: {described(frames)}", made


def grouped(path: Path) -> tuple[Container, dict[str, list[FrameHeader]]]:
    """The frames of a folder or zip by SeriesInstanceUID."""
    container = open_container(path)
    headers = HeaderReader(container)
    groups: dict[str, list[FrameHeader]] = {}
    for name in dicom_files(container):
        for frame in headers.frames(name):
            groups.setdefault(frame.attributes.series, []).append(frame)
    if not groups:
        raise Refusal(path, Defect.NO_IMAGES, "no DICOM images in it")
    return container, groups


def _volume(
    container: Container, frames: Sequence[FrameHeader], repair: frozenset[str], number: int | None
) -> DicomVolume:
    path = container.path
    frames, dropped = _drop(path, frames)
    _refuse_unless_plain(path, frames)
    frames, chosen = choose_volume(path, frames, number)
    first = frames[0]
    orientation = np.array([frame.orientation for frame in frames]).mean(axis=0)
    positions = np.array([frame.position for frame in frames])
    layout = stack(path, positions, orientation, first.pixel_spacing or (1.0, 1.0), repair)
    slices = tuple(frames[index] for index in layout.order)
    scales = {(frame.slope, frame.intercept) for frame in slices}
    uniform = len(scales) == 1 and not layout.planes
    slope, intercept = scale(first) if uniform else (1.0, 0.0)
    columns, rows = first.attributes.columns + layout.grown[0], first.attributes.rows + layout.grown[1]
    return DicomVolume(
        container=container,
        slices=slices,
        shape=(columns, rows, layout.planes or len(slices)),
        affine=layout.affine,
        dtype=stored_dtype(first.attributes) if uniform else np.dtype(np.float32),
        slope=slope,
        intercept=intercept,
        layout=layout,
        findings=(*dropped, *chosen, *_accepted(slices, per_slice=len(scales) > 1), *layout.findings),
    )


def _drop(path: Path, frames: Sequence[FrameHeader]) -> tuple[Sequence[FrameHeader], list[Finding]]:
    """Leave out copies of an instance, and localizers among slices."""
    findings = []
    once = {(frame.instance, frame.number, frame.position): frame for frame in frames}
    if copies := len(frames) - len(once):
        findings.append(Finding(Defect.DUPLICATE, Outcome.REPAIR, f"{copies} copies of the same instances left out"))
    kept = [frame for frame in once.values() if not frame.attributes.localizer]
    if not kept:
        raise Refusal(path, Defect.LOCALIZER, "the series is a localizer, not a volume; --series picks another")
    if scouts := len(once) - len(kept):
        findings.append(Finding(Defect.LOCALIZER, Outcome.REPAIR, f"{scouts} localizer images left out"))
    return kept, findings


def _accepted(slices: Sequence[FrameHeader], *, per_slice: bool) -> Iterator[Finding]:
    """Findings for what is unusual about a series, but read correctly."""
    first, attributes = slices[0], slices[0].attributes
    notes = {
        Defect.MULTI_FRAME: f"{first.frames} frames in a file" if first.frames > 1 else "",
        Defect.COMPRESSED: "decoded slice by slice" if attributes.syntax not in NATIVE else "",
        Defect.SLICE_SCALE: "each slice has its own" if per_slice else "",
        Defect.MONOCHROME1: "inverted" if attributes.photometric == Photometric.MONOCHROME1 else "",
        Defect.SIGNED: "two's complement" if attributes.signed else "",
        Defect.SHORT_BITS: (
            f"{attributes.stored} of {attributes.allocated} used" if attributes.stored < attributes.allocated else ""
        ),
        Defect.POLYGLOT: "neither read nor copied" if any(frame.polyglot for frame in slices) else "",
    }
    return (Finding(defect, Outcome.ACCEPT, note) for defect, note in notes.items() if note)


def _refuse_unless_plain(path: Path, frames: Sequence[FrameHeader]) -> None:
    """Check each frame, and what must be the same in all frames."""
    first, attributes = frames[0], frames[0].attributes
    check_syntax(path, attributes)
    for frame in frames:
        _refuse_frame(path, frame, first)
    if (
        attributes.float_pixels
        or attributes.allocated not in (8, 16, 32)
        or not LEAST_BITS <= attributes.stored <= attributes.allocated
    ):
        what = "floating-point" if attributes.float_pixels else f"{attributes.stored} of {attributes.allocated} bit"
        raise Refusal(path, Defect.PIXEL_TYPE, f"{what} pixels are not supported")
    if attributes.high_bit != attributes.stored - 1:
        raise Refusal(
            path, Defect.PIXEL_TYPE, f"values of {attributes.stored} bits that end at bit {attributes.high_bit}"
        )
    if attributes.samples != 1 or attributes.photometric not in set(Photometric):
        raise Refusal(path, Defect.COLOUR, "colour images are not volumes")
    if min(first.pixel_spacing or (0.0,)) <= 0 or not attributes.rows or not attributes.columns:
        raise Refusal(path, Defect.GEOMETRY, "pixels without size")
    if attributes.syntax == DeflatedExplicitVRLittleEndian and first.frames > 1:
        raise BadInput(f"{path}: deflated multi-frame files are not read", public="DICOM transfer syntax")
    if len(frames) < LEAST_SLICES:
        raise Refusal(path, Defect.SINGLE_SLICE, "one slice is not a volume")


def _refuse_frame(path: Path, frame: FrameHeader, first: FrameHeader) -> None:
    """Refuse a frame that cannot belong to the first one's volume."""
    if frame.orientation is None or frame.pixel_spacing is None or not _finite(frame.position):
        message = "slices without ImageOrientation, ImagePosition or PixelSpacing"
        raise Refusal(path, Defect.GEOMETRY, message)
    if frame.attributes != first.attributes:
        message = "slices of different sizes, types or frames of reference in one series"
        raise Refusal(path, Defect.MIXED_SLICES, message)
    same = np.allclose(frame.orientation, first.orientation or (), atol=ORIENTATION_TOLERANCE, rtol=0)
    if not same:
        raise Refusal(path, Defect.MIXED_ORIENTATION, "slices of different orientations in one series")
    if not np.allclose(frame.pixel_spacing, first.pixel_spacing or (), rtol=1e-3):
        raise Refusal(path, Defect.MIXED_SLICES, "slices of different pixel spacings in one series")
    largest = 2.0 ** min(first.attributes.stored, 32) * abs(frame.slope) + abs(frame.intercept)
    if not (abs(frame.slope) > 0 and largest <= LARGEST_VALUE):
        message = f"RescaleSlope {frame.slope:g} and RescaleIntercept {frame.intercept:g} leave no values"
        raise Refusal(path, Defect.SCALE, message)


def _finite(position: tuple[float, ...] | None) -> bool:
    return position is not None and bool(np.isfinite(position).all())
