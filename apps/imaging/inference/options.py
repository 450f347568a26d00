"""Options of ``imaging infer`` on the command line, checked; no library is loaded."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from common.errors import UsageError
from common.extras import require
from common.parts import Part


@dataclass(frozen=True, slots=True, kw_only=True)
class InferOptions:
    """The options of ``imaging infer``.

    Raises
    ------
    UsageError
        Options that contradict each other.
    """

    inputs: tuple[Path | str, ...]
    """Paths, and addresses on DICOMweb servers as text."""
    model: Path
    output: Path
    """The folder of outputs; that of the part, where there are parts."""
    part: Part | None = None
    """Which studies are segmented; ``None``: all."""
    output_types: tuple[str, ...] = ("nifti",)
    """Any of ``nifti``, ``dicom-seg``, ``dicom-sr`` and ``dicom-rtstruct``."""
    seg_type: str = "auto"
    """``auto``, ``binary`` or ``labelmap``."""
    preview: bool = False
    statistics: bool = False
    stow: str = ""
    """Address to which DICOM objects are sent; none if empty."""
    roi_subset: tuple[str, ...] | None = None
    """Names of the classes that are written; ``None``: all."""
    split_classes: bool = False
    """True for a NIfTI file of each class."""
    probabilities: Literal["uint8", "uint16"] | None = None
    """Type of the numbers in a file of probabilities; ``None``: there is none."""
    remove_small: float = 0.0
    """Millilitres below which a connected part becomes background."""
    series: str | None = None
    """Number or UID of the series, where a DICOM folder has several."""
    channels: tuple[tuple[str, str], ...] = ()
    """Channel of the model, and number, UID or words of the description of its series, for each in a DICOM study."""
    volume: int | None = None
    """Number, from 1, of the volume in a series or file of several."""
    repair: frozenset[str] = frozenset()
    """Defects that are repaired: ``tilt``, ``spacing``, ``header``."""
    suv: bool = False
    """True: values of PET become SUVs by body weight."""
    fast: bool = False
    """True: segment images at half the model's resolution."""
    crop_first: bool = False
    """True: a coarse pass finds the box in which the model looks."""
    crop_model: Path | None = None
    """Model of that pass; ``None``: the same at a third of its resolution."""
    crop_margin: float = 20.0
    """Millimetres around what it finds."""
    tile: tuple[int, int, int] | None = None
    """Voxels along the model's axes; ``None``: the model's patch."""
    overlap: float | None = None
    """Share of a tile that the next one covers again; ``None``: the model's."""
    batch: int | None = None
    """Tiles at a time; ``None``: the planner's choice."""
    engine: str = "auto"
    precision: str | None = None
    """``None``: int8 if the model was quantised and OpenVINO runs it, else float32."""
    mirror: bool = False
    """True: average over mirrored tiles."""
    folds: tuple[str, ...] = ()
    """Folds of an nnU-Net model; all if empty."""
    checkpoint: str = ""
    """Weights of an nnU-Net model; empty: ``checkpoint_final.pth``."""
    device: str = "cpu"
    threads: int = 1
    further_models: tuple[Path, ...] = ()
    """The second model and those after it, where several share a label map."""
    labels: Path | None = None
    """Label map of the models."""
    task: str = ""
    """Name of a task, where the model is a folder of results with a network for each part of it."""
    quality_loss: float = 0.0
    """Share of the mean Dice that a variant may lose which takes the model's place where that does not fit."""
    variants: Path | None = None
    """Folder of the model's variants; ``None``: one in the model's folder."""

    @property
    def chosen(self) -> dict[str, Any]:
        """What decides the images that are read, for ``InferRequest.digest``."""
        volume = {} if self.volume is None else {"volume": [str(self.volume)]}
        values = {"values": ["SUVbw"]} if self.suv else {}
        return {"repair": sorted(self.repair), **volume, **values}

    def __post_init__(self) -> None:
        self._check_networks()
        output = self.output if self.part is None else self.output.parent
        if output.resolve() in [path.resolve() for path in self.inputs if isinstance(path, Path)]:
            raise UsageError(f"-o {output}: is an input too; its results would be taken for images the next time")
        if self.device.startswith("cuda") and self.engine not in ("auto", "torch"):
            raise UsageError(
                f"--device {self.device}: {self.engine} runs on the CPU here; only --engine torch does not"
            )
        if self.engine in ("openvino", "onnxruntime"):
            require("engines", self.engine, purpose=f"--engine {self.engine}")
        if "dicom-seg" in self.output_types:
            require("dicom", "highdicom", purpose="--output-type dicom-seg")
        elif "dicom-sr" in self.output_types:
            raise UsageError(
                "--output-type dicom-sr: its measurements are of segments; --output-type dicom-seg,dicom-sr"
            )
        if self.split_classes and "nifti" not in self.output_types:
            raise UsageError("--split-classes writes NIfTI files: --output-type nifti is needed")
        if self.channels and self.series:
            raise UsageError("--channel names the series of each channel; --series is for models of one")
        if self.stow:
            from apps.imaging.dicom.web import check_address

            check_address(self.stow)
            if not any(kind.startswith("dicom") for kind in self.output_types):
                raise UsageError("--stow sends DICOM objects: --output-type dicom-seg or dicom-rtstruct makes them")

    def _check_networks(self) -> None:
        """Refuse options that several networks cannot have."""
        several = self.further_models or self.labels is not None or self.task or self.crop_first
        if self.quality_loss and several:
            raise UsageError("--allow-quality-loss: variants take the place of one model, not of several networks")
        if self.variants is not None and not self.variants.is_dir():
            raise UsageError(f"--variants {self.variants}: no such folder")
        if self.quality_loss and self.fast:
            raise UsageError("--allow-quality-loss: not with --fast; losses are those at the model's own resolution")
        if self.further_models and self.labels is None and not self.task:
            raise UsageError("several models: --labels MAP.json has to say which of their classes become which labels")
        if self.task and (self.further_models or self.labels is not None):
            raise UsageError(f"--task {self.task}: takes one -m, a folder of results, and has a label map of its own")
        if self.probabilities and (self.further_models or self.labels is not None or self.task):
            raise UsageError("--probabilities: classes of several networks have none in common; run each model alone")
        if self.crop_first and self.probabilities:
            raise UsageError("--crop-first: makes labels alone, without --probabilities")


def choose_engine(engine: str, device: str) -> str:
    """The engine for ``--engine`` and ``--device``: of ``auto`` the fastest that is installed and runs there."""
    from common.engines.registry import choose

    return "torch" if device.startswith("cuda") else choose(engine)
