"""``imaging evaluate``'s request: two files or folders, and what one pass over the files that match finds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from apps.imaging.evaluation.metrics import Pair, Scan


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluateOptions:
    """The options of ``imaging evaluate``."""

    predictions: Path
    references: Path
    threads: int
    model: Path | None = None
    """Model or label map whose classes have names."""
    tolerance: float = 1.0
    """Millimetres within which two surfaces agree."""
    repair: frozenset[str] = frozenset()
    """``header``: take the part of a contradictory header that agrees with ``pixdim``."""
    print_table: bool
    """True: print a table on stdout; false with ``--json``, which prints nothing but the record."""

    @property
    def record(self) -> Path:
        """Path of the record: in the folder that is evaluated, or in that of the file."""
        folder = self.predictions if self.predictions.is_dir() else self.predictions.parent
        return folder / "evaluation.json"


@dataclass(frozen=True, slots=True)
class EvaluateRequest:
    """The request of ``imaging evaluate``."""

    options: EvaluateOptions
    pairs: "Sequence[Pair]"
    scans: "Sequence[Scan]"
    """Voxels and surfaces of each pair, counted."""

    names: "Mapping[int, str]" = field(default_factory=dict)
    """Of the classes, by label."""

    @classmethod
    def of(cls, options: EvaluateOptions, names: Mapping[int, str]) -> "EvaluateRequest":
        """Match the files, check their headers, and count in one pass over each pair.

        Parameters
        ----------
        names
            Of the classes, by label.

        Raises
        ------
        BadInput
            Nothing to compare, or files that cannot be compared.
        """
        from apps.imaging.evaluation.metrics import scan
        from apps.imaging.evaluation.pairing import find_pairs

        pairs = find_pairs(options.predictions, options.references, repair="header" in options.repair, names=names)
        return cls(options, pairs, [scan(pair) for pair in pairs], names)
