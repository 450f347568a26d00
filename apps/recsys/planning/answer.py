"""Memory of ``recsys recommend`` for one user, and of ``similar``, in bytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from apps.recsys.data.id_table import LOOKED_UP
from apps.recsys.models.als import ials
from apps.recsys.models.coded.stored import is_coded
from apps.recsys.models.manifest import RecommenderManifest
from apps.recsys.models.scan import rows as scan_rows
from apps.recsys.models.scan import scanner
from apps.recsys.models.scan import stored as scan_files
from apps.recsys.planning import bpr_terms, embedding_terms, linear_terms
from apps.recsys.planning.baselines import LIBRARIES, warm_up_for
from apps.recsys.planning.compressing.terms import vector_terms
from apps.recsys.planning.questions.diversity import diversity_terms
from apps.recsys.planning.questions.like_users import like_user_terms
from apps.recsys.planning.questions.where import where_terms
from apps.recsys.planning.ranking_terms import folding_bytes, model_terms
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
ROW_BYTES = 4
"""Bytes of the number of a row in a table of ids, which is not read."""
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
        named = NAMED_BYTES * request.named + look_up_bytes(manifest["items"]) * (request.named > 0)
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


def look_up_bytes(items: int) -> int:
    """Memory while ids are looked up among ``items``, and of two masks of these."""
    return LOOK_UP_BYTES * min(items, LOOKED_UP) + LIMIT_BYTES * items


def entry_bytes(manifest: RecommenderManifest, each: int) -> int:
    """Memory of an item of an answer: ``each`` bytes, and its id and title."""
    return each + ENTRY_TEXTS * manifest["files"]["items.parquet"]["bytes"] // manifest["items"]


def question_terms(
    manifest: RecommenderManifest, *, longest: int, explained: int, by_readers: bool = True, loading: bool = True
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
    loading
        False to leave out what a table takes besides while it is read.
    """
    users, items, factors = manifest["users"], manifest["items"], manifest["factors"]
    # Stored uncompressed; the numbers of their rows are not read.
    rows = {"items.parquet": items, "users.parquet": users}
    tables = [max(0, manifest["files"][name]["bytes"] - ROW_BYTES * count) for name, count in rows.items()]
    by_readers = by_readers and linear_terms.readers_file(manifest)
    spectral = linear_terms.is_spectral(manifest)
    folding = folding_bytes(factors=factors, longest=longest, solves=not spectral)
    # Contributions of the history's items in float64, and their factors; what each item adds to some scores, and the
    # order of these. In ``ials`` the factors of some at a time, weighted, transposed, and what is solved.
    arrays = 1.0 if manifest["kind"] == "ials" else 4.0 if linear_terms.scores_all(manifest) else 1.5
    split = 8 * 4 * ials.SPLIT_ROWS * factors if manifest["kind"] == "ials" else 0
    explanation = int(8 * longest * (arrays * factors + explained + 4)) + split if explained else 0
    columns, filtering = embedding_terms.columns(manifest), []
    scans = scan_files.is_there(manifest)
    if linear_terms.scores_all(manifest) and not scans:
        block, explains = max(1, explained), explained > 0
        filtering = linear_terms.scorer_terms(
            manifest, block=block, threads=1, phases=PHASES, explains=explains, by_readers=by_readers
        )
        columns = factors = folding = 0
    # Scores, the partitioned copy, norms, masks; scores by readers have a term of their own, and a scan has two masks.
    each = 2 if scans else 8 if by_readers else 20
    system = 16 * factors * factors
    if spectral:
        filtering, system = linear_terms.counts_terms(manifest, scans=scans, phases=PHASES), 0
    once = [
        Term("one answer", each * items + system, "analytic", PHASES),
        Term("history", folding, "analytic", PHASES),
        Term("explanation", explanation, "analytic", PHASES),
    ]
    if scans:
        filtering.append(Term("scanner", scanner.kept_bytes(columns), "analytic", PHASES))
        once.append(Term("scan of codes", scanner.scanning_bytes(columns), "analytic", PHASES))
        # The rows of a block while all are read, of which one is compared with all others.
        once.append(Term("rows of items", 4 * scan_rows.BLOCK * 3 * columns, "analytic", PHASES))
        if is_coded(manifest):
            filtering += vector_terms(manifest, threads=1, phases=PHASES)
        columns = 0
    # While a table is read, there are its file and no answer.
    more = max(0, max(tables) - sum(term.bytes for term in once)) if loading else 0
    return [
        *model_terms(users=users, items=items, factors=columns, phases=PHASES, solves=not spectral),
        *filtering,
        Term("ids and titles", sum(tables), "analytic", PHASES),
        *once,
        Term("more while ids are read", more, "analytic", PHASES),
        *bpr_terms.fold_terms(manifest["kind"], factors=factors, longest=longest, threads=1, phases=PHASES),
    ]
