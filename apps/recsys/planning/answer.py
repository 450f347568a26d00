"""What ``recsys recommend`` for one user, ``similar`` and ``serve`` need, in bytes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from apps.recsys.planning import bpr_terms, embedding_terms
from apps.recsys.planning.floors import ANSWERING, LIBRARIES, SERVING
from apps.recsys.planning.ranking_terms import model_terms
from common.memory.costs import baseline
from common.memory.costs.probes import Costs, Probe
from common.memory.footprint import Footprint, Term
from common.memory.plan.plan import Setting


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
        """The baseline."""
        libraries = (*LIBRARIES, "fastapi", "uvicorn") if self.warm_up == SERVING else LIBRARIES
        return [baseline.probe(self.warm_up, libraries=libraries, threads=self.threads)]

    def footprint(self, setting: Setting, costs: Costs) -> Footprint:
        """The model and one answer."""
        files, users, items, factors = (self.manifest[name] for name in ("files", "users", "items", "factors"))
        tables = sum(files[name]["bytes"] for name in ("items.parquet", "users.parquet"))
        # A history's rows in float64: themselves, weighted, turned, and what the solution adds of each.
        longest = self.manifest.get("longest", self.manifest["longest_history"])
        explanation = 8 * 4 * factors * longest if self.explains else 0
        return Footprint.of(
            [
                *baseline.terms(costs, self.probes(setting)[0]),
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

    def seconds(self, setting: Setting, costs: Costs) -> float:
        """There is one setting."""
        return 1.0
