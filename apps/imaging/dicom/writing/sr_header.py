"""A report of measurements (TID 1500), its numbers still 0, made by highdicom in a child process, as ``seg_header``.

It refers to the segments of a SEG whose UID is known before it is written; ``sr`` then puts the numbers in.
"""

import json
import sys
from base64 import b64decode
from collections.abc import Mapping, Sequence
from copy import deepcopy
from io import BytesIO
from typing import Any

from apps.imaging.dicom.codes import Code, Concept
from apps.imaging.dicom.derived import MANUFACTURER, derived_uid, fix_dates, without_warnings
from apps.imaging.dicom.series import DicomVolume
from apps.imaging.dicom.writing.seg_header import concept, file_bytes, seg_question, work
from apps.imaging.models.model_folder import ImagingModel
from common import __version__

CHILD = "apps.imaging.dicom.writing.sr_header"
"""The module that makes it: this one."""
SEG_CLASSES = {"BINARY": "1.2.840.10008.5.1.4.1.1.66.4", "LABELMAP": "1.2.840.10008.5.1.4.1.1.66.7"}
"""SOP classes of SEGs by their type."""
_PROCEDURES = {
    "CT": Code("LN", "25045-6", "CT unspecified body region"),
    "MR": Code("LN", "25056-3", "MRI unspecified body region"),
    "PT": Code("LN", "44136-0", "PET unspecified body region"),
}
_ANY_PROCEDURE = Code("SCT", "363679005", "Imaging procedure")


def sr_question(
    volume: DicomVolume, model: ImagingModel, key: str, kind: str, measures: Sequence[Sequence[Code | None]]
) -> dict[str, Any]:
    """The arguments of ``build`` as JSON has them.

    Parameters
    ----------
    kind
        Type of the SEG.
    measures
        Of each segment: what is measured, its unit, and which value of the segment's voxels it is.
    """
    own = {"modality": volume.slices[0].attributes.modality.value, "measures": measures}
    return {**seg_question(volume, model, key, kind), **own}


def build(question: Mapping[str, Any]) -> Any:
    """Make the report by highdicom; called in the child."""
    import highdicom as hd
    import pydicom

    head, key = pydicom.dcmread(BytesIO(b64decode(question["head"])), force=True), question["key"]
    seg = deepcopy(head)
    seg.SOPClassUID, seg.SeriesInstanceUID = SEG_CLASSES[question["kind"]], derived_uid(key, "series")
    seg.SOPInstanceUID = derived_uid(key, f"seg/{question['kind']}")
    device = hd.sr.DeviceObserverIdentifyingAttributes(
        uid=derived_uid(question["serial"], "device"),
        name=MANUFACTURER,
        manufacturer_name=MANUFACTURER,
        model_name="imaging infer",
        serial_number=question["serial"],
    )
    observer = hd.sr.ObserverContext(
        observer_type=hd.sr.CodedConcept("121007", "DCM", "Device"), observer_identifying_attributes=device
    )
    made = question["algorithm"]
    groups = [
        hd.sr.VolumetricROIMeasurementsAndQualitativeEvaluations(
            tracking_identifier=hd.sr.TrackingIdentifier(
                uid=derived_uid(key, f"tracking/{number}"), identifier=segment["name"].replace("\\", " ")[:64]
            ),
            referenced_segment=hd.sr.ReferencedSegment(
                sop_class_uid=seg.SOPClassUID,
                sop_instance_uid=seg.SOPInstanceUID,
                segment_number=number,
                source_series=hd.sr.SourceSeriesForSegmentation(head.SeriesInstanceUID),
            ),
            finding_category=concept(Concept.ANATOMICAL_STRUCTURE.value),
            finding_type=concept(segment["code"] or Concept.TISSUE.value),
            algorithm_id=hd.sr.AlgorithmIdentification(
                name=made["name"], version=made["version"], parameters=[made["parameters"]]
            ),
            measurements=[
                hd.sr.Measurement(
                    name=concept(name), value=0.0, unit=concept(unit), derivation=concept(way) if way else None
                )
                for name, unit, way in question["measures"]
            ],
        )
        for number, segment in enumerate(question["segments"], start=1)
    ]
    report = hd.sr.MeasurementReport(
        observation_context=hd.sr.ObservationContext(observer_device_context=observer),
        procedure_reported=concept(_PROCEDURES.get(question["modality"], _ANY_PROCEDURE)),
        imaging_measurements=groups,
    )
    dataset = hd.sr.EnhancedSR(
        evidence=[head, seg],
        content=report[0],
        series_instance_uid=derived_uid(key, "report series"),
        series_number=2000 + int(head.get("SeriesNumber", None) or 0),
        sop_instance_uid=derived_uid(key, "report"),
        instance_number=1,
        manufacturer=MANUFACTURER,
        is_complete=True,
        is_final=False,
        is_verified=False,
    )
    dataset.ManufacturerModelName, dataset.SoftwareVersions = "imaging infer", __version__
    dataset.DeviceSerialNumber = question["serial"]
    dataset.SeriesDescription = f"Measurements, {question['network']}"[:64]
    dataset.SpecificCharacterSet = "ISO_IR 192"
    fix_dates(dataset, head)
    return dataset


def main() -> None:
    """Make one report."""
    with without_warnings():
        import highdicom  # noqa: F401  # before the walls stand: what it reserves is not data

        work(lambda: file_bytes(build(json.load(sys.stdin))))


if __name__ == "__main__":
    from common.memory.process import child

    child.run_work(main)
