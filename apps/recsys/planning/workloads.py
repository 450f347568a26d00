"""What each command needs, in bytes: the planner's workloads. Arithmetic only; the executors are beside the data.

Sizes are those of the ingested data or of a model's manifest, so most terms are exact; the constants below are
measured (``tests/apps/recsys/planning/test_workloads.py`` holds them against real runs).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from apps.recsys.data.csr_store import BLOCK
from apps.recsys.data.ingest import Facts
from apps.recsys.data.splits import MOST_VALIDATION_USERS, SAMPLED_TIMES, TIMED
from apps.recsys.models.embedding.embedding_config import Recipe
from apps.recsys.models.search_space import Space
from apps.recsys.planning import bpr_terms, embedding_terms, ials_terms
from common.memory.costs import floor
from common.memory.costs.store import Costs, Probe
from common.memory.footprint import Footprint, Term
from common.memory.plan.planner import Setting, Workload

ID_BYTES = 48
"""An id in memory while reading (``vocabulary``): two hashes and up to four slots, in arrays that double in size."""
WAITING_BYTES = 9 << 20
"""The parent while its child reads, on four data sets: 7.0 to 7.6 MiB of its own, and files that no fork touches."""
STAGE_BYTES = 12 << 20
"""Arrow's blocks while parsing: text, columns, dictionaries (for ``reading.BLOCK_BYTES``)."""
STAGED_ROW_BYTES = 64
"""A row while it is read: a file of few rows does not fill the blocks."""
SORT_BYTES = {False: 61, True: 97}
"""A row while its bucket is sorted: two copies of the record, the order, the merged columns; with times or without."""
SORT_FIXED_BYTES = 1 << 20
"""What is not by rows: a few buffers of files."""
PACKING_BYTES = 4096
"""What one BLAS thread packs, by the inner dimension of its product."""
WARM_FACTORS = 64
"""That dimension in the warm-up, so that the floor has packed it already."""
LEFT_BYTES = 10 << 20
"""What trials leave behind in each thread, mostly buffers of BLAS (17 MiB in two threads, after 256 factors)."""
SAMPLER_BYTES = 24 << 20
"""The process that is asked for the next settings, without what it shares: Optuna, and the pages that it writes to
(21 MiB, with 20 trials to look at)."""
THREAD_BYTES = 128 << 10
"""A thread's stack and its part of the heap, beyond what the warm-up's threads left."""
LEAST_FACTORS = 8
"""Fewer are not suggested."""
VALUE_BYTES = 320
"""What evaluation keeps of a user: its metrics, twice, and its place among those drawn again."""
RANKED_SECONDS = 2e-3
"""Fixed cost of a block of users that is ranked: the unit of ``seconds``."""
USER_BLOCKS = (256, 128, 64, 32, 16, 8)
"""Users ranked at a time: the knob. Beyond 256 nothing gets faster."""

READING = "apps.recsys.warm_up:reading"
TRAINING = "apps.recsys.warm_up:training"
LEARNING = "apps.recsys.warm_up:learning"
PAIRING = "apps.recsys.warm_up:pairing"
SCORING = "apps.recsys.warm_up:scoring"
ANSWERING = "apps.recsys.warm_up:answering"
SERVING = "apps.recsys.warm_up:serving"
LIBRARIES = ("numpy", "scipy", "pyarrow", "implicit", "safetensors")


def _floor(known: Costs, probe: Probe, *phases: str) -> list[Term]:
    return [Term(term.name, term.bytes, term.source, phases) for term in floor.terms(known, probe)]


def training_warm_up(kind: str) -> str:
    """The floor of ``recsys train`` once it has read."""
    return {"embedding": LEARNING, "bpr": PAIRING}.get(kind, TRAINING)


def training_probes(kind: str, threads: int) -> list[Probe]:
    """The floors of ``recsys train``: of reading, and of all the rest."""
    libraries = (*LIBRARIES, "torch") if kind == "embedding" else LIBRARIES
    return [floor.probe(name, libraries=libraries, threads=threads) for name in (READING, training_warm_up(kind))]


def model_terms(*, users: int, items: int, factors: int, phases: Sequence[str]) -> list[Term]:
    """A loaded ``model.Recommender``: factors, row starts of the history, the Gramian."""
    where = tuple(phases)
    return [
        Term("item factors", 4 * items * factors, "analytic", where),
        Term("history index", 8 * (users + 1), "analytic", where),
        Term("Gramian", 4 * factors * factors, "analytic", where),
    ]


def ranking_terms(
    *, items: int, factors: int, scored: int, longest: int, mean: float, block: int, threads: int, phases: Sequence[str]
) -> list[Term]:
    """``evaluate.evaluate``: a block of scores; in each thread the work on one user."""
    where = tuple(phases)
    block = min(block, scored)  # what is not used of the block is never touched
    return [
        Term("scores", 4 * block * (items + factors), "analytic", where),
        Term("waiting histories", int(block * (12 * mean + 1024)), "analytic", where),
        # One history's rows of the factors, and weighted; the system, solved in a copy.
        Term("fold-in workspace", threads * 4 * factors * (2 * longest + 3 * factors), "analytic", where),
        Term("threads", threads * THREAD_BYTES, "measured", where),
        Term("BLAS packing", threads * PACKING_BYTES * max(0, factors - WARM_FACTORS), "measured", where),
        # The partitioned copy and two comparisons.
        Term("top-k workspace", threads * 6 * items, "analytic", where),
        Term("held-out index", 12 * (scored + 1), "analytic", where),
        Term("counts of items", 24 * items, "analytic", where),
        # A dozen numbers for each user, copied once or twice; users drawn again for the intervals.
        Term("values of users", VALUE_BYTES * scored, "analytic", where),
    ]


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
        """The floors of reading and of all the rest, and an embedding's step."""
        floors = training_probes(self.kind, self.threads)
        if self.recipe is None:
            return floors
        step = embedding_terms.probe(
            self.recipe, micro_batch=int(setting["micro_batch"]), amp=str(setting["amp"]), threads=self.threads
        )
        return [*floors, step]

    def footprint(self, setting: Setting, known: Costs) -> Footprint:
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
        terms = [*_floor(known, probes[0], "plan"), *_floor(known, probes[1], *after), *self._reading_terms()]
        if self.trials:
            terms += [*_floor(known, probes[1], "suggest"), Term("sampler", SAMPLER_BYTES, "measured", ("suggest",))]
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
                self.recipe, known[probes[2]], interactions=self.fit_interactions, longest=facts.longest
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

    def seconds(self, setting: Setting, known: Costs) -> float:
        """A fixed cost for each block that is ranked or solved and each micro-batch; the rest is the same."""
        ranked = 1.0 + self.facts.scored_users / int(setting["user_block"])
        if self.recipe is not None:
            return ranked + int(setting["accumulate"]) * self.facts.users
        if self.kind != "ials":
            return ranked
        iterations = int(self.hyper["iterations"])
        fitted = ials_terms.seconds(self.sizes, int(setting["fit_block"]), iterations=iterations)
        return ranked + fitted / RANKED_SECONDS


@dataclass(frozen=True, slots=True)
class EvaluateWorkload:
    """``recsys evaluate``: fold held-out users in, rank all items."""

    directory: Path
    manifest: Mapping[str, Any]
    scored_users: int
    threads: int
    workspace: Any = None
    """The ``files.Workspace`` that holds a test file's pairs."""
    test_pairs: int = 0
    found: Mapping[str, int] = field(default_factory=dict)
    """What the test file held (``given.Given``)."""
    name: str = "recsys evaluate"

    def settings(self) -> Iterator[Setting]:
        """The users ranked at a time."""
        for block in USER_BLOCKS:
            yield {"user_block": block}

    def probes(self, setting: Setting) -> Sequence[Probe]:
        """The floor; reading a test file has one of its own."""
        names = [SCORING] if self.workspace is None else [SCORING, READING]
        return [floor.probe(name, libraries=LIBRARIES, threads=self.threads) for name in names]

    def _reading_terms(self, known: Costs, setting: Setting) -> list[Term]:
        """A test file: the model's ids, its pairs, sorted in a copy, and Arrow's blocks."""
        if self.workspace is None:
            return []
        where, files = ("plan",), self.manifest["files"]
        ids = sum(files[name]["bytes"] for name in ("items.parquet", "users.parquet"))
        return [
            *_floor(known, self.probes(setting)[1], *where),
            Term("ids", 4 * ids, "analytic", where),
            Term("test pairs", 32 * self.test_pairs, "analytic", where),
            Term("rows read", STAGE_BYTES, "measured", where),
            Term("waiting parent", WAITING_BYTES, "measured", where),
        ]

    def footprint(self, setting: Setting, known: Costs) -> Footprint:
        """The model and one block of scores."""
        made, where = self.manifest, ("evaluate",)
        items, factors = made["items"], made["factors"]
        return Footprint.of(
            [
                *self._reading_terms(known, setting),
                *_floor(known, self.probes(setting)[0], *where),
                *model_terms(users=made["users"], items=items, factors=embedding_terms.columns(made), phases=where),
                *ranking_terms(
                    items=items,
                    factors=factors,
                    scored=self.scored_users,
                    longest=made["longest_history"],
                    mean=made["interactions"] / made["users"],
                    block=int(setting["user_block"]),
                    threads=self.threads,
                    phases=where,
                ),
                *bpr_terms.fold_terms(made["kind"], factors=factors, threads=self.threads, phases=where),
            ]
        )

    def seconds(self, setting: Setting, known: Costs) -> float:
        """A fixed cost a block."""
        return 1.0 + self.scored_users / int(setting["user_block"])


@dataclass(frozen=True, slots=True)
class AnswerWorkload:
    """``recsys recommend``, ``similar`` and ``serve``: the model, its ids and titles, and one answer at a time."""

    name: str
    directory: Path
    manifest: Mapping[str, Any]
    threads: int
    warm_up: str = ANSWERING
    explains: bool = False
    """Whether it may be asked which items of a history carried a score."""

    def settings(self) -> Iterator[Setting]:
        """Nothing is left to choose."""
        yield {}

    def probes(self, setting: Setting) -> Sequence[Probe]:
        """The floor."""
        libraries = (*LIBRARIES, "fastapi", "uvicorn") if self.warm_up == SERVING else LIBRARIES
        return [floor.probe(self.warm_up, libraries=libraries, threads=self.threads)]

    def footprint(self, setting: Setting, known: Costs) -> Footprint:
        """The model and one answer."""
        files, users, items, factors = (self.manifest[name] for name in ("files", "users", "items", "factors"))
        tables = sum(files[name]["bytes"] for name in ("items.parquet", "users.parquet"))
        # A history's rows in float64: themselves, weighted, turned, and what the solution adds of each.
        longest = self.manifest.get("longest", self.manifest["longest_history"])
        explanation = 8 * 4 * factors * longest if self.explains else 0
        return Footprint.of(
            [
                *floor.terms(known, self.probes(setting)[0]),
                *model_terms(
                    users=users, items=items, factors=embedding_terms.columns(self.manifest), phases=("answer",)
                ),
                # Written uncompressed: the file while it is read, and the table.
                Term("ids and titles", 2 * tables, "analytic", ("answer",)),
                # Scores, the partitioned copy, norms, masks.
                Term("one answer", 20 * items + 16 * factors * factors, "analytic", ("answer",)),
                Term("explanation", explanation, "analytic", ("answer",)),
                *bpr_terms.fold_terms(self.manifest["kind"], factors=factors, threads=1, phases=("answer",)),
            ]
        )

    def seconds(self, setting: Setting, known: Costs) -> float:
        """There is one setting."""
        return 1.0
