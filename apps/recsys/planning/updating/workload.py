"""Memory of ``recsys update``, in bytes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from apps.recsys.data.csr_store import BLOCK
from apps.recsys.data.ingest import TITLE_BYTES, Facts
from apps.recsys.data.updates.base import READ_IDS
from apps.recsys.models.coded.stored import is_coded
from apps.recsys.models.manifest import RecommenderManifest
from apps.recsys.models.new_items import MOST_USERS, SAMPLED
from apps.recsys.models.scan.stored import writing_bytes
from apps.recsys.planning import bpr_terms, embedding_terms, ials_terms
from apps.recsys.planning.baselines import LIBRARIES, PAIRING, READING, SCORING, TRAINING, baseline_terms
from apps.recsys.planning.compressing.terms import vector_terms
from apps.recsys.planning.ranking_terms import THREAD_BYTES, USER_BLOCKS
from apps.recsys.planning.train import TrainWorkload
from apps.recsys.planning.updating.request import UpdateRequest
from common.memory.costs import baseline
from common.memory.costs.probes import Costs, Probe
from common.memory.footprint import Footprint, Term
from common.memory.plan.plan import Setting

REBUILT = ("linear", "popularity")
"""Kinds that an update builds again from all interactions, with the model's settings."""
WARM_UPS = {"ials": TRAINING, "bpr": PAIRING, "embedding": SCORING}
"""Warm-ups of the other kinds, whose new items are solved against the vectors that there are."""
COPIES = 3
"""Copies of the items' vectors: as they are stored, decoded or extended, and what is written."""
PAIR_BYTES = 32
"""Bytes of an interaction of a new item: user and item, sorted, and the user's place."""
NEGATIVES = 4
"""Arrays of a new item's users by negatives in ``new_items``."""


@dataclass(frozen=True, slots=True)
class UpdateWorkload:
    """``recsys update``: read the model's interactions with the new ones, and build or extend the model.

    Attributes
    ----------
    request
        Request of the command line.
    manifest
        ``model.json`` of the model.
    train
        The training of the same kind on the joined interactions.
    folded
        What the new ``model.json`` says of the log of feedback that the model contains; ``None``: none.
    """

    request: UpdateRequest
    manifest: RecommenderManifest
    train: TrainWorkload
    folded: Mapping[str, Any] | None = None
    name: str = "recsys update"

    @property
    def kind(self) -> str:
        """Kind of the model."""
        return self.manifest["kind"]

    @property
    def facts(self) -> Facts:
        """Sizes of the joined interactions."""
        return self.train.facts

    @property
    def sizes(self) -> ials_terms.Sizes:
        """Sizes of the matrix of ``ials``, whose rows are solved exactly."""
        return replace(self.train.sizes, exact=True)

    def settings(self) -> Iterator[Setting]:
        """Settings of the training; of vectors the numbers of users ranked at a time, and blocks of ``ials``."""
        if self.kind in REBUILT:
            yield from self.train.settings()
            return
        blocks = ials_terms.blocks(self.sizes) if self.kind == "ials" else [self.facts.interactions]
        for users in USER_BLOCKS if self.train.request.split != "none" else USER_BLOCKS[:1]:
            yield from ({"fit_block": block, "user_block": users} for block in blocks)

    def probes(self, setting: Setting) -> Sequence[Probe]:
        """The baselines of reading and of all later phases."""
        if self.kind in REBUILT:
            return self.train.probes(setting)
        names = (READING, WARM_UPS[self.kind])
        return [baseline.probe(name, libraries=LIBRARIES, threads=self.request.threads) for name in names]

    def footprint(self, setting: Setting, costs: Costs) -> Footprint:
        """Reading, with the model's row starts; then the training's, or the solved items'."""
        model = Term("model's index and ids", self._base_bytes, "analytic", ("plan",))
        if self.kind in REBUILT:
            later = ["evaluate"] if self.train.request.split != "none" else []
            kept = self._kept_spectrum() if self.request.keep_spectrum else []
            again = self._code_terms("fit", *later)
            return Footprint.of([*self.train.footprint(setting, costs).terms, model, *kept, *again])
        split, facts, fit = self.train.request.split, self.facts, ("fit",)
        later = ["fit", *(["evaluate"] if split != "none" else []), "write"]
        probes = self.probes(setting)
        columns = embedding_terms.columns(self.manifest)
        terms = [
            *baseline_terms(costs, probes[0], "plan"),
            *baseline_terms(costs, probes[1], *later),
            *self.train.input_terms(),
            model,
            Term("history index", 8 * (facts.users + 1), "analytic", fit),
            Term("history block", 24 * (BLOCK + facts.longest), "analytic", fit),
            Term("item factors", COPIES * 4 * facts.items * columns, "analytic", fit),
            Term(
                "item factors to write",
                max(4 * facts.items * columns, writing_bytes(facts.items, columns)),
                "analytic",
                ("write",),
            ),
        ]
        terms += self._solver_terms(int(setting["fit_block"]))
        if split != "none":
            terms += self.train.evaluating_terms(setting, "evaluate", facts.scored_users, facts.scored_longest)
            terms += self._code_terms("evaluate")
        return Footprint.of(terms)

    @property
    def _base_bytes(self) -> int:
        """Memory of the model while it is read: row starts, ids of a batch, and titles besides those of a table."""
        manifest, facts = self.manifest, self.facts
        items, users = (manifest["files"][f"{name}.parquet"]["bytes"] for name in ("items", "users"))
        share = min(1.0, READ_IDS / manifest["items"]), min(1.0, READ_IDS / manifest["users"])
        ids = 2 * max(share[0] * items, share[1] * users)
        titles = items + (TITLE_BYTES * facts.titled if self.request.items else 0) if facts.titled else 0
        return int(8 * (manifest["users"] + 1) + ids + titles)

    def _code_terms(self, *phases: str) -> list[Term]:
        """Terms of vectors that are codes, besides those of float32 numbers."""
        return (
            vector_terms(self.manifest, threads=self.request.threads, phases=phases) if is_coded(self.manifest) else []
        )

    def _kept_spectrum(self) -> list[Term]:
        """The spectrum as it is stored, and extended; later the one that is written or loaded."""
        size = 4 * self.manifest["factors"] * (self.facts.items + 1)
        evaluating = ("evaluate",) if self.train.request.split != "none" else ()
        return [
            Term("spectrum, stored and extended", 2 * size, "analytic", ("fit",)),
            Term("spectrum", size, "analytic", ("write", *evaluating)),
        ]

    def _solver_terms(self, fit_block: int) -> list[Term]:
        """What solving new items takes; nothing if there can be none."""
        facts, fit = self.facts, ("fit",)
        new = min(facts.rows, facts.items)
        if not new:
            return []
        if self.kind == "ials":
            # The matrices are made in the phase that solves, so terms of both phases count there.
            return [replace(term, phases=fit) for term in ials_terms.terms(self.sizes, fit_block)]
        users, factors = min(facts.rows, facts.users), embedding_terms.columns(self.manifest)
        histories = int(users * (12 * facts.interactions / facts.users + 512))
        some = min(MOST_USERS, users)
        return [
            Term("interactions of new items", PAIR_BYTES * facts.rows, "analytic", fit),
            Term("histories of their users", histories + 12 * facts.longest, "analytic", fit),
            Term("user vectors", 4 * (users + some + SAMPLED) * factors, "analytic", fit),
            Term("new item factors", 4 * new * factors, "analytic", fit),
            Term("users and negatives", self.request.threads * 4 * NEGATIVES * some * SAMPLED, "analytic", fit),
            Term("threads", self.request.threads * THREAD_BYTES, "measured", fit),
            *bpr_terms.fold_terms(
                self.kind, factors=factors, longest=facts.longest, threads=self.request.threads, phases=fit
            ),
        ]

    def lesser(self, setting: Setting) -> float:
        """As the training."""
        return self.train.lesser(setting) if self.kind in REBUILT else 0.0

    def seconds(self, setting: Setting) -> float:
        """As the training; a fixed cost for each block."""
        if self.kind in REBUILT:
            return self.train.seconds(setting)
        blocks = 1 + self.facts.interactions / int(setting["fit_block"])
        return blocks + self.facts.scored_users / int(setting["user_block"])
