"""Memory of ``recsys recommend`` for many users or histories, in bytes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from apps.recsys.data.csr_store import BLOCK
from apps.recsys.data.questions.subjects import LOOKED_UP, Subjects
from apps.recsys.models.catalogue_search import TILE
from apps.recsys.models.likeness.diversity import shortlist
from apps.recsys.models.manifest import RecommenderManifest
from apps.recsys.planning import linear_terms
from apps.recsys.planning.answer import LIMIT_BYTES, LOOK_UP_BYTES, NAMED_BYTES
from apps.recsys.planning.baselines import ANSWERING, LIBRARIES, WAITING_BYTES, warm_up_for
from apps.recsys.planning.bpr_terms import fold_terms
from apps.recsys.planning.embedding_terms import columns
from apps.recsys.planning.questions.diversity import diversity_terms
from apps.recsys.planning.questions.recommend_requests import RecommendAllRequest
from apps.recsys.planning.questions.where import where_terms
from apps.recsys.planning.ranking_terms import (
    PACKING_BYTES,
    THREAD_BYTES,
    USER_BLOCKS,
    WARM_FACTORS,
    folding_bytes,
    model_terms,
)
from common.files import Workspace
from common.memory.costs import baseline
from common.memory.costs.probes import Costs, Probe
from common.memory.footprint import Footprint, Term
from common.memory.plan.plan import Setting

PART_USERS, PART_ROWS = 1 << 12, 1 << 16
"""Most users and rows in a part of the output; a killed run continues after its last part."""
SCORE_BYTES = 9
"""Bytes per score of a tile: itself, a comparison, and for the first tile a copy that is partitioned."""
RANKED_BYTES = 12
"""Bytes per row of the output while users are ranked: an item and its score."""
ANSWER_BYTES = 104
"""Bytes per row of the output when it is written, with ids of ``SHORT_IDS`` bytes and columns."""
SHORT_IDS = 16
"""Bytes of a user's and an item's id that are in ``ANSWER_BYTES``; longer ids take more in each row."""
WRITTEN_BYTES = 1 << 20
"""Memory that the writer keeps after the first part (0.8 to 1.5 MiB measured)."""
PARQUET_BYTES, PARQUET_ROWS, PARQUET_ROW_BYTES, MOST_PARQUET_BYTES = 9 << 18, 1 << 14, 235, 8 << 20
"""Memory of the Parquet writer: for up to so many rows, for each further row, and at most (with ``ANSWER_BYTES``, MiB
measured: 1.3 to 1.5 for 40 to 1,200 rows, 4.6 for 20,000, 12 for 40,960, 14 for 65,536)."""
READ_BYTES = 32
"""Bytes per row that is read again to join the parts."""
LISTED_BYTES = 64
"""Memory of an item of a shortlist that is not of the list: candidates, old and new ones sorted, a row and a score."""
GROUP_BYTES = 8 << 10
"""Metadata of one part in the Parquet file (6.5 KiB measured, with 288 parts)."""


@dataclass(frozen=True, slots=True)
class RecommendAllWorkload:
    """``recsys recommend`` for many: rank for blocks of users, write parts, join them."""

    request: RecommendAllRequest
    manifest: RecommenderManifest
    """``model.json`` of the model folder."""
    subjects: Subjects | None = None
    """Sizes of a file of users or histories, or of a part of the model's users; ``None``: all of these."""
    workspace: Workspace | None = None
    """Holds what was read of that file."""
    name: str = "recsys recommend"

    @property
    def part_users(self) -> int:
        """Users in a part of the output."""
        return part_users(self.request.k)

    @property
    def count(self) -> int:
        """Number of lists."""
        return self.manifest["users"] if self.subjects is None else self.subjects.count

    @property
    def monotone_knobs(self) -> Sequence[str]:
        """Knobs of which smaller values never need more memory."""
        return ("user_block",)

    def settings(self) -> Iterator[Setting]:
        """Numbers of users ranked at a time, in each thread."""
        for block in linear_terms.user_blocks(self.manifest)[-len(USER_BLOCKS) + 1 :]:
            yield {"user_block": block}

    def probes(self, setting: Setting) -> Sequence[Probe]:
        """The baseline."""
        warm_up = warm_up_for(self.manifest, ANSWERING)
        return [baseline.probe(warm_up, libraries=LIBRARIES, threads=self.request.threads)]

    def footprint(self, setting: Setting, costs: Costs) -> Footprint:
        """The model; then the work of each thread, or a part that is written."""
        manifest, rank = self.manifest, ("rank",)
        items, users, factors, threads = manifest["items"], manifest["users"], manifest["factors"], self.request.threads
        files = manifest["files"]
        both, part, tile = ("load", *rank), max(1, min(self.part_users, self.count)), min(TILE, items)
        block, size, filtering = min(int(setting["user_block"]), -(-part // threads)), columns(manifest), []
        if linear_terms.scores_all(manifest):
            # Blocks of one size that keep every thread busy (``Ranker.answer``).
            even = -(-part // (-(-part // (threads * block)) * threads))
            filtering = linear_terms.scorer_terms(
                manifest, block=threads * even, threads=threads, phases=both, scoring=rank
            )
            factors = size = tile = 0
        longest, mean = manifest.get("longest", manifest["longest_history"]), manifest["interactions"] / users
        if self.subjects is not None:  # those of a file may be the longest of all, in one part
            longest, mean = self.subjects.longest, self.subjects.largest_part / part
        k = min(self.request.k, items)
        rows, listed = part * k, min(shortlist(self.request.k, self.request.diversity), items)
        solves = not linear_terms.is_spectral(manifest)
        folding = folding_bytes(factors=factors, longest=longest, solves=solves)
        # Pairs that are not ranked, sorted; a user's vector, or the scores of a tile.
        each = 48 * (block * mean + longest) + max(folding, tile * (SCORE_BYTES * block + 4 * factors))
        writer = min(PARQUET_BYTES + PARQUET_ROW_BYTES * max(0, rows - PARQUET_ROWS), MOST_PARQUET_BYTES)
        named = files["users.parquet"]["bytes"] // users if self.subjects is None else self.subjects.id_bytes
        names = max(0, named + files["items.parquet"]["bytes"] // items - SHORT_IDS)
        writing = writer + (ANSWER_BYTES + names) * rows
        kept = WRITTEN_BYTES if self.count > self.part_users else 0
        ranking = int(threads * each) + RANKED_BYTES * rows + kept
        return Footprint.of(
            [
                *baseline.terms(costs, self.probes(setting)[0]),
                *model_terms(users=users, items=items, factors=size, phases=both, solves=solves),
                *filtering,
                Term("order of items", 8 * items, "analytic", both),
                # Lengths, negated lengths, and their order in 64 bits.
                Term("putting in order", 24 * items, "analytic", ("load",)),
                *self._question_terms(),
                *diversity_terms(self.request.k, self.request.diversity, manifest, rank, threads=threads),
                Term("shortlists", threads * block * LISTED_BYTES * (listed - k), "analytic", rank),
                *where_terms(self.request.where, manifest, both, threads=threads),
                # Stored uncompressed: the file while it is read, and the table.
                Term("item ids", 2 * files["items.parquet"]["bytes"], "analytic", rank),
                Term("histories", int(8 * part * mean), "analytic", rank),
                *fold_terms(manifest["kind"], factors=factors, longest=longest, threads=threads, phases=rank),
                Term("ranking or writing", max(ranking, writing), "measured", rank),
                Term("part of the answer", (READ_BYTES + names) * rows + writing + kept, "measured", ("join",)),
                Term("parts", GROUP_BYTES * -(-self.count // self.part_users), "measured", ("join",)),
                Term("threads", threads * THREAD_BYTES, "measured", rank),
                Term(
                    "BLAS packing",
                    threads * PACKING_BYTES * max(0, factors - WARM_FACTORS),
                    "measured",
                    rank,
                ),
            ]
        )

    def seconds(self, setting: Setting) -> float:
        """A fixed cost per block of users; the rest is the same for all settings."""
        return 1.0 + self.count / int(setting["user_block"])

    def _question_terms(self) -> list[Term]:
        """Lists of ids in the request, and a file of users or histories: while it is read, and afterwards."""
        named, items, subjects, load = self.request.named, self.manifest["items"], self.subjects, ("load",)
        terms = [
            Term("ids in the question", NAMED_BYTES * named, "measured", ("load", "rank", "join")),
            Term("looking up ids", (LOOK_UP_BYTES + LIMIT_BYTES) * items * (named > 0), "analytic", load),
        ]
        if subjects is None:
            return terms
        files, users = self.manifest["files"], self.manifest["users"]
        table = 2 * files["users.parquet" if subjects.kind == "users" else "items.parquet"]["bytes"]
        # A chunk or the longest list as text, with its rows; one number of each; the users' index and a mask.
        reading = NAMED_BYTES * (LOOKED_UP + subjects.longest) + 32 * subjects.count + 9 * users + table
        return [
            *terms,
            Term("reading the file of ids", reading + WAITING_BYTES, "measured", ("plan",)),
            Term("subjects", 8 * subjects.count, "analytic", ("load", "rank")),
            Term("counting users of items", 12 * BLOCK, "analytic", load),
        ]


def part_users(k: int) -> int:
    """Users in a part of the output, if each gets ``k`` items."""
    return min(PART_USERS, max(1, PART_ROWS // k))
