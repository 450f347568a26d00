"""Memory of ``recsys evaluate``, in bytes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from apps.recsys.data.readers import Source
from apps.recsys.data.test_files import TestPairs
from apps.recsys.models.manifest import RecommenderManifest
from apps.recsys.planning import bpr_terms, embedding_terms, linear_terms
from apps.recsys.planning.baselines import (
    FILTERING,
    LIBRARIES,
    READING,
    SCORING,
    STAGE_BYTES,
    WAITING_BYTES,
    baseline_terms,
    reading_terms,
    warm_up_for,
)
from apps.recsys.planning.ranking_terms import model_terms, ranking_terms
from apps.recsys.planning.requests import EvaluateRequest
from common.files import Workspace
from common.memory.costs import baseline
from common.memory.costs.probes import Costs, Probe
from common.memory.footprint import Footprint, Term
from common.memory.plan.plan import Setting

USUAL_METRICS, USUAL_DEPTH = 12, 100
"""Metrics of each user and the longest ranking, where none are named."""
METRIC_BYTES = 24
"""Bytes of a further metric of a user: its value, the table's, and that of the bootstrap."""
COMPARED_BYTES = 40
"""Bytes of a metric of a user while two models are compared: values of both, differences, and those stacked."""
RANKED_BYTES = 9
"""Bytes of an item of a ranking that waits to be counted (measured 8.2, for 189 rankings of 17,632 items)."""


@dataclass(frozen=True, slots=True)
class EvaluateWorkload:
    """``recsys evaluate``: fold held-out users in, rank all items."""

    request: EvaluateRequest
    manifest: RecommenderManifest
    """``model.json`` of the model folder."""
    scored_users: int
    """Users for whom all items are ranked."""
    workspace: Workspace | None = None
    """Holds the pairs of test files."""
    test: TestPairs | None = None
    """Sizes of the test files; ``None``: the model's own split is scored."""
    sources: tuple[Source, ...] = ()
    """The test files with their columns."""
    against: RecommenderManifest | None = None
    """``model.json`` of the model that is compared."""
    name: str = "recsys evaluate"

    def settings(self) -> Iterator[Setting]:
        """Numbers of users ranked at a time."""
        for block in linear_terms.user_blocks(*self.manifests):
            yield {"user_block": block}

    @property
    def manifests(self) -> list[RecommenderManifest]:
        """``model.json`` of the model, and of the one that is compared."""
        return [self.manifest, *([self.against] if self.against is not None else [])]

    @property
    def warm_up(self) -> str:
        """Warm-up of the command: the larger one, if one of two models needs SciPy."""
        return max((warm_up_for(manifest, SCORING) for manifest in self.manifests), key=[SCORING, FILTERING].index)

    def probes(self, setting: Setting) -> Sequence[Probe]:
        """The baseline; reading files has one of its own."""
        names = [self.warm_up] if self.workspace is None else [self.warm_up, READING]
        return [baseline.probe(name, libraries=LIBRARIES, threads=self.request.threads) for name in names]

    def _reading_terms(self, costs: Costs, setting: Setting) -> list[Term]:
        """Test files: the models' ids, the pairs and their sorted copy, and Arrow's blocks."""
        if self.workspace is None:
            return []
        during, pairs, rows = ("plan",), self.scored_users, 0
        if self.test is not None:
            pairs, rows = self.test.pairs, self.test.rows or STAGE_BYTES
        ids = sum(
            manifest["files"][name]["bytes"]
            for manifest in self.manifests
            for name in ("items.parquet", "users.parquet")
        )
        return [
            *baseline_terms(costs, self.probes(setting)[1], *during),
            Term("ids", 4 * ids, "analytic", during),
            Term("test pairs", 32 * pairs * len(self.manifests), "analytic", during),
            *(reading_terms(rows, self.sources) if rows else ()),
            Term("waiting parent", WAITING_BYTES, "measured", during),
        ]

    def footprint(self, setting: Setting, costs: Costs) -> Footprint:
        """The model, and a block of users' scores; then the one that it is compared with."""
        phases = ["evaluate", "against"][: len(self.manifests)]
        terms = [*self._reading_terms(costs, setting), *baseline_terms(costs, self.probes(setting)[0], *phases)]
        for manifest, phase in zip(self.manifests, phases, strict=True):
            terms += self.scoring_terms(manifest, int(setting["user_block"]), (phase,))
        if self.against is not None:
            names = len(self.request.metrics) or USUAL_METRICS
            values = COMPARED_BYTES * names * self.scored_users
            terms.append(Term("values of both models", values, "analytic", ("against",)))
        return Footprint.of(terms)

    def scoring_terms(self, manifest: RecommenderManifest, block: int, during: tuple[str]) -> list[Term]:
        items, factors, columns = manifest["items"], manifest["factors"], embedding_terms.columns(manifest)
        threads, scoring, solves = self.request.threads, [], not linear_terms.is_spectral(manifest)
        if filters := linear_terms.scores_all(manifest):
            factors = columns = 0
            block = min(block, self.scored_users)
            scoring = linear_terms.scorer_terms(manifest, block=block, threads=threads, phases=during)
        return [
            *self._metric_terms(min(block, self.scored_users), items, during),
            *model_terms(users=manifest["users"], items=items, factors=columns, phases=during, solves=solves),
            *scoring,
            *ranking_terms(
                items=items,
                factors=factors,
                scored=self.scored_users,
                longest=manifest["longest_history"],
                mean=manifest["interactions"] / manifest["users"],
                block=block,
                threads=threads,
                phases=during,
                scores=not filters,
                solves=solves,
            ),
            *bpr_terms.fold_terms(
                manifest["kind"],
                factors=factors,
                longest=manifest["longest_history"],
                threads=threads,
                phases=during,
            ),
        ]

    def _metric_terms(self, block: int, items: int, during: tuple[str]) -> list[Term]:
        """Rankings that are longer, and metrics that are more, than those of ``ranking_terms``."""
        more = max(0, len(self.request.metrics) - USUAL_METRICS)
        longer = max(0, min(self.request.depth, items) - USUAL_DEPTH)
        return [
            Term("values of further metrics", METRIC_BYTES * more * self.scored_users, "analytic", during),
            Term("long rankings", RANKED_BYTES * longer * block, "analytic", during),
        ]

    def seconds(self, setting: Setting) -> float:
        """A fixed cost per block of users; the rest is the same for all settings."""
        return 1.0 + self.scored_users / int(setting["user_block"])
