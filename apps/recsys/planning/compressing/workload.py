"""Memory of ``recsys compress``, in bytes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from apps.recsys.models.bpr import COMPARED
from apps.recsys.models.manifest import RecommenderManifest
from apps.recsys.models.scan.stored import writing_bytes
from apps.recsys.planning import bpr_terms, embedding_terms, ials_terms
from apps.recsys.planning.baselines import LIBRARIES, SCORING, TRAINING, baseline_terms, warm_up_for
from apps.recsys.planning.compressing.request import LAYERS, SCALAR, CompressRequest
from apps.recsys.planning.compressing.terms import PRIOR_COLUMNS, decoding_bytes, vector_terms
from apps.recsys.planning.evaluate import EvaluateWorkload
from apps.recsys.planning.ranking_terms import USER_BLOCKS, folding_bytes
from apps.recsys.planning.requests import EvaluateRequest
from common.compression import books as code_books
from common.compression.book_layout import MOST_BITS
from common.compression.codes import BLOCK_ROWS
from common.compression.row_codes import SCALE_BYTES
from common.memory.costs import baseline
from common.memory.costs.probes import Costs, Probe
from common.memory.footprint import Footprint, Term
from common.memory.plan.plan import Setting

EXACT = "exact solver"
"""Name of the term of what solves users."""
SAMPLED_USERS = 1 << 12
"""Users whose vectors give the Gramian, where not all are solved anyway."""
LISTED_USERS, LISTED = 500, 20
"""Users whose lists are compared, and the length of a list."""
FEW_BYTES = 8
"""Bytes of a row from which a group has a small part of the columns: what is predicted is then 1 and 2 % above what
Gowalla takes in 32 and 8 bytes, and 8 % above Epinions in 8."""
NUMBERS = 33
"""Bytes of an item while classes are made: scales, their codes and logarithms, classes twice, and an order."""
SYSTEMS, TOGETHER = 1 << 21, 1 << 11
"""Numbers of the systems that a thread has at a time while items are solved over their levels, and users of an item
that it gathers (``training.compressing.discrete``, which imports this package)."""


@dataclass(frozen=True, slots=True)
class CompressWorkload:
    """``recsys compress``: encode the vectors, rank by both models, copy the other files.

    Attributes
    ----------
    request
        Request of the command line.
    manifest
        ``model.json`` of the model folder.
    row_bytes
        Bytes of a row of each matrix, without its scale (``CompressRequest.row_bytes``).
    scored_users
        Users with held-out items; 0: nothing was held out.
    """

    request: CompressRequest
    manifest: RecommenderManifest
    row_bytes: Mapping[str, int]
    scored_users: int
    name: str = "recsys compress"

    @property
    def kind(self) -> str:
        """Kind of the model."""
        return self.manifest["kind"]

    @property
    def sizes(self) -> ials_terms.Sizes:
        """Sizes of the matrix of ``ials``."""
        manifest = self.manifest
        return ials_terms.Sizes(
            users=manifest["users"],
            items=manifest["items"],
            interactions=manifest["interactions"],
            longest=manifest.get("longest", manifest["longest_history"]),
            factors=manifest["factors"],
            exact=True,
            threads=self.request.threads,
        )

    @property
    def codes(self) -> dict[str, int]:
        """Bytes of an item of each matrix of codes, at most."""
        return {name: size + SCALE_BYTES for name, size in self.row_bytes.items()}

    def settings(self) -> Iterator[Setting]:
        """Users ranked at a time, and interactions of ``ials`` solved at a time."""
        blocks = ials_terms.blocks(self.sizes) if self.kind == "ials" else [self.manifest["interactions"]]
        for users in USER_BLOCKS if self.scored_users else USER_BLOCKS[-1:]:
            yield from ({"fit_block": block, "user_block": users} for block in blocks)

    @property
    def warm_up(self) -> str:
        """Warm-up of the command."""
        return TRAINING if self.kind == "ials" else warm_up_for(self.manifest, SCORING)

    def probes(self, setting: Setting) -> Sequence[Probe]:
        """The baseline."""
        return [baseline.probe(self.warm_up, libraries=LIBRARIES, threads=self.request.threads)]

    def footprint(self, setting: Setting, costs: Costs) -> Footprint:
        """Encoding; then both models, one after the other, that rank for held-out users or make some lists."""
        phases = ("encode", "before", "after", "write")
        terms = [*baseline_terms(costs, self.probes(setting)[0], *phases), *self._encoding_terms(setting)]
        form = {} if self.request.codes == SCALAR else {"code_form": self.request.codes}
        coded: Any = {**self.manifest, "codes": self.codes, **form}
        for phase, manifest in (("before", self.manifest), ("after", coded)):
            request = EvaluateRequest(model=self.request.model, threads=self.request.threads)
            ranked = EvaluateWorkload(request, manifest, self.scored_users or LISTED_USERS)
            terms += ranked.scoring_terms(manifest, int(setting["user_block"]), (phase,))
            terms.append(Term("lists of some users", 64 * LISTED_USERS * LISTED, "analytic", (phase,)))
        stored = sum(self.codes.values()) * self.manifest["items"]
        terms.append(Term("codes of the items", stored, "analytic", ("write",)))
        if self.request.scan:
            scan = writing_bytes(coded["items"], coded["factors"])
            terms.append(Term("codes to scan by", scan, "analytic", ("write",)))
            terms += vector_terms(coded, threads=1, phases=("write",))
        return Footprint.of(terms)

    def _encoding_terms(self, setting: Setting) -> list[Term]:
        manifest, request, encode = self.manifest, self.request, ("encode",)
        items, factors, matrices = manifest["items"], manifest["factors"], len(self.row_bytes)
        dense = 4 * items * factors * matrices
        sampled = min(SAMPLED_USERS, manifest["users"])
        longest = manifest.get("longest", manifest["longest_history"])
        block = 2 * decoding_bytes(factors=factors, rows=min(BLOCK_ROWS, items))
        layers = LAYERS[request.codes]
        books = fitting_bytes(items, factors, min(self.codes.values())) if layers else 0
        common = [
            Term("item factors", dense, "analytic", encode),
            Term("levels of the items", items * factors * matrices * max(1, layers), "analytic", encode),
            Term("scales and classes", NUMBERS * items, "analytic", encode),
            Term("codes of the items", sum(self.codes.values()) * items, "analytic", encode),
            Term("Gramians", 10 * 8 * factors * factors, "analytic", encode),
            Term("history index", 8 * (manifest["users"] + 1), "analytic", encode),
        ]
        if self.kind == "ials":
            solving = [replace(term, phases=encode) for term in ials_terms.terms(self.sizes, int(setting["fit_block"]))]
            exact = sum(term.bytes for term in solving if term.name == EXACT)
            systems = systems_bytes(factors, request.threads) * (2 if layers else 1)
            step = max(exact, systems, dense + max(block, books))
            return [
                *common,
                *(term for term in solving if term.name != EXACT),
                Term("solving, or items that are encoded", step, "analytic", encode),
            ]
        prior = 4 * items * PRIOR_COLUMNS if manifest["hyper"].get("prior") else 0
        return [
            *common,
            Term("items that are encoded", dense + max(block, books), "analytic", encode),
            Term("user vectors", 4 * 2 * sampled * (factors + 1), "analytic", encode),
            Term(
                "histories",
                int(12 * longest + sampled * (512 + 12 * manifest["interactions"] / manifest["users"])),
                "analytic",
                encode,
            ),
            Term("fold-in workspace", folding_bytes(factors=factors, longest=longest), "analytic", encode),
            Term("items to compare with", prior + 4 * COMPARED * factors, "analytic", encode),
            Term("vectors for the fold-in", 4 * items * embedding_terms.columns(manifest), "analytic", encode),
            *bpr_terms.fold_terms(self.kind, factors=factors, longest=longest, threads=1, phases=encode),
        ]

    def seconds(self, setting: Setting) -> float:
        """A fixed cost for each block."""
        blocks = self.manifest["interactions"] / int(setting["fit_block"])
        return 1.0 + blocks + self.scored_users / int(setting["user_block"])


def fitting_bytes(rows: int, factors: int, size: int) -> int:
    """Bytes of finding the entries of code books for rows of ``size`` bytes: sampled rows and those of a group some
    times, their weights, numbers and errors, a block of rows that is compared with all entries, and of rows that are
    encoded. With ``FEW_BYTES`` there are groups, so that one of them is a part of the columns."""
    copies = (2.0 if size < FEW_BYTES else 1.25) + (rows > code_books.SAMPLED)
    some = min(rows, code_books.SAMPLED)
    compared = 4 * min(code_books.COMPARED, rows) * (2 * (1 << MOST_BITS) + 4 * factors)
    return int(4 * some * factors * copies) + 56 * some + compared


def systems_bytes(width: int, threads: int) -> int:
    """Most bytes that a thread of ``discrete.descend`` allocates, times the threads: systems, some users of an item and
    weighted, their system, and rows."""
    rows = max(1, SYSTEMS // (width * width))
    return threads * 4 * (rows * width * width + 2 * TOGETHER * width + 2 * width * width + 8 * rows * width)
