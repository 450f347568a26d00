"""Options of ``imaging infer`` and ``imaging compress`` on the command line, checked; no library is loaded."""

from dataclasses import dataclass
from pathlib import Path

from common.errors import UsageError
from common.extras import require


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
    output_types: tuple[str, ...] = ("nifti",)
    """Any of ``nifti``, ``dicom-seg`` and ``dicom-rtstruct``."""
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
    remove_small: float = 0.0
    """Millilitres below which a connected part becomes background."""
    series: str | None = None
    """Number or UID of the series, where a DICOM folder has several."""
    volume: int | None = None
    """Number, from 1, of the volume in a series or file of several."""
    repair: frozenset[str] = frozenset()
    """Defects that are repaired: ``tilt``, ``spacing``, ``header``."""
    fast: bool = False
    """True: segment images at half the model's resolution."""
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

    def __post_init__(self) -> None:
        if self.output.resolve() in [path.resolve() for path in self.inputs if isinstance(path, Path)]:
            raise UsageError(f"-o {self.output}: is an input too; its results would be taken for images the next time")
        if self.device.startswith("cuda") and self.engine not in ("auto", "torch"):
            raise UsageError(
                f"--device {self.device}: {self.engine} runs on the CPU here; only --engine torch does not"
            )
        if self.engine in ("openvino", "onnxruntime"):
            require("engines", self.engine, purpose=f"--engine {self.engine}")
        if "dicom-seg" in self.output_types:
            require("dicom", "highdicom", purpose="--output-type dicom-seg")
        if self.split_classes and "nifti" not in self.output_types:
            raise UsageError("--split-classes writes NIfTI files: --output-type nifti is needed")
        if self.stow:
            from apps.imaging.dicom.web import check_address

            check_address(self.stow)
            if not any(kind.startswith("dicom") for kind in self.output_types):
                raise UsageError("--stow sends DICOM objects: --output-type dicom-seg or dicom-rtstruct makes them")


def choose_engine(engine: str, device: str) -> str:
    """The engine for ``--engine`` and ``--device``: of ``auto`` the fastest that is installed and runs there."""
    from common.engines.registry import choose

    return "torch" if device.startswith("cuda") else choose(engine)


@dataclass(frozen=True, slots=True, kw_only=True)
class CompressOptions:
    """The options of ``imaging compress``.

    Raises
    ------
    UsageError
        If the output folder is the model itself.
    """

    model: Path
    output: Path
    calibration: Path
    """Folder with volumes, or a data set with ``imagesTr``."""
    tiles: int
    """Tiles on which ranges are found, of all volumes together."""
    threads: int

    def __post_init__(self) -> None:
        if self.output.resolve() == self.model.resolve():
            raise UsageError(f"-o {self.output}: is the model itself")
