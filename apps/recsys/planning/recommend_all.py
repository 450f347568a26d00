"""What ``recsys recommend --all-users`` needs, in bytes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from apps.recsys.models.catalogue_search import TILE
from apps.recsys.models.manifest import RecommenderManifest
from apps.recsys.planning.bpr_terms import fold_terms
from apps.recsys.planning.embedding_terms import columns
from apps.recsys.planning.floors import ANSWERING, LIBRARIES
from apps.recsys.planning.ranking_terms import (
    PACKING_BYTES,
    THREAD_BYTES,
    USER_BLOCKS,
    WARM_FACTORS,
    model_terms,
)
from apps.recsys.planning.requests import RecommendAllRequest
from common.memory.costs import baseline
from common.memory.costs.probes import Costs, Probe
from common.memory.footprint import Footprint, Term
from common.memory.plan.plan import Setting

PART_USERS, PART_LINES = 1 << 12, 1 << 16
"""Users and lines in a part of the answer, at most: after each, a killed run can go on."""
SCORE_BYTES = 9
"""A score of a tile: itself, whether it is wanted, and before the first tile a copy that is partitioned."""
FOUND_BYTES = 12
"""A line of the answer while others are looked for: an item and its score."""
ANSWER_BYTES, PARQUET_BYTES = 104, 8 << 20
"""A line of the answer when it is written, with its ids and columns; and what Parquet takes for any (9 to 14 MiB
measured of 40,960 to 65,536 lines)."""

READ_BYTES = 32
"""A line that is read back to join the parts."""
GROUP_BYTES = 8 << 10
"""What the end of a Parquet file says of one part (6.5 KiB measured, of 288 parts)."""


@dataclass(frozen=True, slots=True)
class RecommendAllWorkload:
    """The model in the order of its items' lengths, and some users at a time."""

    request: RecommendAllRequest
    manifest: RecommenderManifest
    """``model.json`` of the model folder."""
    name: str = "recsys recommend"

    @property
    def part_users(self) -> int:
        """Users in a part of the answer."""
        return min(PART_USERS, max(1, PART_LINES // self.request.k))

    @property
    def monotone_knobs(self) -> Sequence[str]:
        """Fewer users never need more."""
        return ("user_block",)

    def settings(self) -> Iterator[Setting]:
        """The users ranked at a time, in each thread."""
        for block in USER_BLOCKS[1:]:
            yield {"user_block": block}

    def probes(self, setting: Setting) -> Sequence[Probe]:
        """The baseline."""
        return [baseline.probe(ANSWERING, libraries=LIBRARIES, threads=self.request.threads)]

    def footprint(self, setting: Setting, costs: Costs) -> Footprint:
        """The model; then what each thread works on, or a part of the answer."""
        made, rank = self.manifest, ("rank",)
        items, users, factors, threads = made["items"], made["users"], made["factors"], self.request.threads
        both, part, tile = ("load", *rank), min(self.part_users, users), min(TILE, items)
        block = min(int(setting["user_block"]), -(-part // threads))
        longest, mean = made.get("longest", made["longest_history"]), made["interactions"] / users
        lines = part * min(self.request.k, items)
        folding = 4 * factors * (2 * longest + 3 * factors)
        # Pairs that are not to be ranked, sorted; a user's vector, or the scores of a tile.
        each = 48 * (block * mean + longest) + max(folding, tile * (SCORE_BYTES * block + 4 * factors))
        ranking, writing = int(threads * each) + FOUND_BYTES * lines, PARQUET_BYTES + ANSWER_BYTES * lines
        return Footprint.of(
            [
                *baseline.terms(costs, self.probes(setting)[0]),
                *model_terms(users=users, items=items, factors=columns(made), phases=both),
                Term("order of items", 8 * items, "analytic", both),
                # Lengths, negated, and their order in 64 bits.
                Term("putting in order", 24 * items, "analytic", ("load",)),
                # Written uncompressed: the file while it is read, and the table.
                Term("item ids", 2 * made["files"]["items.parquet"]["bytes"], "analytic", rank),
                Term("histories", int(8 * part * mean), "analytic", rank),
                *fold_terms(made["kind"], factors=factors, threads=threads, phases=rank),
                Term("ranking or writing", max(ranking, writing), "measured", rank),
                Term("part of the answer", READ_BYTES * lines + writing, "measured", ("join",)),
                Term("parts", GROUP_BYTES * -(-users // self.part_users), "measured", ("join",)),
                Term("threads", threads * THREAD_BYTES, "measured", rank),
                Term(
                    "BLAS packing",
                    threads * PACKING_BYTES * max(0, factors - WARM_FACTORS),
                    "measured",
                    rank,
                ),
            ]
        )

    def seconds(self, setting: Setting, costs: Costs) -> float:
        """A fixed cost a block."""
        return 1.0 + float(self.manifest["users"]) / int(setting["user_block"])
