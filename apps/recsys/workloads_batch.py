"""What ``recsys recommend --all-users`` needs, in bytes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from apps.recsys.pricing import columns
from apps.recsys.pricing_bpr import fold_terms
from apps.recsys.ranking import MARGIN, TILE
from apps.recsys.workloads import ANSWERING, LIBRARIES, PACKING_BYTES, THREAD_BYTES, USER_BLOCKS, model_terms
from common.memory import floor
from common.memory.costs import Costs, Probe
from common.memory.footprint import Footprint, Term
from common.memory.planner import Setting

PART_USERS = 1 << 12
"""Users in a part of the answer: after each, a killed run can go on."""
SCORE_BYTES = 16
"""A score of a tile: itself, whether it is wanted, and before the first tile two copies that are partitioned."""
HEAP_BYTES = 3 << 18
"""What a new thread's own malloc heap holds at first: the warm-up has not ranked in threads."""
ANSWER_BYTES = 160
"""A line of the answer: candidates and order while it is found, ids, columns and what Parquet makes of them."""


@dataclass(frozen=True, slots=True)
class BatchWorkload:
    """The model in the order of its items' lengths, and some users at a time."""

    directory: Path
    manifest: Mapping[str, Any]
    k: int
    threads: int
    name: str = "recsys recommend"

    @property
    def monotone(self) -> Sequence[str]:
        """Fewer users never need more."""
        return ("user_block",)

    def settings(self) -> Iterator[Setting]:
        """The users ranked at a time, in each thread."""
        for block in USER_BLOCKS[1:]:
            yield {"user_block": block}

    def probes(self, setting: Setting) -> Sequence[Probe]:
        """The floor."""
        return [floor.probe(ANSWERING, libraries=LIBRARIES, threads=self.threads)]

    def footprint(self, setting: Setting, known: Costs) -> Footprint:
        """The model; then what each thread works on, and a part of the answer."""
        made, rank = self.manifest, ("rank",)
        items, users, factors = made["items"], made["users"], made["factors"]
        both, block = ("load", *rank), int(setting["user_block"])
        longest, mean = made.get("longest", made["longest_history"]), made["interactions"] / users
        return Footprint.of(
            [
                *floor.terms(known, self.probes(setting)[0]),
                *model_terms(users=users, items=items, factors=columns(made), phases=both),
                Term("order of items", 8 * items, "analytic", both),
                # Lengths, negated, and their order in 64 bits.
                Term("putting in order", 24 * items, "analytic", ("load",)),
                # Written uncompressed: the file while it is read, and the table.
                Term("item ids", 2 * made["files"]["items.parquet"]["bytes"], "analytic", rank),
                Term("scores", self.threads * SCORE_BYTES * block * min(TILE, items), "analytic", rank),
                Term(
                    "histories",
                    int(8 * PART_USERS * mean + 48 * self.threads * (block * mean + longest)),
                    "analytic",
                    rank,
                ),
                Term("tile of items", self.threads * 4 * TILE * factors, "analytic", rank),
                Term("fold-in", self.threads * 4 * factors * (2 * longest + 3 * factors), "analytic", rank),
                *fold_terms(made["kind"], factors=factors, threads=self.threads, phases=rank),
                Term("part of the answer", ANSWER_BYTES * PART_USERS * (self.k + MARGIN), "measured", (*rank, "join")),
                Term("threads", self.threads * (THREAD_BYTES + HEAP_BYTES), "measured", rank),
                Term("BLAS packing", self.threads * PACKING_BYTES * factors, "measured", rank),
            ]
        )

    def seconds(self, setting: Setting, known: Costs) -> float:
        """A fixed cost a block."""
        return 1.0 + self.manifest["users"] / int(setting["user_block"])
