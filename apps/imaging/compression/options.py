"""Options of ``imaging compress`` on the command line, checked; no library is loaded."""

from dataclasses import dataclass
from pathlib import Path

from common.errors import UsageError

IMPORTANCE = ("norm", "taylor", "zeros")
"""What decides which channels go: the norm of their weights, the loss without them, or how often they are zero."""
DECOMPOSITIONS = ("tucker", "cp")
"""Forms of a kernel of low rank."""
TILES = 32
"""Tiles on which ranges and importance are found, of all volumes together (NNCF's default is 300 pictures, far smaller
ones)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CompressOptions:
    """The options of ``imaging compress``: int8, or a smaller network.

    Raises
    ------
    UsageError
        If the output folder is the model itself, nothing is to be done, or options contradict each other.
    """

    model: Path
    output: Path
    int8: bool = False
    int8_weights: bool = False
    """True for weights alone in 8-bit integers."""
    calibration: Path | None = None
    """Folder with volumes, or a data set with ``imagesTr``."""
    tiles: int = TILES
    """Tiles that are read, of all volumes together."""
    drop_blocks: int = 0
    """Residual blocks that go."""
    prune: float | None = None
    """Share of the parameters that goes with whole channels."""
    importance: str = "norm"
    """One of ``IMPORTANCE``."""
    low_rank: float | int | None = None
    """Share of each kernel's energy that stays, or the bytes of the file of weights."""
    decomposition: str = "tucker"
    """One of ``DECOMPOSITIONS``."""
    half: bool = False
    """True for weights, also those of the ONNX file, in half precision."""
    threads: int

    def __post_init__(self) -> None:
        if self.output.resolve() == self.model.resolve():
            raise UsageError(f"-o {self.output}: is the model itself")
        if not self.quantises and not self.shrinks:
            raise UsageError("nothing to do: give --prune, --drop-blocks, --low-rank, --fp16, --int8 or --int8-weights")
        if self.int8 and self.int8_weights:
            raise UsageError("--int8-weights: --int8 has the weights in integers too; give one of them")
        if self.int8 and self.calibration is None:
            raise UsageError("--int8: ranges are found on images: --calibration DIR; --int8-weights needs none")
        if self.decomposition != "tucker" and self.low_rank is None:
            raise UsageError(f"--decomposition {self.decomposition}: says how --low-rank lowers ranks")
        if self.importance != "norm" and self.prune is None:
            raise UsageError(f"--importance {self.importance}: says which channels --prune removes")
        if self.importance != "norm" and self.calibration is None:
            raise UsageError(f"--importance {self.importance}: is measured on images; --calibration DIR names them")
        if self.calibration is not None and not (self.int8 or self.needs_images):
            raise UsageError("--calibration: only --int8, --drop-blocks and --importance taylor or zeros read images")

    @property
    def quantises(self) -> bool:
        """True if the network is written in 8-bit integers."""
        return self.int8 or self.int8_weights

    @property
    def shrinks(self) -> bool:
        """True if the network itself becomes smaller."""
        return bool(self.drop_blocks or self.prune is not None or self.low_rank is not None or self.half)

    @property
    def needs_images(self) -> bool:
        """True if images decide what goes."""
        return self.importance != "norm" or bool(self.drop_blocks and self.calibration)
