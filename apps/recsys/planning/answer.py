"""Memory of ``recsys recommend`` for one user, and of ``similar``, in bytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from apps.recsys.models.manifest import RecommenderManifest
from apps.recsys.planning import bpr_terms, embedding_terms, linear_terms
from apps.recsys.planning.baselines import LIBRARIES, warm_up_for
from apps.recsys.planning.questions.diversity import diversity_terms
from apps.recsys.planning.questions.like_users import like_user_terms
from apps.recsys.planning.questions.where import where_terms
from apps.recsys.planning.ranking_terms import model_terms
from apps.recsys.planning.requests import AnswerRequest
from common.memory.costs import baseline
from common.memory.costs.probes import Costs, Probe
from common.memory.footprint import Footprint, Term
from common.memory.plan.plan import OneSetting, Setting

PHASES = ("answer",)
"""Where everything counts but the libraries."""
ENTRY_BYTES, ENTRY_TEXTS = 320, 2
"""An item of an answer while it is kept for a record: a dictionary and its numbers (measured 261 with integers as ids);
copies of its id and title."""
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
class AnswerWorkload(OneSetting):
    """``recsys recommend`` and ``similar``: the model, its ids and titles, and one answer."""

    request: AnswerRequest
    manifest: RecommenderManifest
    """``model.json`` of the model folder."""

    @property
    def name(self) -> str:
        """The command."""
        return self.request.command

    def probes(self, setting: Setting) -> Sequence[Probe]:
        """The baseline."""
        warm_up = warm_up_for(self.manifest, self.request.warm_up)
        return [baseline.probe(warm_up, libraries=LIBRARIES, threads=self.request.threads)]

    def footprint(self, setting: Setting, costs: Costs) -> Footprint:
        """The model, its ids and titles, and one answer."""
        manifest, request = self.manifest, self.request
        longest = max(manifest.get("longest", manifest["longest_history"]), request.named)
        k = min(request.k, manifest["items"])
        each = 1 + min(request.explained, longest)
        kept = k * each if request.keeps else min(k, EXPLAINED_ROWS) * each
        answers = RANKED_BYTES * k + entry_bytes(manifest, ENTRY_BYTES) * kept
        named = NAMED_BYTES * request.named + (LOOK_UP_BYTES + LIMIT_BYTES) * manifest["items"] * (request.named > 0)
        return Footprint.of(
            [
                *baseline.terms(costs, self.probes(setting)[0]),
                *question_terms(
                    manifest, longest=longest, explained=min(k, EXPLAINED_ROWS) if request.explained else 0
                ),
                Term("answers", answers, "measured", PHASES),
                Term("ids in the question", named, "measured", PHASES),
                *where_terms(request.where, manifest, PHASES),
                *(like_user_terms(manifest, threads=request.threads) if request.compares_users else []),
                *diversity_terms(k, request.diversity, manifest, PHASES),
            ]
        )


def entry_bytes(manifest: RecommenderManifest, each: int) -> int:
    """Memory of an item of an answer: ``each`` bytes, and its id and title."""
    return each + ENTRY_TEXTS * manifest["files"]["items.parquet"]["bytes"] // manifest["items"]


def question_terms(
    manifest: RecommenderManifest, *, longest: int, explained: int, by_readers: bool = True
) -> list[Term]:
    """Terms of a loaded model with its ids and titles, and of the arrays of one question.

    Parameters
    ----------
    manifest
        ``model.json``.
    longest
        Items of the longest history.
    explained
        Recommendations that are explained at a time; 0: none.
    by_readers
        False if interactions may be added to a large filter, which then scores in passes over all of them.
    """
    files, users, items, factors = (manifest["files"], manifest["users"], manifest["items"], manifest["factors"])
    tables = [files[name]["bytes"] for name in ("items.parquet", "users.parquet")]
    by_readers = by_readers and linear_terms.readers_file(manifest)
    # Factors of the history's items, and weighted; the system, which is solved in a copy.
    folding = 4 * factors * (2 * longest + 3 * factors)
    # Factors of the history's items in float64: themselves, weighted, transposed, and the contributions; what each
    # item adds to some scores, and the order of these.
    explanation = 8 * longest * (4 * factors + explained + 4) if explained else 0
    columns, filtering = embedding_terms.columns(manifest), []
    if linear_terms.scores_all(manifest):
        block, explains = max(1, explained), explained > 0
        filtering = linear_terms.scorer_terms(
            manifest, block=block, threads=1, phases=PHASES, explains=explains, by_readers=by_readers
        )
        columns = factors = folding = 0
    return [
        *model_terms(users=users, items=items, factors=columns, phases=PHASES),
        *filtering,
        # Stored uncompressed: both tables, and the file of one while it is read.
        Term("ids and titles", sum(tables) + max(tables), "analytic", PHASES),
        # Scores, the partitioned copy, norms, masks; scores by readers have a term of their own.
        Term("one answer", (8 if by_readers else 20) * items + 16 * factors * factors, "analytic", PHASES),
        Term("history", folding, "analytic", PHASES),
        Term("explanation", explanation, "analytic", PHASES),
        *bpr_terms.fold_terms(manifest["kind"], factors=factors, longest=longest, threads=1, phases=PHASES),
    ]
