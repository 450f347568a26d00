"""Coded values of DICOM objects. pydicom's own dictionaries of concepts (PS3.16) are not loaded."""

from enum import Enum, StrEnum
from typing import NamedTuple


class Code(NamedTuple):
    """A coded concept."""

    scheme: str
    """Coding scheme designator: ``SCT`` is SNOMED CT, ``DCM`` DICOM itself."""
    value: str
    meaning: str


class Concept(Enum):
    """Concepts that segmentations refer to."""

    ANATOMICAL_STRUCTURE = Code("SCT", "123037004", "Anatomical Structure")
    TISSUE = Code("SCT", "85756007", "Tissue")
    ARTIFICIAL_INTELLIGENCE = Code("DCM", "123110", "Artificial Intelligence")
    SEGMENTATION = Code("DCM", "113076", "Segmentation")
    SOURCE_IMAGE = Code("DCM", "121322", "Source image for image processing operation")


class Modality(StrEnum):
    """Modalities of images. Any other value is read as ``OTHER``, so that what is shown cannot be a person's name."""

    COMPUTED_TOMOGRAPHY = "CT"
    MAGNETIC_RESONANCE = "MR"
    POSITRON_EMISSION_TOMOGRAPHY = "PT"
    NUCLEAR_MEDICINE = "NM"
    ULTRASOUND = "US"
    COMPUTED_RADIOGRAPHY = "CR"
    DIGITAL_RADIOGRAPHY = "DX"
    MAMMOGRAPHY = "MG"
    ANGIOGRAPHY = "XA"
    FLUOROSCOPY = "RF"
    OPTICAL_COHERENCE_TOMOGRAPHY = "OCT"
    OPHTHALMIC_TOMOGRAPHY = "OPT"
    INTRAVASCULAR_ULTRASOUND = "IVUS"
    INTRAVASCULAR_OPTICAL_COHERENCE_TOMOGRAPHY = "IVOCT"
    OPHTHALMIC_PHOTOGRAPHY = "OP"
    RADIOTHERAPY_IMAGE = "RTIMAGE"
    SLIDE_MICROSCOPY = "SM"
    OTHER = "OT"


class Photometric(StrEnum):
    """Photometric interpretations of grey images."""

    MONOCHROME1 = "MONOCHROME1"
    """The largest value is black."""
    MONOCHROME2 = "MONOCHROME2"
    """The least value is black."""
