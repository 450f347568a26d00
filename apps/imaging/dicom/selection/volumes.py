"""The frames of a folder that are the volume: choice of a series, and of a volume where a series has several."""

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path

import numpy as np

from apps.imaging.dicom.defects import Defect, Finding, Outcome, Refusal
from apps.imaging.dicom.headers import FrameHeader
from apps.imaging.dicom.selection.variants import NAMES
from common.errors import BadInput

Frames = Sequence[FrameHeader]

LEAST_SLICES = 2
SHOWN_VALUES = 4
"""Values of what differs between volumes that a message lists."""


def choose_series(path: Path, groups: Mapping[str, Frames], series: str | None) -> tuple[Frames, list[Finding]]:
    """Choose a series of a folder: the one asked for, the only one, or the only one that is a volume.

    Parameters
    ----------
    groups
        Frames by SeriesInstanceUID.
    series
        Number from 1, or UID.

    Raises
    ------
    BadInput
        Several volumes and no choice, or no such series.
    """
    uids = list(groups)
    listed = "; ".join(f"{number}: {described(groups[uid])}" for number, uid in enumerate(uids, 1))
    if series is not None:
        if series.isdigit() and 1 <= int(series) <= len(uids):
            series = uids[int(series) - 1]
        if series not in groups:
            raise BadInput(f"{path}: no series {series!r}; there are {listed}", public="no such series")
        return groups[series], []
    volumes = [uid for uid in uids if not no_volume(groups[uid])]
    if len(groups) > 1 and not volumes:
        raise Refusal(path, Defect.NO_VOLUME, f"no series is a volume ({listed})")
    if len(volumes) > 1:
        message = f"{len(groups)} series ({listed}); --series N|UID picks one"
        raise BadInput(f"{path}: {message}", public="several series")
    chosen = volumes[0] if volumes else uids[0]
    rest = [
        Finding(Defect.NO_VOLUME, Outcome.REPAIR, f"series {number} left out ({described(groups[uid])})")
        for number, uid in enumerate(uids, 1)
        if uid != chosen
    ]
    return groups[chosen], rest


def no_volume(frames: Frames) -> str:
    """The reason why frames cannot be a volume; empty if they may be one."""
    if all(frame.attributes.localizer for frame in frames):
        return "localizer"
    if all(frame.orientation is None or frame.position is None for frame in frames):
        return "without positions"
    if all(frame.attributes.samples != 1 for frame in frames):
        return "colour"
    return "one slice" if len(frames) < LEAST_SLICES else ""


def described(frames: Frames) -> str:
    """A series for a list, without any text of its header: grid, spacing, echo times, and why it is no volume.

    >>> described(())
    'no slices'
    """
    if not frames:
        return "no slices"
    first = frames[0]
    parts = [str(first.attributes.modality), f"{len(frames)} slices"]
    parts.append(f"{first.attributes.columns}x{first.attributes.rows} pixels")
    if first.pixel_spacing:
        parts[-1] += f" of {first.pixel_spacing[1]:.4g}x{first.pixel_spacing[0]:.4g} mm"
    if gap := _gap(frames):
        parts.append(f"{gap:.4g} mm apart")
    index = list(NAMES).index("EchoTime")
    echoes = sorted({float(value) for one in frames if one.variant and (value := one.variant[index]) is not None})
    if echoes:
        shown = ", ".join(f"{value:g}" for value in echoes[:SHOWN_VALUES])
        parts.append(f"echo time {shown}{', ...' if len(echoes) > SHOWN_VALUES else ''} ms")
    reason = no_volume(frames)
    return ", ".join([*parts, reason] if reason else parts)


def _gap(frames: Frames) -> float:
    """The usual distance between slices in millimetres; 0 if there is none."""
    if any(frame.position is None or frame.orientation is None for frame in frames):
        return 0.0
    orientation = np.array(frames[0].orientation)
    along = np.array([frame.position for frame in frames]) @ np.cross(orientation[:3], orientation[3:])
    gaps = np.diff(np.unique(along.round(2)))
    return float(np.median(gaps)) if len(gaps) else 0.0


def choose_volume(path: Path, frames: Frames, number: int | None) -> tuple[Frames, list[Finding]]:
    """Choose a volume of a series whose frames lie at the same places several times.

    Parameters
    ----------
    number
        From 1, in the order of what differs.

    Returns
    -------
    tuple
        Its frames, and what was chosen; all frames of a series of one volume.

    Raises
    ------
    BadInput
        Several volumes without a choice, or no such volume.
    """
    count = _repetitions(frames)
    volumes, by, values = _apart(frames, count)
    if count > 1 and volumes and number is None:
        shown = ", ".join(values[:SHOWN_VALUES]) + (", ..." if len(values) > SHOWN_VALUES else "")
        apart = f"which differ by {by}" + (f" ({shown})" if shown else "")
        message = (
            f"{count} volumes of {len(volumes[0])} slices in one series, {apart}; --volume K (1 to {count}) picks one"
        )
        raise Refusal(path, Defect.SEVERAL_VOLUMES, message)
    if number is None or (number == 1 and not volumes):
        return frames, []
    if not 1 <= number <= len(volumes):
        there = f"there are {len(volumes)}" if volumes else "the series is one volume"
        raise BadInput(f"{path}: no volume {number}; {there}", public="no such volume")
    value = f", {by} {values[number - 1]}" if values else f", by {by}"
    note = f"volume {number} of {count}{value}"
    return volumes[number - 1], [Finding(Defect.SEVERAL_VOLUMES, Outcome.ACCEPT, note)]


def _place(frame: FrameHeader) -> tuple[float, ...] | None:
    """A frame's position to a hundredth of a millimetre."""
    return None if frame.position is None else tuple(round(value, 2) for value in frame.position)


def _repetitions(frames: Frames) -> int:
    """How often each place occurs, if all occur as often; else 1."""
    counts = set(Counter(map(_place, frames)).values())
    return counts.pop() if len(counts) == 1 and None not in map(_place, frames) else 1


def _apart(frames: Frames, count: int) -> tuple[list[list[FrameHeader]], str, list[str]]:
    """The volumes of a series in order, what they differ by, and its values if they may be shown."""
    if count < 2:
        return [], "", []
    for index, name in enumerate(NAMES.values()):
        groups: dict[Hashable, list[FrameHeader]] = {}
        for frame in frames:
            groups.setdefault(frame.variant[index] if frame.variant else None, []).append(frame)
        if len(groups) == count and all(len({*map(_place, group)}) == len(group) for group in groups.values()):
            if len({len(group) for group in groups.values()}) > 1:
                continue
            ordered = sorted(groups, key=lambda value: (isinstance(value, str), value is not None, value or 0))
            shown = [f"{value:g}" if isinstance(value, float) else "none" for value in ordered]
            texts = any(isinstance(value, str) for value in ordered)
            return [groups[value] for value in ordered], name, [] if texts else shown
    places: dict[Hashable, list[FrameHeader]] = {}
    for frame in sorted(frames, key=lambda frame: (frame.instance_number, frame.number)):
        places.setdefault(_place(frame), []).append(frame)
    return [list(group) for group in zip(*places.values(), strict=True)], "the order of InstanceNumber", []
