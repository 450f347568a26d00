"""Standardised uptake values by body weight (SUVbw) of a PET series, by QIBA's vendor-neutral formula.

SUVbw = activity concentration in Bq/ml x weight in g / injected activity at the time to which the images are corrected.
A series whose header lacks what the formula needs is refused with the name of it.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from io import BytesIO
from typing import Any

from apps.imaging.dicom.codes import Modality
from apps.imaging.dicom.headers import HEADER_LIMIT, VALUE_LIMIT, begin, inflate, pydicom_module
from apps.imaging.dicom.selection.variants import first_item, values_of
from apps.imaging.dicom.series import DicomVolume
from apps.imaging.volumes.volume import Volume
from common.errors import BadInput

_SHARED = (
    "Units",
    "SUVType",
    "DecayCorrection",
    "CorrectedImage",
    "PatientWeight",
    "SeriesDate",
    "SeriesTime",
    "RadiopharmaceuticalInformationSequence",
)
_KEYWORDS = (*_SHARED, "AcquisitionDate", "AcquisitionTime", "AcquisitionDateTime")
_DAY = timedelta(days=1)


def in_suv(volume: Volume) -> DicomVolume:
    """The same series with SUVbw in the place of its values.

    Raises
    ------
    BadInput
        For anything but a PET series in Bq/ml (or in SUVbw) that is corrected for decay and attenuation, and one whose
        header lacks a value.
    """
    if not isinstance(volume, DicomVolume) or volume.slices[0].attributes.modality is not (
        Modality.POSITRON_EMISSION_TOMOGRAPHY
    ):
        where = f"{volume.path}: " if isinstance(volume, DicomVolume) else ""
        raise BadInput(f"{where}--suv: only a DICOM series of PET has SUVs", public="not PET")
    try:
        factor = suv_factor(_headers(volume))
    except ValueError as error:
        message = f"{volume.path}: no SUV can be computed: {error}"
        raise BadInput(message, public="no SUV") from None
    return replace(volume, slope=factor * volume.slope, intercept=factor * volume.intercept, suv=factor)


def suv_factor(headers: Iterable[Any]) -> float:
    """SUVbw of a value of 1 in the series' own unit.

    Parameters
    ----------
    headers
        Of all slices: values by keyword. Only the first is kept.

    Raises
    ------
    ValueError
        If a value is missing, or one of a kind that the formula is not for.
    """
    head: Any = None
    starts = []
    for header in headers:
        head = header if head is None else head
        for name in _SHARED:
            if str(header.get(name, "")) != str(head.get(name, "")):
                raise ValueError(f"{name} differs between its slices")
        starts.append(_acquired(header))
    units = str(head.get("Units", "")).upper()
    if units == "GML" and str(head.get("SUVType", "BW") or "BW").upper() == "BW":
        return 1.0
    if units != "BQML":
        raise ValueError(f"Units is {units or 'missing'}, not BQML")
    corrected = {str(value).upper() for value in values_of(head, "CorrectedImage")}
    if not {"ATTN", "DECY"} <= corrected:
        raise ValueError("CorrectedImage does not say ATTN and DECY")
    weight = _positive(head, "PatientWeight")
    drug = first_item(head, "RadiopharmaceuticalInformationSequence")
    if drug is None:
        raise ValueError("RadiopharmaceuticalInformationSequence is missing")
    dose = _positive(drug, "RadionuclideTotalDose")
    correction = str(head.get("DecayCorrection", "")).upper()
    if correction == "START":
        half_life = _positive(drug, "RadionuclideHalfLife")
        passed = _since_injection(head, [one for one in starts if one], drug).total_seconds()
        dose *= 2 ** (-passed / half_life)
    elif correction != "ADMIN":
        raise ValueError(f"DecayCorrection is {correction or 'missing'}, neither START nor ADMIN")
    return 1000 * weight / dose


def _since_injection(head: Any, starts: Sequence[datetime], drug: Any) -> timedelta:
    """Time from the injection to the start of the scan, to which the images are corrected.

    The start is that of the series, or of its earliest slice where that is before: the series of images that were
    processed again begins later. A time of day without a date may be of the day before.
    """
    series = _moment(head.get("SeriesDate"), head.get("SeriesTime"))
    start = min([*starts, *([series] if series else [])], default=None)
    if start is None:
        raise ValueError("SeriesTime and AcquisitionTime are missing")
    injected = _moment_of(drug.get("RadiopharmaceuticalStartDateTime"))
    if injected is not None:
        if injected > start:
            raise ValueError("RadiopharmaceuticalStartDateTime is after the scan")
        return start - injected
    injected = _moment(start.strftime("%Y%m%d"), drug.get("RadiopharmaceuticalStartTime"))
    if injected is None:
        raise ValueError("RadiopharmaceuticalStartTime is missing")
    return start - (injected if injected <= start else injected - _DAY)


def _acquired(header: Any) -> datetime | None:
    return _moment(header.get("AcquisitionDate"), header.get("AcquisitionTime")) or _moment_of(
        header.get("AcquisitionDateTime")
    )


def _moment(date: Any, time: Any) -> datetime | None:
    """A date (``20200131``) and a time (``101500.25``) as DICOM has them; ``None`` if one is missing."""
    return _moment_of(f"{date}{time}") if date and time not in (None, "") else None


def _moment_of(text: Any) -> datetime | None:
    """A date and time (``20200131101500.25``, perhaps with a zone, which all of a study share)."""
    digits = "".join(one for one in str(text or "").partition("+")[0].partition("-")[0] if one not in ":.")
    whole = digits[:14].ljust(14, "0")
    if len(digits) < 10:
        return None
    try:
        return datetime.strptime(whole, "%Y%m%d%H%M%S") + timedelta(seconds=float(f"0.{digits[14:] or 0}"))
    except ValueError:
        raise ValueError("a date or time is not one of DICOM's") from None


def _positive(values: Any, name: str) -> float:
    value = values.get(name)
    if value in (None, ""):
        raise ValueError(f"{name} is missing")
    number = float(value)
    if not 0 < number < float("inf"):
        raise ValueError(f"{name} is {number:g}")
    return number


def _headers(volume: DicomVolume) -> Iterator[Any]:
    """The values that the formula needs of each file."""
    pydicom_module()
    from pydicom.filereader import read_dataset
    from pydicom.tag import Tag
    from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, ImplicitVRLittleEndian

    for name in dict.fromkeys(frame.name for frame in volume.slices):
        with volume.container.open(name) as stream:
            syntax = begin(stream).syntax
            if syntax == DeflatedExplicitVRLittleEndian:
                stream = BytesIO(inflate(stream, HEADER_LIMIT)[0])
            yield read_dataset(
                stream,
                syntax == ImplicitVRLittleEndian,
                syntax != ExplicitVRBigEndian,
                stop_when=lambda tag, vr, length: tag >= _PIXELS,
                defer_size=VALUE_LIMIT,
                specific_tags=[Tag(keyword) for keyword in _KEYWORDS],
            )


_PIXELS = 0x7FE00000
"""First tag that is not read."""
