"""Memory of ``recsys train``, in bytes, by arithmetic on the sizes of the data.

Most terms are exact. The constants below are measured; ``tests/apps/recsys/planning/test_train.py`` compares
predictions with real runs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from apps.recsys.data.csr_store import BLOCK
from apps.recsys.data.ingest import Facts, Inputs
from apps.recsys.data.splits import MOST_VALIDATION_USERS, SAMPLED_TIMES, reads_times
from apps.recsys.models.embedding.embedding_config import EmbeddingConfig
from apps.recsys.models.linear.options import USUAL, may_be_ease, open_factors
from apps.recsys.models.scan.stored import writing_bytes
from apps.recsys.planning import bpr_terms, embedding_terms, ials_terms
from apps.recsys.planning.baselines import (
    FILTERING,
    FILTERING_OVER_RANKS,
    LEARNING,
    LEARNING_OVER_RANKS,
    LIBRARIES,
    PAIRING,
    READING,
    TRAINING,
    TRAINING_OVER_RANKS,
    WAITING_BYTES,
    baseline_terms,
    reading_terms,
)
from apps.recsys.planning.embedding_terms import SHARED, TABLE_ROWS
from apps.recsys.planning.linear import training as linear
from apps.recsys.planning.linear.over_ranks import over_ranks_terms
from apps.recsys.planning.model_options import DEFAULTS, ModelOptions
from apps.recsys.planning.ranking_terms import PACKING_BYTES, USER_BLOCKS, WARM_FACTORS, model_terms, ranking_terms
from apps.recsys.planning.resume_settings import resume_settings
from apps.recsys.planning.train_request import TrainRequest
from common.files import Workspace
from common.memory.costs import baseline
from common.memory.costs.probes import Costs, Probe
from common.memory.footprint import Footprint, Term
from common.memory.plan.plan import Setting
from common.memory.plan.planner import Workload
from common.search.space import Choice
from common.training.distributed.price import ranks_terms

ID_BYTES = 48
"""Bytes per id while reading (``id_index``): two hashes and up to four slots, in arrays that double in size."""
SORT_BYTES = {False: 61, True: 97}
"""Bytes per row while its bucket is sorted: two copies of the record, the order, the merged columns; by whether there
are times."""
KERNEL_BYTES = 5 << 20
"""Arrow's code for texts, lists and patterns, which only a table of attributes needs (measured 4 to 6 MiB)."""
SORT_FIXED_BYTES = 1 << 20
"""Buffers of files while sorting, independent of the rows."""
LEFT_BYTES, MOST_LEFT_BYTES = 3 << 20, 10 << 20
"""Memory that trials leave allocated: fixed, and at most per thread (``TrainWorkload.left_bytes``). MiB measured after
10 to 90 trials of up to 256 factors: 1.9 with 300 rows on one thread and on two, 3.9 and 5.1 with 20,000 rows, 6.0 with
400,000, 12.6 with a million; ``bpr`` 3.9, an embedding 4.0 with 20,000 rows on two threads."""
MEASURING_BYTES = 252 << 20
"""Memory of the child that measures an embedding's step beside the parent, which has read the data: a refusal names a
ceiling under which that is possible (60 rows, 89 factors: 330 MiB in all are too few, 345 enough)."""
SAMPLER_BYTES = {False: 14 << 20, True: 20 << 20}
"""Memory of the process that proposes settings, besides its parent's: Optuna, and pages that it writes to; by whether
the parent has loaded PyTorch. Measured in 1 to 31 trials, on one thread and on two: 11.5 to 13.8 MiB; with PyTorch, in
1 to 12 trials on two threads, 16.7 to 18.3."""
LEAST_FACTORS = 8
"""Fewest factors that a refusal suggests."""
GIVEN_POWER = 0.2
"""Degree power of a filter that a refusal suggests: between those of dense and of sparse data (``docs/recsys.md``)."""
RANKED_SECONDS = 2e-3
"""Fixed cost of ranking for a block of users: the unit of ``TrainWorkload.seconds``."""


def training_warm_up(kind: str, ranks: int = 1) -> str:
    """The warm-up function of ``recsys train`` for a kind of model."""
    if ranks > 1:
        over = {"ials": TRAINING_OVER_RANKS, "linear": FILTERING_OVER_RANKS}
        return over.get(kind, LEARNING_OVER_RANKS)
    return {"embedding": LEARNING, "bpr": PAIRING, "linear": FILTERING}.get(kind, TRAINING)


def training_probes(kind: str, threads: int, ranks: int = 1) -> list[Probe]:
    """The two baselines of ``recsys train``: of reading, and of all later phases."""
    libraries = (*LIBRARIES, "torch") if kind == "embedding" or ranks > 1 else LIBRARIES
    names = (READING, training_warm_up(kind, ranks))
    return [baseline.probe(name, libraries=libraries, threads=threads) for name in names]


@dataclass(frozen=True, slots=True)
class TrainWorkload:
    """``recsys train``: read (already done when this is planned), fit, evaluate, write.

    Attributes
    ----------
    request
        Request of the command line.
    facts
        Sizes of the data that was read.
    workspace
        Holds what was read; ``None`` if the input was only counted.
    inputs
        The files with their columns.
    """

    request: TrainRequest
    facts: Facts
    workspace: Workspace | None = None
    inputs: Inputs | None = None
    name: str = "recsys train"

    @property
    def directory(self) -> Path:
        """Folder with what was read."""
        if self.workspace is None:
            raise ValueError("the input was only counted")
        return self.workspace.path

    @property
    def embedding(self) -> EmbeddingConfig | None:
        """The network to train, if the model is an embedding."""
        model = self.request.model
        if model.kind != "embedding":
            return None
        return model.embedding_config(items=self.facts.items, users=self.facts.users)

    def alike(self) -> dict[str, Any]:
        """What all ranks must have in common: the settings, and the sizes of the data."""
        return resume_settings(self.request, data=hashlib.sha256(repr(self.facts).encode()).hexdigest()[:12])

    @property
    def fit_users(self) -> int:
        """Users that training sees."""
        return self.facts.users - (self.facts.scored_users if self.request.split == "user-holdout" else 0)

    @property
    def fit_interactions(self) -> int:
        """Interactions that training sees."""
        return self.facts.interactions - self.facts.held_interactions

    @property
    def priced_embedding(self) -> EmbeddingConfig | None:
        """The network with the largest batch that this data can make."""
        if self.embedding is None:
            return None
        return embedding_terms.priced(self.embedding, users=self.fit_users, interactions=self.fit_interactions)

    @property
    def sizes(self) -> ials_terms.Sizes:
        """Sizes of the matrix that ``ials`` factorises."""
        facts, request = self.facts, self.request
        exact = bool(request.model.hyper.get("frequency_scaling", 0.0))
        counts = (self.fit_users, facts.items, self.fit_interactions, facts.longest)
        return ials_terms.Sizes(*counts, request.model.factors, exact=exact, threads=request.threads)

    @property
    def ranks(self) -> bool:
        """True if anything is ranked: what a split holds out, or the hidden items of a validation."""
        request = self.request
        chooses = request.model.kind == "linear" or bool(request.model.hyper.get("validation", 0))
        return request.split != "none" or request.trials > 0 or chooses

    def with_settings(self, settings: Mapping[str, Any]) -> TrainWorkload:
        """The same work with other values of some hyper-parameters or of ``factors``."""
        return replace(self, request=self.request.with_settings(settings))

    def planned_later(self) -> Iterator[Workload]:
        """The trainings that trials may plan and that measure anything else: embeddings of other factors."""
        if self.request.trials > 1 and self.embedding is not None:
            yield from (self.with_settings({"factors": factors}) for factors in self.searched_factors)

    @property
    def searched_factors(self) -> Sequence[int]:
        """Numbers of factors that trials may have."""
        searched = self.request.space.get("factors")
        values = searched.values if isinstance(searched, Choice) else ()
        return sorted({self.request.model.factors, *map(int, values)})

    @property
    def left_bytes(self) -> int:
        """Memory that trials leave allocated: what BLAS packs, and holes where the rows of histories were."""
        factors = self.searched_factors[-1]
        packed = PACKING_BYTES * max(0, factors - WARM_FACTORS)
        return LEFT_BYTES + self.request.threads * min(MOST_LEFT_BYTES, packed + 8 * factors * self.facts.longest)

    def remedies(self) -> Iterator[tuple[str, Workload]]:
        """Fewer numbers per item: cheaper in everything, and a little less exact. Of a linear model, which the planner
        gives as few eigenvalues as it must, settings instead of their comparison, or another model."""
        model = self.request.model
        if model.kind == "linear" and dict(model.hyper) == DEFAULTS["linear"]:
            powers = {"degree_power": GIVEN_POWER, **USUAL}
            yield f"--factors 0 --set degree_power={GIVEN_POWER}", self.with_settings(powers)
            yield "--model popularity", replace(self, request=replace(self.request, model=ModelOptions.popularity()))
        for factors in (model.factors // 2, model.factors // 4):
            if model.kind in ("ials", "bpr") and factors >= LEAST_FACTORS:
                yield f"--factors {factors}", self.with_settings({"factors": factors})

    def settings(self) -> Iterator[Setting]:
        """Numbers of users ranked at a time; blocks of ``ials``, or micro-batches of an embedding."""
        for block in USER_BLOCKS if self.ranks else USER_BLOCKS[:1]:
            yield from ({**fitted, "user_block": block} for fitted in self._fit_settings())

    def _fit_settings(self) -> list[Setting]:
        model, embedding = self.request.model, self.embedding
        if embedding is not None:
            windows = self.request.world.largest_share(embedding.batch)
            steps: list[Setting] = [
                {"micro_batch": size, "accumulate": -(-windows // size), "amp": model.amp}
                for size in model.micro_batches
            ]
            rows = embedding_terms.table_rows(embedding, self.request.world)
            return steps if len(rows) == 1 else [{**step, TABLE_ROWS: one} for one in rows for step in steps]
        if model.kind == "linear":
            ease = (1, 0) if may_be_ease(model.hyper, self.facts.items, model.ranks) else (0,)
            most = self.facts.items
            if len(model.ranks) > 1:
                most = min(most, open_factors(model.hyper["form"], most, self.fit_interactions))
            ranks = dict.fromkeys(min(factors, most) for factors in model.ranks)
            return [{"factors": factors, "ease": one} for factors in ranks for one in ease]
        return [{"fit_block": size} for size in ials_terms.blocks(self.sizes)] if model.kind == "ials" else [{}]

    def probes(self, setting: Setting) -> Sequence[Probe]:
        """The baselines of reading and of all later phases, and an embedding's step."""
        threads, embedding = self.request.threads, self.priced_embedding
        baselines = training_probes(self.request.model.kind, threads, self.request.world.size)
        if embedding is None:
            return baselines
        micro_batch, amp = int(setting["micro_batch"]), str(setting["amp"])
        return [*baselines, embedding_terms.probe(embedding, micro_batch=micro_batch, amp=amp, threads=threads)]

    def footprint(self, setting: Setting, costs: Costs) -> Footprint:
        """Reading grows with ids; fitting with interactions (twice, by user and by item) and factors."""
        facts, request, embedding = self.facts, self.request, self.priced_embedding
        probes = self.probes(setting)
        later = [
            "arrange",
            "fit",
            *(["validate"] if embedding or request.trials else []),
            *(["evaluate"] if request.split != "none" else []),
            "write",
        ]
        terms = [*baseline_terms(costs, probes[0], "plan"), *baseline_terms(costs, probes[1], *later)]
        terms += self.input_terms()
        if request.trials:
            terms += baseline_terms(costs, probes[1], "suggest")
            # The first trial has the settings of the command line, so nothing proposes any or left anything before it.
            proposing = ["suggest"] if request.trials > 1 else []
            if proposing:
                terms.append(Term("sampler", SAMPLER_BYTES[embedding is not None], "measured", ("suggest",)))
            terms.append(Term("left behind by trials", self.left_bytes, "measured", (*proposing, *later)))
        reads_history = ("arrange",) if embedding is None else ("arrange", "fit")
        terms += [
            Term("history index", 8 * (facts.users + 1), "analytic", reads_history),
            Term("history block", 24 * (BLOCK + facts.longest), "analytic", reads_history),
        ]
        if embedding is not None:
            if self.workspace is None:  # its step is another one, as filters and repeated pairs leave fewer rows
                terms.append(Term("measuring a step", MEASURING_BYTES, "measured", ("plan",)))
            terms += embedding_terms.fixed_input_terms(embedding)
            shared, hidden = setting.get(TABLE_ROWS) == SHARED, min(MOST_VALIDATION_USERS, facts.users)
            if shared:
                terms += embedding_terms.shared_terms(
                    embedding, request.world, block=int(setting["user_block"]), hidden=hidden, longest=facts.longest
                )
            else:
                terms += embedding_terms.table_terms(embedding, phases=("fit", "validate", "write"))
                terms += self.evaluating_terms(setting, "validate", hidden, facts.longest)
            terms += embedding_terms.step_terms(
                embedding,
                costs[probes[2]],
                interactions=self.fit_interactions,
                longest=facts.longest,
                after=[*(["suggest"] if request.trials > 1 else []), "validate", "evaluate", "write"],
                shared=shared,
            )
            terms += ranks_terms(request.world, 0, ("fit",))
            if not (request.trials or request.model.hyper["validation"]):
                terms = embedding_terms.without("validate", terms)
        elif request.model.kind == "linear":
            return Footprint.of([*terms, *self._linear_terms(setting)])
        else:
            solving = self._solver_terms(setting)
            terms += solving
            if request.trials:  # a trial is scored while all is in memory that fitting needs between two sweeps
                fitted = [one for one in solving if "fit" in one.phases and one.name not in ials_terms.WHILE_SOLVING]
                terms += [replace(one, phases=("validate",)) for one in fitted]
                hidden = min(MOST_VALIDATION_USERS, facts.users)
                terms += self.evaluating_terms(setting, "validate", hidden, facts.longest)[1:]
        if request.split != "none":
            terms += self.evaluating_terms(setting, "evaluate", facts.scored_users, facts.scored_longest)
        return Footprint.of(terms)

    def input_terms(self) -> list[Term]:
        """Reading the input: ids and rows, or the bucket of rows that is sorted, whichever is more."""
        facts, during = self.facts, ("plan",)
        sources = self.inputs.sources if self.inputs else ()
        if self.inputs and self.inputs.titles:
            sources = (*sources, self.inputs.titles[0])
        read, unpacking = reading_terms(facts.rows, sources)
        staging = [Term("ids", ID_BYTES * facts.ids, "analytic", during), read]
        # The ids are written and freed before the rows are sorted.
        base, attributes = (self.inputs.base, self.inputs.attributes) if self.inputs else (None, ())
        described = bool(attributes or (base is not None and base.attributes))
        data, split = self.request.data, "none" if base else self.request.split
        timed = reads_times(split, data.duplicates, data.needs_times)
        rows = SORT_FIXED_BYTES + SORT_BYTES[timed] * facts.bucket
        sorting = [Term("rows sorted", rows, "measured", during)]
        # Before and after it is partitioned, once the rows are freed too.
        sample = 16 * min(SAMPLED_TIMES, facts.interactions) + 24 * min(BLOCK, facts.interactions)
        timing = [Term("times", sample, "analytic", during)] if self.request.split == "temporal" else []
        describing = [staging[0], read, Term("titles, attributes", facts.describing, "analytic", during)]
        return [
            *max(staging, describing, sorting, timing, key=lambda terms: sum(term.bytes for term in terms)),
            Term("row counts", 16 * facts.ids, "analytic", during),
            Term("attributes' code", KERNEL_BYTES * described, "measured", during),
            Term("waiting parent", WAITING_BYTES, "measured", during),
            unpacking,
        ]

    def _solver_terms(self, setting: Setting) -> list[Term]:
        model = self.request.model
        factors, write = 4 * self.facts.items * model.factors, ("write",)
        terms = [
            Term("item factors", factors, "analytic", ("arrange",) if model.kind == "popularity" else ("fit",)),
            Term(
                "item factors to write", max(factors, writing_bytes(self.facts.items, model.factors)), "analytic", write
            ),
        ]
        if model.kind == "ials" and self.request.world.size > 1:
            world = self.request.world
            return [
                *ials_terms.shared_terms(self.sizes, int(setting["fit_block"]), world),
                *ranks_terms(world, 0, ("fit",)),
            ]
        if model.kind == "ials":
            return terms + ials_terms.terms(self.sizes, int(setting["fit_block"]))
        if model.kind == "bpr":
            terms += bpr_terms.terms(users=self.fit_users, interactions=self.fit_interactions, factors=model.factors)
        return terms

    def _linear_terms(self, setting: Setting) -> list[Term]:
        facts, request = self.facts, self.request
        sizes = linear.TrainingSizes(
            users=facts.users,
            items=facts.items,
            interactions=facts.interactions,
            trained=self.fit_interactions,
            longest=facts.longest,
            scored_users=facts.scored_users,
            scored_longest=facts.scored_longest,
        )
        asked, how = (sizes, request.model.hyper, setting), (request.threads, request.split != "none")
        if request.world.size > 1:
            return over_ranks_terms(*asked, request.world, threads=how[0], evaluates=how[1])
        return linear.training_terms(*asked, threads=how[0], evaluates=how[1])

    def evaluating_terms(self, setting: Setting, phase: str, scored: int, longest: int) -> list[Term]:
        """Terms of a model of vectors that ranks for users with held-out or hidden items."""
        facts, model, threads, during = self.facts, self.request.model, self.request.threads, (phase,)
        size = embedding_terms.columns({"factors": model.factors, "hyper": model.hyper})
        return [
            *model_terms(users=facts.users, items=facts.items, factors=size, phases=during),
            *ranking_terms(
                items=facts.items,
                factors=model.factors,
                scored=scored,
                longest=longest,
                mean=facts.interactions / facts.users,
                block=int(setting["user_block"]),
                threads=threads,
                phases=during,
            ),
            *bpr_terms.fold_terms(model.kind, factors=model.factors, longest=longest, threads=threads, phases=during),
        ]

    def lesser(self, setting: Setting) -> float:
        """Fewer eigenvalues of a linear model, and EASE left out, are no faster choice but a lesser one."""
        model = self.request.model
        if model.kind != "linear":
            return 0.0
        return model.ranks[0] - int(setting["factors"]) + (0.0 if setting["ease"] else 0.5)

    def seconds(self, setting: Setting) -> float:
        """A fixed cost per block that is ranked or solved and per micro-batch; the rest is the same for all."""
        model = self.request.model
        ranked = 1.0 + self.facts.scored_users / int(setting["user_block"])
        if model.kind == "embedding":
            exchange = embedding_terms.EXCHANGE if setting.get(TABLE_ROWS) == SHARED else 1.0
            return ranked + exchange * int(setting["accumulate"]) * self.facts.users
        if model.kind != "ials":
            return ranked
        fitted = ials_terms.seconds(self.sizes, int(setting["fit_block"]), iterations=int(model.hyper["iterations"]))
        return ranked + fitted / RANKED_SECONDS
