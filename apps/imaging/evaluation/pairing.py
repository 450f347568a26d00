"""Which prediction is compared with which reference, by the names of files: whole label maps, or single classes."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np

from apps.imaging.evaluation.metrics import Labels, Pair
from apps.imaging.inference.discovery import open_volume
from apps.imaging.inference.outputs import class_endings
from apps.imaging.inference.studies import TABLE, read_table
from apps.imaging.volumes.stored import FileVolume, is_image, stem
from common.errors import BadInput

AFFINE_TOLERANCE = 1e-2
"""Millimetres by which voxel positions of prediction and reference may differ."""

_CHANNEL = re.compile(r"_\d{4}$")
"""The end of an image's name in nnU-Net's layout."""
Files = dict[int | None, Path]
"""A case's files by class; ``None``: one with all classes."""


def find_pairs(
    predictions: Path,
    references: Path,
    *,
    repair: bool = False,
    names: Mapping[int, str] = MappingProxyType({}),
) -> list[Pair]:
    """Match files by name, outputs of ``imaging infer`` by the names of their inputs (``studies.csv``).

    Parameters
    ----------
    repair
        True to repair headers that contradict themselves instead of refusing them.
    names
        Of the classes, by label: ``CASE-NAME.nii.gz`` and ``CASE/NAME.nii.gz`` are then files of one class.

    Raises
    ------
    BadInput
        Nothing to compare, a prediction without reference, or grids that differ.
    """
    for path in (predictions, references):
        if not path.exists():
            raise BadInput(f"{path}: no such file or folder", public="no such input")
    if predictions.is_file() and references.is_file():
        return _pairs("case-0001", {None: predictions}, {None: references}, repair)
    if not (predictions.is_dir() and references.is_dir()):
        raise BadInput(f"{predictions} and {references}: compare two files, or two folders", public="file and folder")
    found, known = _cases(predictions, names), _cases(references, names)
    rows, endings = read_table(predictions), class_endings(names).values()
    inputs = {_case(stem(Path(name)), endings): stem(Path(row.input)) for row in rows for name in row.outputs}
    if not found:
        raise BadInput(f"{predictions}: no label files in it (.nii, .nii.gz, ...)", public="nothing to evaluate")
    pairs: list[Pair] = []
    for number, (case, files) in enumerate(found.items(), start=1):
        name = inputs.get(case, case)
        if name not in known:
            name = _CHANNEL.sub("", name)  # nnU-Net's images have the number of their channel, and its labels none
        if name not in known:
            hint = f" (looked for {name} by {TABLE})" if inputs else ""
            hint += "" if names else "; files of one class, CASE-CLASS.nii.gz, are told by the classes of -m MODEL"
            path = next(iter(files.values()))
            raise BadInput(f"{path}: no reference of that name in {references}{hint}", public="reference missing")
        pairs += _pairs(f"case-{number:04d}", files, known[name], repair)
    return pairs


def _cases(folder: Path, names: Mapping[int, str]) -> dict[str, Files]:
    """Label files of each case, by its name."""
    endings = {ending: value for value, ending in class_endings(names).items()}
    cases: dict[str, Files] = {}
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if path.is_dir():
            inside = {f"-{stem(one)}": one for one in sorted(path.iterdir()) if is_image(one)}
            for ending, one in inside.items():
                if ending in endings:
                    cases.setdefault(path.name, {})[endings[ending]] = one
        elif is_image(path):
            case = _case(stem(path), endings)
            cases.setdefault(case, {})[endings.get(stem(path).removeprefix(case))] = path
    return cases


def _case(name: str, endings: Iterable[str]) -> str:
    """The case of a file's name: without the ending of a class."""
    return name.removesuffix(max((one for one in endings if name.endswith(one)), key=len, default=""))


def _pairs(case: str, files: Files, references: Files, repair: bool) -> list[Pair]:
    """The pairs of a case: one of whole label maps, or one for each class where a side has files of single classes."""
    if None in files and None in references:
        return [_pair(case, files[None], references[None], None, repair)]
    values = [value for value in (references if None in files else files) if value is not None]
    pairs = []
    for value in values:
        one, two = files.get(value, files.get(None)), references.get(value, references.get(None))
        if one is None or two is None:
            other = next(iter((references if two is None else files).values())).parent
            message = f"no file of this class in {other}"
            raise BadInput(f"{one or two}: {message}", public="file of a class missing")
        pairs.append(_pair(case, one, two, value, repair, (value in files, value in references)))
    return pairs


def _pair(
    case: str,
    prediction: Path,
    reference: Path,
    value: int | None,
    repair: bool,
    single: tuple[bool, bool] = (False, False),
) -> Pair:
    """Open both files.

    Parameters
    ----------
    value
        Class that is compared; ``None``: all.
    single
        Whether each has only this class.
    """
    one, two = (_opened(path, repair) for path in (prediction, reference))
    if one.shape != two.shape:
        raise BadInput(
            f"{prediction}: its shape {one.shape} is not the reference's {two.shape}", public="shapes differ"
        )
    corners = np.array([[x, y, z, 1] for x in (0, one.shape[0]) for y in (0, one.shape[1]) for z in (0, one.shape[2])])
    if np.abs((one.affine - two.affine) @ corners.T).max() > AFFINE_TOLERANCE:
        raise BadInput(f"{prediction}: lies elsewhere than its reference {reference}", public="geometry differs")
    sides = [Labels(volume, value, None if alone else value) for volume, alone in zip((one, two), single, strict=True)]
    return Pair(case, *sides)


def _opened(path: Path, repair: bool) -> FileVolume:
    volume = open_volume(path, repair=frozenset({"header"} if repair else ()))
    assert isinstance(volume, FileVolume)  # by its name
    return volume
