"""Memory of ``recsys recommend`` for one user, ``similar`` and ``serve``, in bytes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from apps.recsys.models.manifest import RecommenderManifest
from apps.recsys.planning import bpr_terms, embedding_terms, linear_terms
from apps.recsys.planning.baselines import LIBRARIES, SERVING, warm_up_for
from apps.recsys.planning.questions.diversity import diversity_terms
from apps.recsys.planning.questions.like_users import like_user_terms
from apps.recsys.planning.questions.where import served_where_terms, where_terms
from apps.recsys.planning.ranking_terms import model_terms
from apps.recsys.planning.requests import AnswerRequest
from common.memory.costs import baseline
from common.memory.costs.probes import Costs, Probe
from common.memory.footprint import Footprint, Term
from common.memory.plan.plan import Setting

ENTRY_BYTES, ENTRY_TEXTS = 320, 2
"""An item of an answer while it is kept for a record: a dictionary and its numbers (measured 261 with integers as ids);
copies of its id and title."""
RESPONSE_BYTES = 700
"""The same for a response, with its text before and after it is joined."""
RANKED_BYTES = 160
"""A row and its score in Python, with the order of the best."""
EXPLAINED_ROWS = 64
"""``service.EXPLAINED_ROWS``: recommendations that are explained at a time."""
NAMED_BYTES = 400
"""An id of a history or of a list of limits: its text, twice, and its place in a dictionary."""
LOOK_UP_BYTES = 6
"""Bytes of each item, while ids are looked up among them."""
LIMIT_BYTES = 2
"""Bytes of each item, where only some may be recommended."""


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
        warm_up = warm_up_for(self.manifest, self.request.warm_up)
        return [baseline.probe(warm_up, libraries=libraries, threads=self.request.threads)]

    def footprint(self, setting: Setting, costs: Costs) -> Footprint:
        """The model, its ids and titles, and one answer."""
        manifest = self.manifest
        request = self.request
        files, users, items, factors = (manifest["files"], manifest["users"], manifest["items"], manifest["factors"])
        tables = [files[name]["bytes"] for name in ("items.parquet", "users.parquet")]
        longest = max(manifest.get("longest", manifest["longest_history"]), request.named)
        # Factors of the history's items, and weighted; the system, which is solved in a copy.
        folding = 4 * factors * (2 * longest + 3 * factors)
        # Factors of the history's items in float64: themselves, weighted, transposed, and the contributions; what each
        # item adds to some scores, and the order of these.
        explanation = 8 * longest * (4 * factors + EXPLAINED_ROWS + 4) if request.explained else 0
        k = min(request.k, items)
        kept = min(request.most_entries, k * (1 + min(request.explained, longest)))
        each = RESPONSE_BYTES if request.warm_up == SERVING else ENTRY_BYTES
        entry = each + ENTRY_TEXTS * files["items.parquet"]["bytes"] // items
        answers = RANKED_BYTES * k + entry * (
            kept if request.keeps else min(k, EXPLAINED_ROWS) * (1 + min(request.explained, longest))
        )
        columns, filtering = embedding_terms.columns(manifest), []
        if linear_terms.scores_all(manifest):
            block = min(k, EXPLAINED_ROWS) if request.explained else 1
            filtering = linear_terms.scorer_terms(
                manifest, block=block, threads=1, phases=("answer",), explains=request.explained > 0
            )
            columns = factors = folding = 0
        choosing = where_terms(request.where, manifest, ("answer",))
        if request.warm_up == SERVING:
            choosing = served_where_terms(manifest, ("answer",))
        named = NAMED_BYTES * request.named + (LOOK_UP_BYTES + LIMIT_BYTES) * items * (request.named > 0)
        return Footprint.of(
            [
                *baseline.terms(costs, self.probes(setting)[0]),
                *model_terms(users=users, items=items, factors=columns, phases=("answer",)),
                *filtering,
                # Stored uncompressed: both tables, and the file of one while it is read.
                Term("ids and titles", sum(tables) + max(tables), "analytic", ("answer",)),
                # Scores, the partitioned copy, norms, masks; scores by readers have a term of their own.
                Term(
                    "one answer",
                    (8 if linear_terms.readers_file(manifest) else 20) * items + 16 * factors * factors,
                    "analytic",
                    ("answer",),
                ),
                Term("history", folding, "analytic", ("answer",)),
                Term("explanation", explanation, "analytic", ("answer",)),
                Term("answers", answers, "measured", ("answer",)),
                Term("ids in the question", named, "measured", ("answer",)),
                *choosing,
                *(like_user_terms(manifest, threads=request.threads) if request.compares_users else []),
                *diversity_terms(k, request.diversity, manifest, ("answer",)),
                Term("connections", request.connection_bytes, "measured", ("answer",)),
                *bpr_terms.fold_terms(
                    manifest["kind"], factors=factors, longest=longest, threads=1, phases=("answer",)
                ),
            ]
        )

    def seconds(self, setting: Setting) -> float:
        """The same for the only setting."""
        return 1.0
