"""What ``imaging infer`` writes of a study: label planes go to all of it at once, as they are finished."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from apps.imaging.dicom import rtstruct, seg
from apps.imaging.dicom.derived import dicom_series
from apps.imaging.dicom.series import DicomVolume
from apps.imaging.inference import preview, statistics
from apps.imaging.models.model_folder import ImagingModel, Label
from apps.imaging.volumes import nifti
from apps.imaging.volumes.volume import Volume
from common.errors import UsageError
from common.memory.footprint import Price


class Sink(Protocol):
    """Takes label planes in order."""

    def write(self, slab: npt.NDArray[Any]) -> None:
        """Finished planes, (x, y, k)."""
        ...


@dataclass(frozen=True, slots=True)
class OutputRequest:
    """What the command line asks for, the same for all studies."""

    types: tuple[str, ...] = ("nifti",)
    seg_type: str = "auto"
    """``auto``, ``binary`` or ``labelmap``."""
    preview: bool = False
    statistics: bool = False
    stow: str = ""
    """Address to which DICOM objects are sent; none if empty."""

    def check(self, volume: Volume, path: Path) -> None:
        """Raise ``BadInput`` where this volume cannot give it."""
        if {"dicom-seg", "dicom-rtstruct"} & set(self.types):
            dicom_series(volume, path)


class Outputs:
    """The files of one study; use as a context manager around the loop that finishes labels.

    Parameters
    ----------
    directory, name
        Where, and the study's name, with which all files begin.
    model
        With the labels that are written.
    key
        From which DICOM UIDs are derived.
    dtype
        Of the labels.
    """

    def __init__(
        self,
        wanted: OutputRequest,
        directory: Path,
        name: str,
        volume: Volume,
        model: ImagingModel,
        key: str,
        dtype: np.dtype[Any],
    ) -> None:
        self._wanted, self._directory, self._name, self._volume, self._model = wanted, directory, name, volume, model
        self._key, self._dtype = key, dtype
        self._stack = ExitStack()
        self._sinks: list[Sink] = []
        self.names: list[str] = []
        self._centre = preview.Centre(volume.shape)
        self._statistics: statistics.Statistics | None = None
        self._labels_name = f"{name}.nii.gz"
        self._template: Any = None

    def prepare(self) -> None:
        """What is made by a child process, before anything large is held here."""
        if "dicom-seg" in self._wanted.types:
            from apps.imaging.dicom.seg_header import seg_template

            assert isinstance(self._volume, DicomVolume)
            kind = seg.choose_kind(self._wanted.seg_type, self._model)
            self._template = seg_template(self._volume, self._model, self._key, kind)

    def __enter__(self) -> "Outputs":
        wanted, volume, model = self._wanted, self._volume, self._model
        with self._stack as stack:
            if "nifti" in wanted.types:
                self._add_nifti(self._labels_name)
                self.names.append(self._labels_name)
            elif wanted.preview:  # which is drawn from a label file
                self._labels_name = f".{self._name}.labels.nii.gz"
                self._add_nifti(self._labels_name)
            if "dicom-seg" in wanted.types:
                assert isinstance(volume, DicomVolume)
                name = f"{self._name}.seg.dcm"
                kind = seg.choose_kind(wanted.seg_type, model)
                writer = seg.write_seg(self._directory / name, volume, model, self._template, kind)
                self._sinks.append(stack.enter_context(writer))
                self.names.append(name)
            if "dicom-rtstruct" in wanted.types:
                assert isinstance(volume, DicomVolume)
                name = f"{self._name}.rtstruct.dcm"
                structures = rtstruct.write_rtstruct(self._directory / name, volume, model, self._key)
                self._sinks.append(stack.enter_context(structures))
                self.names.append(name)
            if wanted.preview:
                self._sinks.append(self._centre)
            if wanted.statistics:
                self._statistics = stack.enter_context(statistics.open_statistics(volume, model.labels))
                self._sinks.append(self._statistics)
            self._stack = stack.pop_all()
        return self

    def _add_nifti(self, name: str) -> None:
        volume = self._volume
        header = nifti.label_header(volume.affine, self._dtype, volume.shape, getattr(volume, "header", None))
        self._sinks.append(self._stack.enter_context(nifti.write_labels(self._directory / name, header)))

    def __exit__(self, *error: Any) -> bool | None:
        return self._stack.__exit__(*error)

    def write(self, slab: npt.NDArray[Any]) -> None:
        """Append finished planes, (x, y, k)."""
        for sink in self._sinks:
            sink.write(slab)

    def save_statistics(self) -> None:
        """After the last plane."""
        if self._statistics is not None:
            self.names += self._statistics.save(self._directory / f"{self._name}-statistics")

    def send(self) -> None:
        """DICOM objects to the server, after all else is closed. Raises ``BadInput`` where it does not take them."""
        if self._wanted.stow:
            from apps.imaging.dicom.web import store

            store(self._wanted.stow, [self._directory / name for name in self.names if name.endswith(".dcm")])

    def draw(self) -> None:
        """The preview, after all else is closed."""
        if not self._wanted.preview:
            return
        labels = self._directory / self._labels_name
        preview.write(self._directory / f"{self._name}.png", self._volume, labels, self._centre, self._model.labels)
        self.names.append(f"{self._name}.png")
        if self._labels_name not in self.names:
            labels.unlink()


def chosen_labels(model: ImagingModel, names: Sequence[str] | None) -> ImagingModel:
    """The model with the labels that ``--roi-subset`` names, and background.

    Raises
    ------
    UsageError
        For a name that the model does not have.
    """
    if names is None:
        return model
    known = {label.name: label for label in model.labels if label.value}
    if unknown := [name for name in names if name not in known]:
        raise UsageError(f"--roi-subset {','.join(unknown)}: this model has {', '.join(known)}")
    kept: tuple[Label, ...] = tuple(label for label in model.labels if not label.value or label.name in names)
    return replace(model, labels=kept)


def outputs_bytes(wanted: OutputRequest, volume: Volume, model: ImagingModel) -> Price:
    """What the sinks hold beside the labels; planes go to one after the other."""
    held, passing = 0, [0]
    if isinstance(volume, DicomVolume):
        passing.append(seg.seg_bytes(volume) if "dicom-seg" in wanted.types else 0)
        held += rtstruct.rtstruct_bytes(volume, model) if "dicom-rtstruct" in wanted.types else 0
    if wanted.statistics:
        price = statistics.statistics_bytes(volume)
        held += price.resident
        passing.append(price.transient)
    return Price(held, max(passing))
