"""Memory of ``recsys serve``, in bytes: the model, one answer at a time, and the connections."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from apps.recsys.models.manifest import RecommenderManifest
from apps.recsys.planning.answer import (
    LIMIT_BYTES,
    LOOK_UP_BYTES,
    NAMED_BYTES,
    PHASES,
    entry_bytes,
    question_terms,
)
from apps.recsys.planning.baselines import LIBRARIES, warm_up_for
from apps.recsys.planning.questions.where import served_where_terms
from apps.recsys.planning.service import limits, request
from common.memory.costs import baseline
from common.memory.costs.probes import Costs, Probe
from common.memory.footprint import Footprint, Term
from common.memory.plan.plan import OneSetting, Setting

RESPONSE_BYTES = 500
"""An item of an answer while a part of it is written: a dictionary, its numbers, and its text twice."""
RANKED_BYTES = 176
"""A row and its score in Python with the order of the best, and in the arrays that wait for the next part."""
EVENT_BYTES = 320
"""An event of feedback: its numbers, those of its user if he is new, and its row in a linear model's interactions."""
WORKER_BYTES = 13 << 20
"""Pages of the interpreter and its libraries that a worker writes to, which it then does not share (measured 11 to 12.6
MiB with small answers)."""
ASKED_BYTES = 100
"""An id of a question while it is kept."""
POPULAR_BYTES = 16
"""Bytes of each item: how many users had it, and the same while the most popular ones are found."""


@dataclass(frozen=True, slots=True)
class ServeWorkload(OneSetting):
    """``recsys serve``: the model, its ids and titles, one answer at a time, and what clients may hold."""

    request: request.ServeRequest
    manifest: RecommenderManifest
    """``model.json`` of the model folder."""

    @property
    def name(self) -> str:
        """The command."""
        return self.request.command

    def probes(self, setting: Setting) -> Sequence[Probe]:
        """The baseline."""
        warm_up = warm_up_for(self.manifest, self.request.warm_up)
        libraries = (*LIBRARIES, *request.LIBRARIES)
        return [baseline.probe(warm_up, libraries=libraries, threads=self.request.threads)]

    def footprint(self, setting: Setting, costs: Costs) -> Footprint:
        """The model, the largest answer to a request, and the connections."""
        manifest, items = self.manifest, self.manifest["items"]
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
        kept = contributions + ASKED_BYTES * limits.MOST_NAMED + items + 12 * k + limits.PIECE_BYTES
        named = NAMED_BYTES * limits.MOST_NAMED + (LOOK_UP_BYTES + LIMIT_BYTES) * items
        answering = [
            *question_terms(
                manifest,
                longest=longest,
                explained=min(k, limits.EXPLAINED_AT_ONCE),
                by_readers=self.request.feedback is None,
            ),
            Term("answers", answers, "measured", PHASES),
            Term("large answers", limits.MOST_ANSWERS * kept, "analytic", PHASES),
            Term("feedback", EVENT_BYTES * events, "measured", PHASES),
            Term("popular items", POPULAR_BYTES * items, "analytic", PHASES),
            Term("ids in the question", named, "measured", PHASES),
            *served_where_terms(manifest, PHASES),
            Term("connections", -(-self.request.connections // workers) * limits.CONNECTION_BYTES, "measured", PHASES),
        ]
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
