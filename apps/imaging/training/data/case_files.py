"""Find the files of a data set, in the layout of the Medical Segmentation Decathlon or of nnU-Net's raw data sets.

Both have the folders ``imagesTr`` and ``labelsTr`` and a ``dataset.json``. The Decathlon's case is a pair of files of
one name, its channels (``modality``) the volumes of a 4D image. nnU-Net's has a file for each channel,
``CASE_0000.nii.gz``, ``CASE_0001.nii.gz``, ..., and the label ``CASE.nii.gz``. Without ``dataset.json`` the names
decide.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from apps.imaging.volumes.nifti import is_nifti
from apps.imaging.volumes.stored import CHANNEL, stem
from common.errors import BadInput

IMAGES, LABELS, DESCRIPTION = "imagesTr", "labelsTr", "dataset.json"
IGNORE = "ignore"
"""The label of voxels that nobody has labelled, by nnU-Net's name."""
LARGEST_LABEL = 254
_ENDINGS = (".nii", ".nii.gz")


@dataclass(frozen=True, slots=True)
class CaseFiles:
    """The files of one case."""

    name: str
    images: tuple[tuple[Path, int | None], ...]
    """File of each channel and, in a 4D file, the number of its volume from 1."""
    label: Path


@dataclass(frozen=True, slots=True)
class Description:
    """What ``dataset.json`` says, as far as training needs it."""

    path: Path
    fields: Mapping[str, Any]

    @classmethod
    def read(cls, directory: Path) -> "Description":
        """Read the description of a data set, which may be missing.

        Raises
        ------
        BadInput
            If it is not a JSON object.
        """
        path = directory / DESCRIPTION
        if not path.is_file():
            return cls(path, {})
        try:
            described = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, OSError) as error:
            raise BadInput(f"{path}: not readable as JSON ({error})") from None
        if not isinstance(described, dict):
            raise BadInput(f"{path}: an object was expected")
        return cls(path, described)

    @property
    def channels(self) -> tuple[str, ...] | None:
        """Names of the channels in their order; ``None`` if it names none.

        Raises
        ------
        BadInput
            If they are not numbered 0, 1, ...
        """
        named = self.fields.get("channel_names") or self.fields.get("modality")
        if named is None:
            return None
        if not isinstance(named, dict) or sorted(map(str, named)) != sorted(map(str, range(len(named)))):
            raise BadInput(f'{self.path}: channels must be an object of numbers and names: {{"0": "T1", "1": "T2"}}')
        by_number = {int(number): str(name) for number, name in named.items()}
        return tuple(by_number[number] for number in range(len(by_number)))

    def labels(self) -> tuple[dict[int, str], int | None] | None:
        """Names of the labels by value, and the value of voxels to ignore; ``None`` if it does not list labels.

        ``{"0": "background"}`` as the Decathlon writes it, or ``{"background": 0}`` as nnU-Net does.

        Raises
        ------
        BadInput
            Regions, or values that are not distinct whole numbers from 0 to 254.
        """
        listed = self.fields.get("labels")
        if listed is None:
            return None
        if isinstance(listed, dict) and any(isinstance(value, list) for value in listed.values()):
            names = ", ".join(name for name, value in listed.items() if isinstance(value, list))
            raise BadInput(
                f"{self.path}: regions of several labels ({names}) are not trained; list each label with its own value"
            )
        try:
            pairs = [(k, v) if str(k).isdigit() else (v, k) for k, v in listed.items()]
            labels = {int(value): str(name) for value, name in sorted(pairs, key=lambda pair: int(pair[0]))}
        except (AttributeError, TypeError, ValueError):
            raise BadInput(f"{self.path}: labels must be an object of values and names") from None
        if 0 not in labels or not all(0 <= value <= LARGEST_LABEL for value in labels) or len(labels) != len(listed):
            raise BadInput(f"{self.path}: labels must be distinct values from 0 (background) to {LARGEST_LABEL}")
        ignored = next((value for value, name in labels.items() if name == IGNORE and value), None)
        return {value: name for value, name in labels.items() if value != ignored}, ignored


def find_cases(directory: Path, described: Description) -> list[CaseFiles]:
    """List the cases of a data set by name; of images and labels only the names are looked at.

    Raises
    ------
    BadInput
        Lists of files that are not understood or lead out of the folder, or a file type other than NIfTI.
    """
    ending = str(described.fields.get("file_ending", _ENDINGS[0]))
    if ending not in _ENDINGS:
        raise BadInput(f"{described.path}: files of {ending} are not read for training; convert them to .nii.gz")
    channels = described.channels
    count = len(channels) if channels else 1
    if "channel_names" in described.fields and "dataset" in described.fields:
        return _listed_by_channel(directory, described, count)
    if described.fields.get("training") is not None and "channel_names" not in described.fields:
        return [_of_one_file(*pair, count) for pair in _listed_pairs(directory, described)]
    images = sorted(p for p in (directory / IMAGES).iterdir() if is_nifti(p) and not p.name.startswith("."))
    numbered = bool(images) and all(CHANNEL.search(path.name) for path in images)
    if "channel_names" in described.fields or (numbered and not (directory / LABELS / images[0].name).exists()):
        return _numbered(directory, images, count if channels else None)
    return [_of_one_file(image, directory / LABELS / image.name, count) for image in images]


def _of_one_file(image: Path, label: Path, channels: int) -> CaseFiles:
    volumes = [None] if channels == 1 else range(1, channels + 1)
    return CaseFiles(stem(image), tuple((image, volume) for volume in volumes), label)


def _numbered(directory: Path, images: Iterable[Path], channels: int | None) -> list[CaseFiles]:
    """Cases of files that end in the number of their channel; ``None``: as many channels as the files have.

    A channel that a case lacks is listed by the name that it would have.
    """
    numbers: dict[str, set[int]] = {}
    for path in images:
        number = CHANNEL.search(path.name)
        if number is None:
            raise BadInput(f"{path}: no number of a channel (CASE_0000.nii.gz)", public="an image without channel")
        if channels is not None and int(number[1]) >= channels:
            raise BadInput(
                f"{path}: channel_names of {DESCRIPTION} lists {channels} of them", public="a channel too many"
            )
        numbers.setdefault(CHANNEL.sub("", path.name), set()).add(int(number[1]))
    count = channels or 1 + max((max(found) for found in numbers.values()), default=0)
    cases = []
    for name in sorted(numbers):
        case = stem(Path(name))
        files = tuple(
            (directory / IMAGES / f"{case}_{channel:04d}{name.removeprefix(case)}", None) for channel in range(count)
        )
        cases.append(CaseFiles(case, files, directory / LABELS / name))
    return cases


def _listed_pairs(directory: Path, described: Description) -> list[tuple[Path, Path]]:
    """Image and label files of the Decathlon's list ``training``, sorted by name."""
    try:
        names = sorted((str(entry["image"]), str(entry["label"])) for entry in described.fields["training"])
    except (TypeError, KeyError):
        raise BadInput(f"{described.path}: training must be a list of image and label names") from None
    return [(_inside(directory, described, image), _inside(directory, described, label)) for image, label in names]


def _listed_by_channel(directory: Path, described: Description, channels: int) -> list[CaseFiles]:
    """Cases of nnU-Net's object ``dataset``: a name, its images by channel, and its label."""
    try:
        listed = {
            str(name): ([str(image) for image in entry["images"]], str(entry["label"]))
            for name, entry in described.fields["dataset"].items()
        }
    except (AttributeError, TypeError, KeyError):
        raise BadInput(f"{described.path}: dataset must be an object of names, images and labels") from None
    cases = []
    for name, (images, label) in sorted(listed.items()):
        if len(images) != channels:
            raise BadInput(f"case {name}: {len(images)} images for {channels} channels", public="channels of a case")
        files = tuple((_inside(directory, described, image), None) for image in images)
        cases.append(CaseFiles(name, files, _inside(directory, described, label)))
    return cases


def _inside(directory: Path, described: Description, name: str) -> Path:
    """The path of a file that is named in the description.

    Raises
    ------
    BadInput
        If it is outside the data set.
    """
    relative = PurePosixPath(name)
    if relative.is_absolute() or ".." in relative.parts:
        raise BadInput(f"{described.path}: {name} is outside the data set")
    return directory / relative
