"""The series of a DICOM study that are the channels of a model, found by number, UID or words of their descriptions."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

from pydicom.tag import Tag
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, ImplicitVRLittleEndian

from apps.imaging.dicom.headers import HEADER_LIMIT, VALUE_LIMIT, begin, inflate, pydicom_module
from apps.imaging.dicom.selection.volumes import described, no_volume
from apps.imaging.dicom.series import grouped
from apps.imaging.volumes.archive import Container
from common.errors import BadInput, UsageError

_AFTER_NAMES = 0x00200010
"""First element behind those that ``_names`` reads."""


@dataclass(frozen=True, slots=True)
class StudySeries:
    """A series of a study, as far as choosing it needs."""

    path: Path
    """The folder or zip that it is in."""
    number: int
    """From 1, as ``--series`` numbers those of the folder."""
    uid: str
    study: str
    """StudyInstanceUID."""
    frame_of_reference: str
    description: str
    """SeriesDescription, which may name a person: it is compared, and shown nowhere."""
    shown: str
    """Grid and spacing, without any text of the header."""


def named_channels(channels: Sequence[str], given: Sequence[tuple[str, str]]) -> dict[str, str]:
    """The series that are asked for, in the order of the model's channels, which are named or numbered from 0.

    Raises
    ------
    UsageError
        A name that is none of the model's, one that is given twice, or a channel without a series.
    """
    listed = ", ".join(f"{number}={name}" for number, name in enumerate(channels))
    numbers = {name.casefold(): number for number, name in enumerate(channels)}
    series: dict[int, str] = {}
    for name, text in given:
        number = int(name) if name.isdecimal() else numbers.get(name.casefold(), -1)
        if not 0 <= number < len(channels):
            raise UsageError(f"--channel {name}: the model has no such channel; it has {listed}")
        if number in series:
            raise UsageError(f"--channel {name}: given twice")
        series[number] = text
    if missing := [name for number, name in enumerate(channels) if number not in series]:
        raise UsageError(f"--channel: no series for {', '.join(missing)}; the model has {listed}")
    return {name: series[number] for number, name in enumerate(channels)}


def list_series(path: Path) -> list[StudySeries]:
    """List the series of a folder or zip that may be volumes.

    Raises
    ------
    BadInput
        No images, or a file that is damaged.
    """
    container, groups = grouped(path)
    found = []
    for number, (uid, frames) in enumerate(groups.items(), start=1):
        if not no_volume(frames):
            study, description = _names(container, frames[0].name)
            frame = frames[0].attributes.frame_of_reference
            found.append(StudySeries(path, number, uid, study, frame, description, described(frames)))
    return found


def series_by_study(
    paths: Sequence[Path],
) -> tuple[list[list[StudySeries]], list[tuple[Path, BadInput]]]:
    """Put the series of folders and zips together by the study that they are of.

    Returns
    -------
    tuple
        The series of each study, and the paths that cannot be read, with the reason.
    """
    studies: dict[str, list[StudySeries]] = {}
    errors = []
    for path in paths:
        try:
            series = list_series(path)
            count = len({one.study for one in series})
            if count > 1:
                message = f"{count} studies in one folder; the channels of each have to be apart"
                raise BadInput(f"{path}: {message}", public="several studies in one folder")
            for one in series:
                studies.setdefault(one.study or str(path), []).append(one)
        except BadInput as error:
            errors.append((path, error))
    return list(studies.values()), errors


def choose_channels(series: Sequence[StudySeries], wanted: Mapping[str, str]) -> list[StudySeries]:
    """Choose a study's series for each channel.

    Parameters
    ----------
    series
        Of one study.
    wanted
        By channel: a number, if all series are in one folder; a UID; or text that is in the description of one series
        alone, capitals and small letters alike.

    Raises
    ------
    BadInput
        A channel for which there is no series or several, one series for two channels, or places that cannot be
        compared.
    """
    chosen: dict[str, StudySeries] = {}
    listed = "; ".join(f"{one.number}: {one.shown}" for one in series)
    for channel, text in wanted.items():
        found = _found(series, text)
        if len(found) != 1:
            how = "no series" if not found else f"{len(found)} series"
            if text.isdigit() and len({one.path for one in series}) > 1:
                how = "numbers are of one folder's series, and this study has several folders; no series"
            message = f"channel {channel}: {how} for {text!r} (a number, a UID, or words of one description); {listed}"
            raise BadInput(f"{series[0].path}: {message}", public="no series for a channel")
        (chosen[channel],) = found
    names = list(chosen)
    for number, channel in enumerate(names):
        for other in names[:number]:
            one, two = chosen[other], chosen[channel]
            if one is two:
                message = f"channels {other} and {channel} are both series {one.number}"
                raise BadInput(f"{one.path}: {message}", public="one series for two channels")
            if one.frame_of_reference != two.frame_of_reference:
                message = f"channels {other} and {channel} have different frames of reference: their places cannot be"
                message += " compared; register one to the other first"
                raise BadInput(f"{two.path}: {message}", public="frames of reference differ")
    return list(chosen.values())


def _found(series: Sequence[StudySeries], text: str) -> list[StudySeries]:
    """The series that a number, a UID or words name."""
    if exact := [one for one in series if one.uid == text]:
        return exact
    if text.isdigit() and len({one.path for one in series}) == 1:
        return [one for one in series if one.number == int(text)]
    words = re.compile(rf"(?<![a-z0-9]){re.escape(text)}(?![a-z0-9])", re.IGNORECASE)
    return [one for one in series if words.search(one.description)]


def _names(container: Container, name: str) -> tuple[str, str]:
    """StudyInstanceUID and SeriesDescription of a file."""
    from pydicom.filereader import read_dataset

    pydicom_module()
    with container.open(name) as file:
        syntax = begin(file).syntax
        stream: BinaryIO = file
        if syntax == DeflatedExplicitVRLittleEndian:
            stream = BytesIO(inflate(file, HEADER_LIMIT)[0])
        head = read_dataset(
            stream,
            syntax == ImplicitVRLittleEndian,
            syntax != ExplicitVRBigEndian,
            stop_when=lambda tag, vr, length: tag >= _AFTER_NAMES,
            defer_size=VALUE_LIMIT,
            specific_tags=[Tag(name) for name in ("SpecificCharacterSet", "StudyInstanceUID", "SeriesDescription")],
        )
        return str(head.get("StudyInstanceUID", "")), str(head.get("SeriesDescription", ""))
