"""Memory of ``recsys serve``, in bytes: the model, one answer at a time, and the connections."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from apps.recsys.data.arrow_numpy import BATCH
from apps.recsys.models.folder_check import TABLES
from apps.recsys.models.manifest import RecommenderManifest
from apps.recsys.models.scan import stored as scan_files
from apps.recsys.models.scan.choice import choice_bytes
from apps.recsys.planning.answer import (
    LIMIT_BYTES,
    NAMED_BYTES,
    PHASES,
    entry_bytes,
    look_up_bytes,
    question_terms,
)
from apps.recsys.planning.baselines import LIBRARIES, warm_up_for
from apps.recsys.planning.embedding_terms import columns
from apps.recsys.planning.questions.where import MASK, served_where_terms
from apps.recsys.planning.service import limits, request
from common.memory.costs import baseline
from common.memory.costs.probes import Costs, Probe
from common.memory.footprint import Footprint, Term
from common.memory.plan.plan import Setting

RESPONSE_BYTES = 500
"""An item of an answer while a part of it is written: a dictionary, its numbers, and its text twice."""
RANKED_BYTES = 176
"""A row and its score in Python with the order of the best, and in the arrays that wait for the next part."""
EVENT_BYTES = 320
"""An event of feedback: its numbers, those of its user if he is new, and its row in a linear model's interactions."""
WORKER_BYTES = 13 << 20
"""Pages of the interpreter and its libraries that a worker writes to, which it then does not share (measured 11 to 12.6
MiB with small answers)."""
FILTERS = (4, 2, 1, 0)
"""Values of the knob ``filters``."""
FILTER_TIMES = 4.0
"""Time of a list with a filter that is not kept, of a million items, against one that is: 3.2 ms and 0.7."""
KEPT = "items that pass filters"
"""Name of the term of filters that are kept."""
STEPS = (
    ("attributes",),
    ("history", "pairs of known and other items"),
    ("scan of codes",),
    ("explanation",),
    ("rows of items",),
)
"""Terms of the steps of an answer, which come one after the other: those of the largest step count."""
ONCE = ("one answer", "answers", "large answers", "ids in the question")
"""Terms of one answer, which needs none of them while a model is loaded."""
READ_TIMES = 3
"""Memory of a block of a table while it is read: its pages, Arrow's arrays, and a copy."""
ASKED_BYTES = 100
"""An id of a question while it is kept."""
POPULAR_BYTES = 4
"""Bytes of each item: how many users had it."""


@dataclass(frozen=True, slots=True)
class ServeWorkload:
    """``recsys serve``: the model, its ids and titles, one answer at a time, and what clients may hold."""

    request: request.ServeRequest
    manifest: RecommenderManifest
    """``model.json`` of the model folder."""

    @property
    def name(self) -> str:
        """The command."""
        return self.request.command

    @property
    def monotone_knobs(self) -> Sequence[str]:
        """Knobs of which smaller values never need more memory."""
        return ("filters",)

    def settings(self) -> Iterator[Setting]:
        """Numbers of filters of which a large catalogue keeps the items that pass."""
        filtered = scan_files.is_there(self.manifest) and self.manifest.get("attributes")
        yield from ({"filters": number} for number in FILTERS) if filtered else ({},)

    def seconds(self, setting: Setting) -> float:
        """Time of a list, of which half has a filter that is kept."""
        number = setting.get("filters", 1)
        return 1.0 + 0.1 / int(number) if number else FILTER_TIMES

    def probes(self, setting: Setting) -> Sequence[Probe]:
        """The baseline."""
        warm_up = warm_up_for(self.manifest, self.request.warm_up)
        libraries = (*LIBRARIES, *request.LIBRARIES)
        return [baseline.probe(warm_up, libraries=libraries, threads=self.request.threads)]

    def footprint(self, setting: Setting, costs: Costs) -> Footprint:
        """The model, the largest answer to a request, and the connections."""
        manifest, items, files = self.manifest, self.manifest["items"], self.manifest["files"]
        events = 0 if self.request.feedback is None else self.request.events
        longest = manifest.get("longest", manifest["longest_history"]) + min(events, limits.MOST_OF_USER)
        longest = max(longest, limits.MOST_NAMED)
        k = min(limits.MOST, items)
        workers = self.request.workers
        # Recommendations are described some at a time, explained one by one, and written from ``PIECE_BYTES`` on.
        part = limits.EXPLAINED_AT_ONCE + 1 + min(limits.MOST, longest)
        answers = RANKED_BYTES * k + entry_bytes(manifest, RESPONSE_BYTES) * part + 2 * limits.PIECE_BYTES
        # What a large answer keeps while others are computed: contributions, ids, a mask, the best rows, a part.
        contributions = 8 * limits.EXPLAINED_AT_ONCE * longest
        kept = contributions + ASKED_BYTES * limits.MOST_NAMED + items // 8 + 12 * k + limits.PIECE_BYTES
        named = NAMED_BYTES * limits.MOST_NAMED + look_up_bytes(items)
        where = served_where_terms(manifest, PHASES)
        if scan_files.is_there(manifest):  # one mask and its copy, which the question's term has
            named -= LIMIT_BYTES * items
            where = [term for term in where if term.name != MASK]
        answering = [
            *question_terms(
                manifest,
                longest=longest,
                explained=min(k, limits.EXPLAINED_AT_ONCE),
                loading=False,
                by_readers=self.request.feedback is None,
            ),
            Term("answers", answers, "measured", PHASES),
            Term("large answers", limits.MOST_ANSWERS * kept, "analytic", PHASES),
            Term("feedback", EVENT_BYTES * events, "measured", PHASES),
            Term("popular items", POPULAR_BYTES * items, "analytic", PHASES),
            Term("ids in the question", named, "measured", PHASES),
            *where,
            Term(KEPT, int(setting.get("filters", 0)) * choice_bytes(items, columns(manifest)), "analytic", PHASES),
            Term("connections", -(-self.request.connections // workers) * limits.CONNECTION_BYTES, "measured", PHASES),
        ]
        sizes = [sum(term.bytes for term in answering if term.name in step) for step in STEPS]
        largest = STEPS[sizes.index(max(sizes))]
        shorter = {name for step in STEPS if step is not largest for name in step}
        answering = [term for term in answering if term.name not in shorter]
        # While a model is loaded, nothing is answered: blocks of a table, or of a column in one piece.
        loading = max(
            READ_TIMES * min(BATCH, rows) * -(-files[name]["bytes"] // max(1, rows))
            for name, rows in zip(TABLES, (items, manifest["users"]), strict=True)
        )
        once = sum(term.bytes for term in answering if term.name in {*ONCE, *largest})
        answering.append(Term("more while it is loaded", max(0, loading - once), "analytic", PHASES))
        return Footprint.of(
            [
                *baseline.terms(costs, self.probes(setting)[0]),
                *(term if self._shared(term) else replace(term, bytes=workers * term.bytes) for term in answering),
                Term("workers", WORKER_BYTES * workers if workers > 1 else 0, "measured", PHASES),
            ]
        )

    def _shared(self, term: Term) -> bool:
        """True for memory that workers share, also after a change of the model: files that they map."""
        manifest = self.manifest
        stored = manifest["kind"] == "linear" or manifest["table"] in ("int8", "int4") or manifest["hyper"].get("prior")
        return term.name == "item factors" and not stored
