"""Memory of ``recsys recommend`` for one user, ``similar`` and ``serve``, in bytes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from apps.recsys.models.manifest import RecommenderManifest
from apps.recsys.planning import bpr_terms, embedding_terms
from apps.recsys.planning.baselines import LIBRARIES, SERVING
from apps.recsys.planning.ranking_terms import model_terms
from apps.recsys.planning.requests import AnswerRequest
from common.memory.costs import baseline
from common.memory.costs.probes import Costs, Probe
from common.memory.footprint import Footprint, Term
from common.memory.plan.plan import Setting


@dataclass(frozen=True, slots=True)
class AnswerWorkload:
    """``recsys recommend``, ``similar`` and ``serve``: the model, its ids and titles, and one answer at a time."""

    request: AnswerRequest
    manifest: RecommenderManifest
    """``model.json`` of the model folder."""

    @property
    def name(self) -> str:
        """The command."""
        return self.request.command

    def settings(self) -> Iterator[Setting]:
        """One empty setting: the user's options decide everything."""
        yield {}

    def probes(self, setting: Setting) -> Sequence[Probe]:
        """The baseline."""
        libraries = (*LIBRARIES, "fastapi", "uvicorn") if self.request.warm_up == SERVING else LIBRARIES
        return [baseline.probe(self.request.warm_up, libraries=libraries, threads=self.request.threads)]

    def footprint(self, setting: Setting, costs: Costs) -> Footprint:
        """The model, its ids and titles, and one answer."""
        manifest = self.manifest
        files, users, items, factors = (manifest["files"], manifest["users"], manifest["items"], manifest["factors"])
        tables = sum(files[name]["bytes"] for name in ("items.parquet", "users.parquet"))
        # Factors of the history's items in float64: themselves, weighted, transposed, and the contributions.
        longest = manifest.get("longest", manifest["longest_history"])
        explanation = 8 * 4 * factors * longest if self.request.explains else 0
        return Footprint.of(
            [
                *baseline.terms(costs, self.probes(setting)[0]),
                *model_terms(users=users, items=items, factors=embedding_terms.columns(manifest), phases=("answer",)),
                # Stored uncompressed: the file while it is read, and the table.
                Term("ids and titles", 2 * tables, "analytic", ("answer",)),
                # Scores, the partitioned copy, norms, masks.
                Term("one answer", 20 * items + 16 * factors * factors, "analytic", ("answer",)),
                Term("explanation", explanation, "analytic", ("answer",)),
                *bpr_terms.fold_terms(manifest["kind"], factors=factors, threads=1, phases=("answer",)),
            ]
        )

    def seconds(self, setting: Setting, costs: Costs) -> float:
        """The same for the only setting."""
        return 1.0
