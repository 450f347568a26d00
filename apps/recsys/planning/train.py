"""What ``recsys train`` needs, in bytes. Arithmetic only; the executors are beside the data.

Sizes are those of the ingested data or of a model's manifest, so most terms are exact; the constants below are
measured (``tests/apps/recsys/planning/test_workloads.py`` holds them against real runs).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from apps.recsys.data.csr_store import BLOCK
from apps.recsys.data.ingest import Facts
from apps.recsys.data.splits import MOST_VALIDATION_USERS, SAMPLED_TIMES, TIMED
from apps.recsys.models.embedding.embedding_config import Recipe
from apps.recsys.models.search_space import Space
from apps.recsys.planning import bpr_terms, embedding_terms, ials_terms
from apps.recsys.planning.floors import LEARNING, LIBRARIES, PAIRING, READING, TRAINING, baseline_terms
from apps.recsys.planning.ranking_terms import USER_BLOCKS, model_terms, ranking_terms
from apps.recsys.planning.reading_terms import STAGE_BYTES, WAITING_BYTES
from common.memory.costs import baseline
from common.memory.costs.probes import Costs, Probe
from common.memory.footprint import Footprint, Term
from common.memory.plan.plan import Setting
from common.memory.plan.planner import Workload

ID_BYTES = 48
"""An id in memory while reading (``vocabulary``): two hashes and up to four slots, in arrays that double in size."""
STAGED_ROW_BYTES = 64
"""A row while it is read: a file of few rows does not fill the blocks."""
SORT_BYTES = {False: 61, True: 97}
"""A row while its bucket is sorted: two copies of the record, the order, the merged columns; with times or without."""
SORT_FIXED_BYTES = 1 << 20
"""What is not by rows: a few buffers of files."""
LEFT_BYTES = 10 << 20
"""What trials leave behind in each thread, mostly buffers of BLAS (17 MiB in two threads, after 256 factors)."""
SAMPLER_BYTES = 24 << 20
"""The process that is asked for the next settings, without what it shares: Optuna, and the pages that it writes to
(21 MiB, with 20 trials to look at)."""
LEAST_FACTORS = 8
"""Fewer are not suggested."""
RANKED_SECONDS = 2e-3
"""Fixed cost of a block of users that is ranked: the unit of ``seconds``."""


def training_warm_up(kind: str) -> str:
    """The baseline of ``recsys train`` once it has read."""
    return {"embedding": LEARNING, "bpr": PAIRING}.get(kind, TRAINING)


def training_probes(kind: str, threads: int) -> list[Probe]:
    """The baselines of ``recsys train``: of reading, and of all the rest."""
    libraries = (*LIBRARIES, "torch") if kind == "embedding" else LIBRARIES
    return [baseline.probe(name, libraries=libraries, threads=threads) for name in (READING, training_warm_up(kind))]


@dataclass(frozen=True, slots=True)
class TrainWorkload:
    """``recsys train``: read (already done when this is planned), fit, evaluate, write."""

    facts: Facts
    kind: str
    factors: int
    hyper: Mapping[str, Any]
    split: str
    threads: int
    recipe: Recipe | None = None
    """Of an embedding."""
    amp: str = "off"
    micro_batches: tuple[int, ...] = ()
    """What an embedding may run at a time, in windows."""
    workspace: Any = None
    """The ``files.Workspace`` that holds what was read; ``None`` if only counted."""
    trials: int = 0
    """Settings to try before (``tuning``), each a training that looks at hidden items."""
    space: Space = field(default_factory=dict)
    """What is searched."""
    name: str = "recsys train"

    @property
    def fit_users(self) -> int:
        """Users that training sees."""
        return self.facts.users - (self.facts.scored_users if self.split == "user-holdout" else 0)

    @property
    def fit_interactions(self) -> int:
        """Interactions that training sees."""
        return self.facts.interactions - self.facts.held_interactions

    @property
    def sizes(self) -> ials_terms.Sizes:
        """Of the matrix that ``ials`` factorises."""
        facts = self.facts
        exact = bool(self.hyper.get("frequency", 0.0))
        counts = (self.fit_users, facts.items, self.fit_interactions, facts.longest)
        return ials_terms.Sizes(*counts, self.factors, exact=exact, threads=self.threads)

    @property
    def ranks(self) -> bool:
        """Whether anything is ranked: what a split holds out, or the hidden items of a validation."""
        hides = self.trials > 0 or (self.recipe is not None and bool(self.hyper["validation"]))
        return self.split != "none" or hides

    def remedies(self) -> Iterator[tuple[str, Workload]]:
        """Fewer numbers per item: cheaper in everything, and a little less exact."""
        for factors in (self.factors // 2, self.factors // 4):
            if self.kind in ("ials", "bpr") and factors >= LEAST_FACTORS:
                yield f"--factors {factors}", replace(self, factors=factors)

    def settings(self) -> Iterator[Setting]:
        """The users ranked at a time; how much of the data ``ials`` holds, or what an embedding runs together."""
        for block in USER_BLOCKS if self.ranks else USER_BLOCKS[:1]:
            yield from ({**fitted, "user_block": block} for fitted in self._fit_settings())

    def _fit_settings(self) -> list[Setting]:
        if self.recipe is not None:
            shared = {"amp": self.amp}
            batch = self.recipe.batch
            return [{"micro_batch": size, "accumulate": -(-batch // size), **shared} for size in self.micro_batches]
        return [{"fit_block": size} for size in ials_terms.blocks(self.sizes)] if self.kind == "ials" else [{}]

    def probes(self, setting: Setting) -> Sequence[Probe]:
        """The baselines of reading and of all the rest, and an embedding's step."""
        baselines = training_probes(self.kind, self.threads)
        if self.recipe is None:
            return baselines
        step = embedding_terms.probe(
            self.recipe, micro_batch=int(setting["micro_batch"]), amp=str(setting["amp"]), threads=self.threads
        )
        return [*baselines, step]

    def footprint(self, setting: Setting, costs: Costs) -> Footprint:
        """Reading grows with ids; fitting with interactions (twice, by user and by item) and factors."""
        facts = self.facts
        probes = self.probes(setting)
        after = [
            "arrange",
            "fit",
            *(["validate"] if self.recipe else []),
            *(["evaluate"] if self.split != "none" else []),
            "write",
        ]
        terms = [
            *baseline_terms(costs, probes[0], "plan"),
            *baseline_terms(costs, probes[1], *after),
            *self._reading_terms(),
        ]
        if self.trials:
            terms += [
                *baseline_terms(costs, probes[1], "suggest"),
                Term("sampler", SAMPLER_BYTES, "measured", ("suggest",)),
            ]
            left = self.threads * LEFT_BYTES
            terms.append(Term("left behind by trials", left, "measured", ("suggest", *after)))
        read = ("arrange",) if self.recipe is None else ("arrange", "fit")
        terms += [
            Term("history index", 8 * (facts.users + 1), "analytic", read),
            Term("history block", 24 * (BLOCK + facts.longest), "analytic", read),
        ]
        if self.recipe is not None:
            terms += embedding_terms.known_terms(self.recipe)
            terms += embedding_terms.table_terms(self.recipe, phases=("fit", "validate", "write"))
            terms += embedding_terms.step_terms(
                self.recipe, costs[probes[2]], interactions=self.fit_interactions, longest=facts.longest
            )
            terms += self._ranking_terms(setting, "validate", min(MOST_VALIDATION_USERS, facts.users), facts.longest)
        else:
            terms += self._solver_terms(setting)
            if self.trials:  # looked at while all is held that fitting holds
                hidden = min(MOST_VALIDATION_USERS, facts.users)
                terms += self._ranking_terms(setting, "fit", hidden, facts.longest)[1:]
        if self.split != "none":
            terms += self._ranking_terms(setting, "evaluate", facts.scored_users, facts.scored_longest)
        return Footprint.of(terms)

    def _reading_terms(self) -> list[Term]:
        facts, where = self.facts, ("plan",)
        rows = min(STAGE_BYTES, STAGED_ROW_BYTES * facts.rows)
        staging = [Term("ids", ID_BYTES * facts.ids, "analytic", where), Term("rows read", rows, "measured", where)]
        # The ids are written and gone before the rows are sorted.
        rows = SORT_FIXED_BYTES + SORT_BYTES[self.split in TIMED] * facts.bucket
        sorting = [Term("rows sorted", rows, "measured", where)]
        return [
            *max(staging, sorting, key=lambda terms: sum(term.bytes for term in terms)),
            Term("row counts", 16 * facts.ids, "analytic", where),
            Term("waiting parent", WAITING_BYTES, "measured", where),
            # For the moment that splits in time, when the ids and rows are there no more: seldom the peak.
            *([Term("times", 16 * SAMPLED_TIMES, "analytic", where)] if self.split == "temporal" else []),
        ]

    def _solver_terms(self, setting: Setting) -> list[Term]:
        factors = 4 * self.facts.items * self.factors
        terms = [
            Term("item factors", factors, "analytic", ("arrange",) if self.kind == "popularity" else ("fit",)),
            Term("item factors to write", factors, "analytic", ("write",)),
        ]
        if self.kind == "ials":
            return terms + ials_terms.terms(self.sizes, int(setting["fit_block"]))
        if self.kind == "bpr":
            sizes = {"users": self.fit_users, "interactions": self.fit_interactions}
            terms += bpr_terms.terms(factors=self.factors, **sizes)
        return terms

    def _ranking_terms(self, setting: Setting, phase: str, scored: int, longest: int) -> list[Term]:
        facts, where = self.facts, (phase,)
        size = embedding_terms.columns({"factors": self.factors, "hyper": self.hyper})
        return [
            *model_terms(users=facts.users, items=facts.items, factors=size, phases=where),
            *ranking_terms(
                items=facts.items,
                factors=self.factors,
                scored=scored,
                longest=longest,
                mean=facts.interactions / facts.users,
                block=int(setting["user_block"]),
                threads=self.threads,
                phases=where,
            ),
            *bpr_terms.fold_terms(self.kind, factors=self.factors, threads=self.threads, phases=where),
        ]

    def seconds(self, setting: Setting, costs: Costs) -> float:
        """A fixed cost for each block that is ranked or solved and each micro-batch; the rest is the same."""
        ranked = 1.0 + self.facts.scored_users / int(setting["user_block"])
        if self.recipe is not None:
            return ranked + int(setting["accumulate"]) * self.facts.users
        if self.kind != "ials":
            return ranked
        iterations = int(self.hyper["iterations"])
        fitted = ials_terms.seconds(self.sizes, int(setting["fit_block"]), iterations=iterations)
        return ranked + fitted / RANKED_SECONDS
