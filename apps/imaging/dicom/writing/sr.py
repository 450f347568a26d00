"""A study's measurements as a DICOM structured report (TID 1500), next to the SEG that it refers to."""

from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

from apps.imaging.dicom import part10
from apps.imaging.dicom.codes import Code, Modality
from apps.imaging.dicom.derived import dataset_of, without_warnings
from apps.imaging.dicom.series import DicomVolume
from apps.imaging.dicom.writing.seg_header import CHILD_BYTES, made_by_child
from apps.imaging.dicom.writing.sr_header import CHILD, sr_question
from apps.imaging.models.model_folder import ImagingModel
from common.files import atomic_file

SEGMENT_BYTES = 100 << 10
"""Bytes of the group of one segment as pydicom's objects (measured 82 kB with six measures)."""
_GROUPS, _GROUP = "126010", "125007"
"""Codes of the containers of all measurements, and of a segment's."""


class Measure(NamedTuple):
    """What is measured of each segment."""

    column: str
    """Its name in the statistics."""
    name: Code
    unit: Code
    way: Code | None = None
    """Which value of the segment's voxels it is."""


_VOLUME = Measure("volume_ml", Code("SCT", "118565006", "Volume"), Code("UCUM", "cm3", "cubic centimeter"))
_WAYS = {
    "mean": Code("SCT", "373098007", "Mean"),
    "sd": Code("SCT", "386136009", "Standard Deviation"),
    "min": Code("SCT", "255605001", "Minimum"),
    "median": Code("SCT", "373099004", "Median"),
    "max": Code("SCT", "56851009", "Maximum"),
}
_QUANTITIES = {
    Modality.COMPUTED_TOMOGRAPHY: (
        Code("DCM", "112031", "Attenuation Coefficient"),
        Code("UCUM", "[hnsf'U]", "Hounsfield unit"),
    ),
    Modality.MAGNETIC_RESONANCE: (Code("DCM", "110852", "MR signal intensity"), Code("UCUM", "1", "no units")),
}
"""What the values of an image are, where the modality says it."""
_SUV = (
    Code("DCM", "126401", "SUVbw"),
    Code("UCUM", "{SUVbw}g/ml", "Standardized Uptake Value body weight"),
)


def measures_of(volume: DicomVolume) -> list[Measure]:
    """The volume, and statistics of the intensities where the modality says what they are."""
    quantity = _SUV if volume.suv else _QUANTITIES.get(volume.slices[0].attributes.modality)
    return [_VOLUME, *(Measure(column, *quantity, way) for column, way in _WAYS.items() if quantity)]


def sr_template(volume: DicomVolume, model: ImagingModel, key: str, kind: str) -> bytes:
    """Have a report made whose numbers are 0; raises as ``seg_header.seg_template``."""
    measures = [measure[1:] for measure in measures_of(volume)]
    return made_by_child(CHILD, sr_question(volume, model, key, kind, measures), volume, "SR")


def write_sr(path: Path, volume: DicomVolume, template: bytes, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write the report.

    Parameters
    ----------
    template
        From ``sr_template``.
    rows
        The statistics, one for each segment. Segments without a voxel are left out, unless none has one: then each has
        the volume 0.
    """
    import pydicom

    with without_warnings():
        dataset: Any = pydicom.dcmread(BytesIO(template))
        measures, found = measures_of(volume), any(row["voxels"] for row in rows)
        (container,) = [item for item in dataset.ContentSequence if _code(item) == _GROUPS]
        groups = [item for item in container.ContentSequence if _code(item) == _GROUP]
        kept = []
        for group, row in zip(groups, rows, strict=True):
            numbers = [item for item in group.ContentSequence if item.ValueType == "NUM"]
            for item, measure in zip(numbers, measures, strict=True):
                if row[measure.column] is None:
                    group.ContentSequence.remove(item)
                else:
                    _set(item, float(row[measure.column]))
            if row["voxels"] or not found:
                kept.append(group)
        container.ContentSequence = kept
        _refer(dataset, volume)
        with atomic_file(path) as draft, draft.open("wb") as stream:
            part10.begin_file(stream, dataset.file_meta)
            stream.write(part10.encoded(dataset))


def _code(item: Any) -> str:
    return str(item.ConceptNameCodeSequence[0].CodeValue)


def _set(item: Any, value: float) -> None:
    (measured,) = item.MeasuredValueSequence
    measured.NumericValue = f"{value:.10g}"
    if "FloatingPointValue" in measured:
        measured.FloatingPointValue = value


def _refer(dataset: Any, volume: DicomVolume) -> None:
    """Name all images of the series as evidence, where highdicom has named the SEG."""
    once = dict.fromkeys((frame.attributes.sop_class, frame.instance) for frame in volume.slices)
    images = [dataset_of(ReferencedSOPClassUID=kind, ReferencedSOPInstanceUID=instance) for kind, instance in once]
    series = dataset_of(SeriesInstanceUID=volume.slices[0].attributes.series, ReferencedSOPSequence=images)
    dataset.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence.append(series)


def template_bytes(types: Sequence[str], classes: int) -> int:
    """Bytes of the child processes that make the SEG's header and the report, one after the other.

    Parameters
    ----------
    types
        Types of outputs, as on the command line.
    """
    report = SEGMENT_BYTES * classes if "dicom-sr" in types else 0
    return CHILD_BYTES + report if "dicom-seg" in types else 0
