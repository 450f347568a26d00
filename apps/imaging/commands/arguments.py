"""Types and help texts of the command line's arguments; no library is loaded."""

import argparse
import re
from pathlib import Path

from common.resources import data_folder

ENGINES = ("openvino", "onnxruntime", "torch")
"""``common.engines.registry.ENGINES``; importing that would load NumPy for ``--help``."""
MODEL_HELP = "model folder, nnU-Net folder, MONAI bundle, or the name of an installed model (hippocampus, brain)"
TASKS = ("total",)
"""Tasks of several networks with a label map in ``data/label_maps``."""
OUTPUT_TYPES = ("nifti", "dicom-seg", "dicom-sr", "dicom-rtstruct")
_SECONDS = {"s": 1.0, "": 1.0, "min": 60.0, "m": 60.0, "h": 3600.0}

INPUT_HELP = (
    "NIfTI, NRRD, MetaImage or MGH file, DICOM folder or zip, folder of these, or DICOMweb address (.../studies/UID or"
    " .../studies?...)"
)
OUTPUT_HELP = f"what to write, of {', '.join(OUTPUT_TYPES)} (default nifti)"
REPAIRS = ("tilt", "spacing", "header")
REPAIR_HELP = (
    "resample slices of a tilted gantry or of uneven spacing, take the part of a contradictory NIfTI header that agrees"
    " with pixdim, instead of refusing them: tilt,spacing,header"
)
VOLUME_HELP = "number, from 1, of the volume in a DICOM series or a NIfTI file of several"
SERIES_HELP = "number or UID of the series, if a DICOM folder has several"
CHANNEL_HELP = (
    "the series of a DICOM study that is a channel of the model, by its number, its UID, or words of its description;"
    " once for each channel (imaging inspect MODEL names them)"
)


def share(text: str) -> float:
    """An argparse type: a number in [0, 1)."""
    value = float(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not in [0, 1)")
    return value


def percent(text: str) -> float:
    """An argparse type: a share in [0, 1), written as a percentage, ``0.5%`` or ``0.5``."""
    value = float(text.removesuffix("%")) / 100
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a percentage from 0 to 100")
    return value


def part_or_size(text: str) -> float | int:
    """An argparse type: a share between 0 and 1, or a size in bytes."""
    from common.memory.process.budget import BudgetError, parse_size

    try:
        share = float(text)
    except ValueError:
        share = 1.0
    if 0 < share < 1:
        return share
    try:
        return parse_size(text)
    except BudgetError:
        raise argparse.ArgumentTypeError(f"{text} is neither between 0 and 1 nor a size such as 300KB") from None


def millilitres(text: str) -> float:
    """An argparse type: a volume in millilitres, not negative."""
    value = float(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a volume in millilitres")
    return value


def millimetres(text: str) -> float:
    """An argparse type: a length in millimetres, not negative."""
    value = float(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a length in millimetres")
    return value


def voxel_size(text: str) -> tuple[float, float, float]:
    """An argparse type: millimetres along three axes, ``1.5`` or ``1,1,2.5``."""
    edges = [float(part) for part in text.split(",")]
    if len(edges) not in (1, 3) or not all(0 < edge < float("inf") for edge in edges):
        raise argparse.ArgumentTypeError(f"{text} is not X,Y,Z in millimetres")
    x, y, z = edges * 3 if len(edges) == 1 else edges
    return x, y, z


def class_table(text: str) -> Path:
    """An argparse type: a class table that is installed with the program, by its name, or the user's own file."""
    installed = data_folder() / "label_tables" / f"{text}.json"
    return installed if "/" not in text and installed.is_file() else Path(text)


def repairs(text: str) -> frozenset[str]:
    """An argparse type: defects that may be repaired, with commas between them."""
    chosen = frozenset(text.split(","))
    if unknown := chosen - set(REPAIRS):
        raise argparse.ArgumentTypeError(f"{', '.join(sorted(unknown))}: choose from {', '.join(REPAIRS)}")
    return chosen


def output_types(text: str) -> tuple[str, ...]:
    """An argparse type: types of outputs, with commas between them."""
    chosen = tuple(dict.fromkeys(text.split(",")))
    if unknown := set(chosen) - set(OUTPUT_TYPES):
        raise argparse.ArgumentTypeError(f"{', '.join(sorted(unknown))}: choose from {', '.join(OUTPUT_TYPES)}")
    return chosen


def source(text: str) -> Path | str:
    """An argparse type: a path, or the address of a DICOMweb server."""
    return text if text.startswith(("http://", "https://")) else Path(text)


def channel(text: str) -> tuple[str, str]:
    """An argparse type: ``NAME=SERIES``."""
    name, equals, series = (part.strip() for part in text.partition("="))
    if not (name and equals and series):
        raise argparse.ArgumentTypeError(f"{text} is not NAME=SERIES")
    return name, series


def names(text: str) -> list[str]:
    """An argparse type: names with commas between them."""
    return [name.strip() for name in text.split(",") if name.strip()]


def folds(text: str) -> tuple[str, ...]:
    """An argparse type: numbers of folds with commas between them, or ``all``."""
    chosen = tuple(dict.fromkeys(part.strip() for part in text.split(",")))
    if chosen != ("all",) and not all(part.isdecimal() for part in chosen):
        raise argparse.ArgumentTypeError(f"{text} is neither numbers of folds (0,1,2) nor all")
    return chosen


def checkpoint(text: str) -> str:
    """An argparse type: ``best``, ``final``, or the name of a file of weights."""
    if not re.fullmatch(r"\w[\w.-]*", text):
        raise argparse.ArgumentTypeError(f"{text} is not the name of a file of weights")
    return text


def fold(text: str) -> tuple[int, int]:
    """An argparse type: ``K/N`` with 0 <= K < N."""
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if not match or not int(match[1]) < int(match[2]) or int(match[2]) < 2:
        raise argparse.ArgumentTypeError(f"{text} is not K/N with 0 <= K < N and N of at least 2")
    return int(match[1]), int(match[2])


def duration(text: str) -> float:
    """An argparse type: seconds of ``90``, ``90s``, ``30min``, ``2h``."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(s|min|m|h|)", text)
    if not match or not float(match[1]):
        raise argparse.ArgumentTypeError(f"{text} is not a time such as 90s, 30min or 2h")
    return float(match[1]) * _SECONDS[match[2]]
