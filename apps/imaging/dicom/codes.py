"""Coded concepts of DICOM objects (PS3.16), without loading pydicom's dictionaries of codes."""

from enum import Enum
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
