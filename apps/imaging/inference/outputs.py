"""Outputs of ``imaging infer`` for a study: finished label planes go to all of them at once."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from apps.imaging.dicom.series import DicomVolume
from apps.imaging.dicom.writing import rtstruct, seg, seg_header, sr
from apps.imaging.inference.phases import TEMPLATE
from apps.imaging.inference.writing import preview, statistics
from apps.imaging.inference.writing.probabilities import ENDING, Probabilities, Stored
from apps.imaging.models.model_folder import ImagingModel, Label
from apps.imaging.volumes import nifti
from apps.imaging.volumes.volume import Volume
from common.cli.session import Session
from common.errors import BadInput
from common.files import no_room
from common.memory.footprint import Price


class Sink(Protocol):
    """An output that takes label planes in order."""

    def write(self, slab: npt.NDArray[Any]) -> None:
        """Append finished planes, (x, y, k)."""
        ...


@dataclass(frozen=True, slots=True)
class OutputRequest:
    """The outputs of each study."""

    types: tuple[str, ...] = ("nifti",)
    """Any of ``nifti``, ``dicom-seg``, ``dicom-sr`` and ``dicom-rtstruct``."""
    seg_type: str = "auto"
    """``auto``, ``binary`` or ``labelmap``."""
    preview: bool = False
    statistics: bool = False
    stow: str = ""
    """Address to which DICOM objects are sent; none if empty."""
    labels: tuple[Label, ...] = ()
    """The classes, background among them."""
    split: bool = False
    """True for a NIfTI file of each class, with ones where it is, instead of one with all labels."""
    overlapping: bool = False
    """True if a label has a bit for each class; there is then a file of each."""
    probabilities: Stored | None = None
    """Type of the numbers in a file of the classes' probabilities; ``None``: there is none."""

    def names(self, stem: str) -> tuple[str, ...]:
        """Names of a study's files, which begin with ``stem``."""
        kinds = {"nifti": ".nii.gz", "dicom-seg": ".seg.dcm", "dicom-sr": ".sr.dcm", "dicom-rtstruct": ".rtstruct.dcm"}
        endings = [ending for kind, ending in kinds.items() if kind in self.types]
        if endings[:1] == [".nii.gz"] and self.split:
            endings[:1] = self.classes
        endings += [ENDING] if self.probabilities else []
        endings += ["-statistics.csv", "-statistics.json"] if self.statistics else []
        return tuple(stem + ending for ending in (*endings, *([".png"] if self.preview else [])))

    @property
    def classes(self) -> dict[str, int]:
        """Ending of the NIfTI file of each class, and the class's value."""
        endings = class_endings({label.value: label.name for label in self.labels})
        return {f"{ending}.nii.gz": value for value, ending in endings.items()}


LONGEST_NAME = 100
"""Most characters of a class's name in the name of its file, which has 255 bytes at most."""


def class_endings(names: Mapping[int, str]) -> dict[int, str]:
    """What the name of a class's file ends in, by the class's value, without ``.nii.gz``.

    Parameters
    ----------
    names
        Of the classes by value; background, 0, has no file.
    """
    named = {value: re.sub(r"[^\w.-]+", "_", name)[:LONGEST_NAME] for value, name in names.items() if value}
    often = Counter(name.lower() for name in named.values())
    return {value: f"-{name}{value if often[name.lower()] > 1 else ''}" for value, name in named.items()}


class _ClassSink:
    """Writes ones where a class is."""

    def __init__(self, sink: Sink, value: int, *, bit: bool) -> None:
        self._sink, self._value, self._bit = sink, value, bit

    def write(self, slab: npt.NDArray[Any]) -> None:
        """Append finished planes, (x, y, k)."""
        value = slab.dtype.type(self._value)
        found = (slab & value) != 0 if self._bit else slab == value
        self._sink.write(found.view(np.uint8))


class _UppermostSink:
    """Writes, of classes that overlap, the last one's bit."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        numbers = np.arange(1 << 16, dtype=np.uint16)
        for shift in (1, 2, 4, 8):
            numbers |= numbers >> shift
        self._last = numbers - (numbers >> 1)

    def write(self, slab: npt.NDArray[Any]) -> None:
        """Append finished planes, (x, y, k)."""
        self._sink.write(self._last[slab].astype(slab.dtype))


@contextmanager
def whole_or_nothing(directory: Path, names: Sequence[str]) -> Iterator[None]:
    """A block that writes a study's files; if it fails, those that it wrote are removed, and others stay.

    An interrupted block leaves them to the next run.

    Raises
    ------
    BadInput
        If the disk is full.
    """
    before = {name: _state(directory / name) for name in names}
    try:
        yield
    except Exception as error:
        line = no_room(error, directory)
        for name in names:
            if _state(directory / name) != before[name]:
                (directory / name).unlink(missing_ok=True)
        if line is None:
            raise
        raise BadInput(line, public="no room for a file") from None


def _state(path: Path) -> tuple[int, int] | None:
    """Inode and time of a file, which tell it from another one of the same name."""
    with suppress(OSError):
        state = path.stat()
        return state.st_ino, state.st_mtime_ns
    return None


class Outputs:
    """The files of one study; use it as a context manager around the loop that finishes labels.

    Parameters
    ----------
    directory, name
        Folder of the files, and what their names begin with.
    model
        The model that made the labels.
    key
        Digest from which DICOM's UIDs are derived.
    dtype
        Data type of the labels.

    Attributes
    ----------
    request, volume
        As passed.
    names
        Files written so far.
    probabilities
        Takes the probabilities of blocks; ``None`` if they are not asked for.
    """

    def __init__(
        self,
        request: OutputRequest,
        directory: Path,
        name: str,
        volume: Volume,
        model: ImagingModel,
        key: str,
        dtype: np.dtype[Any],
    ) -> None:
        self.request, self.volume = request, volume
        self._directory, self._name = directory, name
        self._model = replace(model, labels=request.labels)
        self._key, self._dtype = key, dtype
        self._stack = ExitStack()
        self._sinks: list[Sink] = []
        self.names: list[str] = []
        self._centre = preview.Centre(volume.shape)
        self._statistics: statistics.Statistics | None = None
        self._labels_name = f"{name}.nii.gz"
        self._template: Any = None
        self._report = b""
        self.probabilities: Probabilities | None = None
        if request.probabilities:
            named = {label.value: label for label in request.labels}
            kept = {channel: named[value] for channel, value in enumerate(model.written) if value in named}
            self.probabilities = Probabilities(
                volume, list(kept.values()), list(kept), request.probabilities, directory
            )

    def prepare(self, session: Session) -> None:
        """Have child processes make the SEG's header and the report, before this process allocates anything large."""
        if "dicom-seg" in self.request.types:
            assert isinstance(self.volume, DicomVolume)
            kind = seg.choose_kind(self.request.seg_type, self._model)
            with session.phase(TEMPLATE):
                if "dicom-sr" in self.request.types:
                    self._report = sr.sr_template(self.volume, self._model, self._key, kind)
                self._template = seg_header.seg_template(self.volume, self._model, self._key, kind)

    def __enter__(self) -> "Outputs":
        request, volume, model = self.request, self.volume, self._model
        with self._stack as stack:
            if "nifti" in request.types and request.split:
                for ending, value in request.classes.items():
                    mask = self._nifti(f"{self._name}{ending}", np.dtype(np.uint8))
                    self._sinks.append(_ClassSink(mask, value, bit=request.overlapping))
                    self.names.append(f"{self._name}{ending}")
            elif "nifti" in request.types:
                self._sinks.append(self._nifti(self._labels_name, self._dtype))
                self.names.append(self._labels_name)
            if request.preview and self.names[:1] != [self._labels_name]:  # which is drawn from a label file
                self._labels_name = f".{self._name}.labels.nii.gz"
                labels = self._nifti(self._labels_name, self._dtype)
                self._sinks.append(_UppermostSink(labels) if request.overlapping else labels)
            if "dicom-seg" in request.types:
                assert isinstance(volume, DicomVolume)
                name = f"{self._name}.seg.dcm"
                kind = seg.choose_kind(request.seg_type, model)
                writer = seg.write_seg(self._directory / name, volume, model, self._template, kind)
                self._sinks.append(stack.enter_context(writer))
                self.names.append(name)
            if "dicom-rtstruct" in request.types:
                assert isinstance(volume, DicomVolume)
                name = f"{self._name}.rtstruct.dcm"
                structures = rtstruct.write_rtstruct(self._directory / name, volume, model, self._key)
                self._sinks.append(stack.enter_context(structures))
                self.names.append(name)
            if self.probabilities:
                stack.enter_context(self.probabilities)
            if request.preview:
                self._sinks.append(self._centre)
            if request.statistics or self._report:
                self._statistics = stack.enter_context(
                    statistics.open_statistics(volume, model.labels, self._directory, overlapping=request.overlapping)
                )
                self._sinks.append(self._statistics)
            self._stack = stack.pop_all()
        return self

    def _nifti(self, name: str, dtype: np.dtype[Any]) -> Sink:
        volume = self.volume
        header = nifti.label_header(volume.affine, dtype, volume.shape, getattr(volume, "header", None))
        writer: Sink = self._stack.enter_context(nifti.write_labels(self._directory / name, header))
        return writer

    def __exit__(self, *error: Any) -> bool | None:
        return self._stack.__exit__(*error)

    def write(self, slab: npt.NDArray[Any]) -> None:
        """Append finished planes, (x, y, k)."""
        for sink in self._sinks:
            sink.write(slab)

    def save(self) -> None:
        """Write the files that are made of the whole: probabilities, measurements; call it after the last plane."""
        if self.probabilities is not None:
            self.probabilities.save(self._directory / f"{self._name}{ENDING}")
            self.names.append(f"{self._name}{ENDING}")
        if self._statistics is None:
            return
        rows = self._statistics.rows()
        if self._report:
            assert isinstance(self.volume, DicomVolume)
            sr.write_sr(self._directory / f"{self._name}.sr.dcm", self.volume, self._report, rows)
            self.names.append(f"{self._name}.sr.dcm")
        if self.request.statistics:
            self.names += statistics.save(self._directory / f"{self._name}-statistics", rows)

    def send(self) -> None:
        """Send DICOM objects to the server; call it after the block.

        Raises
        ------
        BadInput
            If the server does not take one.
        """
        if self.request.stow:
            from apps.imaging.dicom.web import store

            store(self.request.stow, [self._directory / name for name in self.names if name.endswith(".dcm")])

    def draw(self) -> None:
        """Draw the preview; call it after the block."""
        if not self.request.preview:
            return
        labels = self._directory / self._labels_name
        preview.write(self._directory / f"{self._name}.png", self.volume, labels, self._centre, self._model.labels)
        self.names.append(f"{self._name}.png")
        if self._labels_name not in self.names:
            labels.unlink()


FILE_BYTES = 320 << 10
"""An open NIfTI file with its compressor (measured 274 kB)."""


def outputs_bytes(
    types: Sequence[str],
    volume: Volume,
    classes: int,
    *,
    with_statistics: bool,
    split: bool = False,
    largest: int = 255,
) -> Price:
    """Bytes of the outputs, without the labels; planes go to one output after the other.

    Parameters
    ----------
    types
        As in ``OutputRequest``.
    classes
        Number of the model's classes, background among them.
    split
        As in ``OutputRequest``; a plane's class in one byte is then made and turned.
    largest
        The largest label.
    """
    x, y, _ = volume.shape
    resident, transient = (FILE_BYTES * (classes - 1), [2 * x * y]) if split else (0, [0])
    if isinstance(volume, DicomVolume):
        transient.append(seg.seg_bytes(volume) if "dicom-seg" in types else 0)
        transient.append(sr.SEGMENT_BYTES * classes if "dicom-sr" in types else 0)
        resident += rtstruct.rtstruct_bytes(volume, classes) if "dicom-rtstruct" in types else 0
    if with_statistics or "dicom-sr" in types:
        price = statistics.statistics_bytes(volume, largest + 1)
        resident += price.resident
        transient.append(price.transient)
    return Price(resident, max(transient))
