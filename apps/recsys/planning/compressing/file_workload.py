"""Memory of ``recsys compress`` for a file of factors, in bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from apps.recsys.models.coded.implicit_file import ITEMS, USERS
from apps.recsys.planning.baselines import LIBRARIES, SCORING
from apps.recsys.planning.compressing.request import LAYERS, CompressRequest
from apps.recsys.planning.compressing.terms import decoding_bytes
from apps.recsys.planning.compressing.workload import LISTED, LISTED_USERS, fitting_bytes
from common.compression.codes import BLOCK_ROWS
from common.compression.row_codes import SCALE_BYTES
from common.memory.costs import baseline
from common.memory.costs.probes import Costs, Probe
from common.memory.footprint import Footprint, Term
from common.memory.plan.plan import OneSetting, Setting

LIST_BLOCK = 64
"""Users for whom lists are made at a time."""


LINEAR_ALGEBRA = 1 << 20
"""What the first eigenvalues and the first rotation load of LAPACK: 0.7 MiB with one item of 24 numbers."""


@dataclass(frozen=True, slots=True)
class CompressFileWorkload(OneSetting):
    """Encode both sides of a file of factors.

    Attributes
    ----------
    request
        Request of the command line.
    shapes
        Rows, columns and bytes of a number of the factors by name.
    row_bytes
        Bytes of a row of either side, without its scale.
    """

    request: CompressRequest
    shapes: Mapping[str, tuple[int, int, int]]
    row_bytes: int
    name: str = "recsys compress"

    def probes(self, setting: Setting) -> Sequence[Probe]:
        """The baseline."""
        return [baseline.probe(SCORING, libraries=LIBRARIES, threads=self.request.threads)]

    def footprint(self, setting: Setting, costs: Costs) -> Footprint:
        """Both sides in float32 and as codes; one of them while it is read, or rotated and encoded; lists of users."""
        encode = ("encode",)
        rows, factors = sum(shape[0] for shape in self.shapes.values()), self.shapes[ITEMS][1]
        items, longest, size = (
            self.shapes[ITEMS][0],
            max(shape[0] for shape in self.shapes.values()),
            self.row_bytes + SCALE_BYTES,
        )
        listed = min(LISTED_USERS, self.shapes[USERS][0])
        # Numbers of another size are read before they are converted.
        reading = max(shape[0] * factors * shape[2] * (shape[2] != 4) for shape in self.shapes.values())
        # The columns that stay, their levels, and a block of rows.
        encoding = 5 * longest * factors + 2 * decoding_bytes(factors=factors, rows=min(BLOCK_ROWS, longest))
        if LAYERS[self.request.codes]:
            encoding = 5 * longest * factors + fitting_bytes(longest, factors, size) + 4 * longest
        lists = 4 * items * factors + 4 * LIST_BLOCK * items * 2 + 8 * listed * LISTED * 2
        return Footprint.of(
            [
                *baseline.terms(costs, self.probes(setting)[0]),
                Term("factors", 4 * rows * factors, "analytic", encode),
                Term("one side read or encoded, or lists", max(reading, encoding, lists), "analytic", encode),
                Term("codes", 2 * size * rows, "analytic", encode),
                Term("Gramians", 10 * 8 * factors * factors + LINEAR_ALGEBRA, "analytic", encode),
            ]
        )
