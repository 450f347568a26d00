"""Memory of ``recsys evaluate``, in bytes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from apps.recsys.data.readers import Source
from apps.recsys.data.test_files import TestPairs
from apps.recsys.models.manifest import RecommenderManifest
from apps.recsys.planning import bpr_terms, embedding_terms, linear_terms
from apps.recsys.planning.baselines import (
    LIBRARIES,
    READING,
    SCORING,
    STAGE_BYTES,
    WAITING_BYTES,
    baseline_terms,
    reading_terms,
    warm_up_for,
)
from apps.recsys.planning.ranking_terms import USER_BLOCKS, model_terms, ranking_terms
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
    name: str = "recsys evaluate"

    def settings(self) -> Iterator[Setting]:
        """Numbers of users ranked at a time."""
        for block in USER_BLOCKS:
            yield {"user_block": block}

    def probes(self, setting: Setting) -> Sequence[Probe]:
        """The baseline; reading a test file has one of its own."""
        scoring = warm_up_for(self.manifest, SCORING)
        names = [scoring] if self.test is None else [scoring, READING]
        return [baseline.probe(name, libraries=LIBRARIES, threads=self.request.threads) for name in names]

    def _reading_terms(self, costs: Costs, setting: Setting) -> list[Term]:
        """Test files: the model's ids, the pairs and their sorted copy, and Arrow's blocks."""
        if self.test is None:
            return []
        during, files = ("plan",), self.manifest["files"]
        ids = sum(files[name]["bytes"] for name in ("items.parquet", "users.parquet"))
        return [
            *baseline_terms(costs, self.probes(setting)[1], *during),
            Term("ids", 4 * ids, "analytic", during),
            Term("test pairs", 32 * self.test.pairs, "analytic", during),
            *reading_terms(self.test.rows or STAGE_BYTES, self.sources),
            Term("waiting parent", WAITING_BYTES, "measured", during),
        ]

    def footprint(self, setting: Setting, costs: Costs) -> Footprint:
        """The model, and a block of users' scores."""
        manifest, during = self.manifest, ("evaluate",)
        items, factors, columns = manifest["items"], manifest["factors"], embedding_terms.columns(manifest)
        block, threads, scoring = int(setting["user_block"]), self.request.threads, []
        if filters := linear_terms.scores_all(manifest):
            factors = columns = 0
            block = min(block, self.scored_users)
            scoring = linear_terms.scorer_terms(manifest, block=block, threads=threads, phases=during)
        return Footprint.of(
            [
                *self._reading_terms(costs, setting),
                *self._metric_terms(min(block, self.scored_users)),
                *baseline_terms(costs, self.probes(setting)[0], *during),
                *model_terms(users=manifest["users"], items=items, factors=columns, phases=during),
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
                ),
                *bpr_terms.fold_terms(
                    manifest["kind"],
                    factors=factors,
                    longest=manifest["longest_history"],
                    threads=self.request.threads,
                    phases=during,
                ),
            ]
        )

    def _metric_terms(self, block: int) -> list[Term]:
        """Rankings that are longer, and metrics that are more, than those of ``ranking_terms``."""
        more = max(0, len(self.request.metrics) - USUAL_METRICS)
        longer = max(0, min(self.request.depth, self.manifest["items"]) - USUAL_DEPTH)
        return [
            Term("values of further metrics", METRIC_BYTES * more * self.scored_users, "analytic", ("evaluate",)),
            Term("long rankings", RANKED_BYTES * longer * block, "analytic", ("evaluate",)),
        ]

    def seconds(self, setting: Setting) -> float:
        """A fixed cost per block of users; the rest is the same for all settings."""
        return 1.0 + self.scored_users / int(setting["user_block"])
