"""What ``recsys evaluate`` needs, in bytes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from apps.recsys.planning import bpr_terms, embedding_terms
from apps.recsys.planning.floors import LIBRARIES, READING, SCORING, baseline_terms
from apps.recsys.planning.ranking_terms import USER_BLOCKS, model_terms, ranking_terms
from apps.recsys.planning.reading_terms import STAGE_BYTES, WAITING_BYTES
from common.memory.costs import baseline
from common.memory.costs.probes import Costs, Probe
from common.memory.footprint import Footprint, Term
from common.memory.plan.plan import Setting


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
        """The baseline; reading a test file has one of its own."""
        names = [SCORING] if self.workspace is None else [SCORING, READING]
        return [baseline.probe(name, libraries=LIBRARIES, threads=self.threads) for name in names]

    def _reading_terms(self, costs: Costs, setting: Setting) -> list[Term]:
        """A test file: the model's ids, its pairs, sorted in a copy, and Arrow's blocks."""
        if self.workspace is None:
            return []
        where, files = ("plan",), self.manifest["files"]
        ids = sum(files[name]["bytes"] for name in ("items.parquet", "users.parquet"))
        return [
            *baseline_terms(costs, self.probes(setting)[1], *where),
            Term("ids", 4 * ids, "analytic", where),
            Term("test pairs", 32 * self.test_pairs, "analytic", where),
            Term("rows read", STAGE_BYTES, "measured", where),
            Term("waiting parent", WAITING_BYTES, "measured", where),
        ]

    def footprint(self, setting: Setting, costs: Costs) -> Footprint:
        """The model and one block of scores."""
        made, where = self.manifest, ("evaluate",)
        items, factors = made["items"], made["factors"]
        return Footprint.of(
            [
                *self._reading_terms(costs, setting),
                *baseline_terms(costs, self.probes(setting)[0], *where),
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

    def seconds(self, setting: Setting, costs: Costs) -> float:
        """A fixed cost a block."""
        return 1.0 + self.scored_users / int(setting["user_block"])
