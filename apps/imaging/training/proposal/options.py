"""Options of ``imaging fingerprint`` on the command line, checked; no library is loaded."""

from dataclasses import dataclass
from pathlib import Path

from common.errors import UsageError


@dataclass(frozen=True, slots=True, kw_only=True)
class FingerprintOptions:
    """The options of ``imaging fingerprint``.

    Raises
    ------
    UsageError
        An output in the data set, or that is a folder.
    """

    dataset: Path
    output: Path
    network: str
    skip_bad: bool
    threads: int
    quiet: bool

    def __post_init__(self) -> None:
        if self.output.is_dir():
            raise UsageError(f"-o {self.output}: expected a file to write")
        if self.dataset.resolve() in self.output.resolve().parents:
            raise UsageError(f"-o {self.output}: is in the data set; choose another place")
