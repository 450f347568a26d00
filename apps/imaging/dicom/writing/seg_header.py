"""The header of a SEG, without frames, made by highdicom in a child process; ``seg`` then adds the frames.

highdicom and the code dictionaries that it loads take 130 MiB; in a child they are gone before the first tile is run.
The child reads JSON and writes a DICOM file, on its standard streams, so that patient data never reaches a disk.
"""

import json
import sys
from base64 import b64decode, b64encode
from collections.abc import Callable, Mapping, Sequence
from io import BytesIO
from typing import Any

from apps.imaging.dicom.codes import Concept
from apps.imaging.dicom.derived import (
    MANUFACTURER,
    STATEMENT,
    algorithm,
    derived_uid,
    fix_dates,
    source_header,
    without_warnings,
)
from apps.imaging.dicom.series import DicomVolume
from apps.imaging.models.model_folder import ImagingModel
from apps.imaging.volumes.volume import spacing
from common import __version__
from common.errors import EXIT_OK, EXIT_UNFORESEEN, BadInput
from common.memory.process import child, guard

CHILD_BYTES = 160 << 20
"""Bytes that the child adds at its peak: 179 MiB, of which it shares 21 with its parent."""
CHILD = "apps.imaging.dicom.writing.seg_header"
"""The module that makes it: this one."""


def seg_template(volume: DicomVolume, model: ImagingModel, key: str, kind: str) -> Any:
    """Have a SEG made with the source's modules, all segments and the volume's geometry, but without frames.

    Raises
    ------
    BadInput
        If highdicom does not take the series' header; with its kind of complaint, never its words: they may quote the
        patient's name.
    MemoryError
        If the child ran out of memory.
    ChildFailed
        If the child ended by a signal or by an exit code of its own.
    """
    import pydicom

    with without_warnings():
        return pydicom.dcmread(BytesIO(made_by_child(CHILD, seg_question(volume, model, key, kind), volume, "SEG")))


def made_by_child(module: str, question: Mapping[str, Any], volume: DicomVolume, what: str) -> bytes:
    """The file that a module of this folder makes in a child process; raises as ``seg_template``.

    Parameters
    ----------
    question
        What the module reads.
    what
        The object, for messages.
    """
    done = child.run_module(module, stdin=json.dumps(question).encode(), ceiling=guard.room())
    if done.exit.out_of_memory:
        raise MemoryError(f"the process that makes the {what}'s header {done.exit}")
    if done.exit.status == EXIT_UNFORESEEN:
        message = f"no {what} can be derived from its header ({done.last_line[-100:]})"
        raise BadInput(f"{volume.path}: {message}", public=f"DICOM header unfit for {what}")
    if done.exit.status != EXIT_OK:
        raise child.ChildFailed(f"the process that makes the {what}'s header {done.exit}")
    return done.stdout


def seg_question(volume: DicomVolume, model: ImagingModel, key: str, kind: str) -> dict[str, Any]:
    """The arguments of ``build`` as JSON has them."""
    return {
        "head": b64encode(file_bytes(source_header(volume))).decode(),
        "key": key,
        "kind": kind,
        "network": model.kind,
        "serial": model.network_sha256[:16],
        "algorithm": algorithm(model),
        "segments": [
            {"name": label.name, "code": label.code, "color": label.color} for label in model.labels if label.value
        ],
        "shape": volume.shape,
        "spacing": spacing(volume.affine),
    }


def file_bytes(dataset: Any) -> bytes:
    """A data set as the child answers it."""
    out = BytesIO()
    dataset.save_as(out, implicit_vr=False, little_endian=True)
    return out.getvalue()


def build(question: Mapping[str, Any]) -> Any:
    """Make the object on 2 x 2 pixels by highdicom, then take its frames away; called in the child."""
    import highdicom as hd
    import numpy as np
    import pydicom

    head = pydicom.dcmread(BytesIO(b64decode(question["head"])), force=True)
    x, y, z = question["spacing"]
    columns, rows, _ = question["shape"]
    dataset = hd.seg.Segmentation(
        source_images=[head],
        pixel_array=np.ones((1, 2, 2), np.uint8 if len(question["segments"]) < 256 else np.uint16),
        segmentation_type=question["kind"],
        segment_descriptions=_descriptions(question),
        series_instance_uid=derived_uid(question["key"], "series"),
        series_number=1000 + int(head.get("SeriesNumber", None) or 0),
        sop_instance_uid=derived_uid(question["key"], f"seg/{question['kind']}"),
        instance_number=1,
        manufacturer=MANUFACTURER,
        manufacturer_model_name="imaging infer",
        software_versions=__version__,
        device_serial_number=question["serial"],
        content_description=STATEMENT,
        content_label="SEGMENTATION",
        omit_empty_frames=False,
        specific_character_set="ISO_IR 192",
        pixel_measures=hd.PixelMeasuresSequence((y, x), slice_thickness=z, spacing_between_slices=z),
    )
    # Of one plane highdicom takes 1 mm as the distance between planes.
    dataset.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].SpacingBetweenSlices = f"{z:.10g}"
    dataset.SeriesDescription = f"Segmentation, {question['network']}"[:64]
    dataset.Rows, dataset.Columns = rows, columns
    organization = derived_uid(question["key"], "dimensions")
    for item in (*dataset.DimensionOrganizationSequence, *dataset.DimensionIndexSequence):
        item.DimensionOrganizationUID = organization
    fix_dates(dataset, head)
    for keyword in ("SourceImageSequence", "ReferencedSeriesSequence", "PerFrameFunctionalGroupsSequence", "PixelData"):
        dataset.pop(keyword, None)
    return dataset


def _descriptions(question: Mapping[str, Any]) -> list[Any]:
    import highdicom as hd

    made = question["algorithm"]
    identification = hd.AlgorithmIdentificationSequence(
        name=made["name"], family=concept(Concept.ARTIFICIAL_INTELLIGENCE.value), version=made["version"]
    )
    identification[0].AlgorithmParameters = made["parameters"]
    return [
        hd.seg.SegmentDescription(
            segment_number=number,
            segment_label=segment["name"].replace("\\", " ")[:64],
            segmented_property_category=concept(Concept.ANATOMICAL_STRUCTURE.value),
            segmented_property_type=concept(segment["code"] or Concept.TISSUE.value),
            algorithm_type="AUTOMATIC",
            algorithm_identification=identification,
            display_color=hd.color.CIELabColor.from_rgb(*segment["color"]),
        )
        for number, segment in enumerate(question["segments"], start=1)
    ]


def concept(code: Sequence[str]) -> Any:
    """highdicom's form of a code: scheme, value, meaning."""
    import highdicom as hd

    scheme, value, meaning = code
    return hd.sr.CodedConcept(value, scheme, meaning[:64])


def main() -> None:
    """Make one object."""
    with without_warnings():
        import highdicom  # noqa: F401  # before the walls stand: what it reserves is not data

        work(lambda: file_bytes(build(json.load(sys.stdin))))


def work(make: Callable[[], bytes]) -> None:
    """Answer with what ``make`` returns. Only the type of an error is written: its message may quote the patient's
    name."""
    child.Walls.of_this_process().stand()
    try:
        sys.stdout.buffer.write(make())
    except Exception as error:
        if guard.is_out_of_memory(error):
            raise MemoryError from None
        sys.stderr.write(type(error).__name__)
        sys.exit(EXIT_UNFORESEEN)


if __name__ == "__main__":
    child.run_work(main)
