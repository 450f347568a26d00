"""The model that is served: loaded once, and read by one thread."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from apps.recsys.models.manifest import RecommenderManifest
from apps.recsys.serving.feedback.feedback import Feedback, journal_for
from apps.recsys.serving.service import RecommenderService
from common import model_folder
from common.errors import BadInput
from common.files import sha256
from common.memory.footprint import Term
from common.memory.plan.plan import Plan
from common.memory.process import guard, meter

VERSION_LETTERS = 12
"""Letters of the digest of ``model.json`` that name a version."""


def version_of(directory: Path) -> str:
    """Name of a model's version: the first letters of the digest of its ``model.json``."""
    return sha256(directory / model_folder.MANIFEST)[:VERSION_LETTERS]


@dataclass(frozen=True, slots=True)
class Gauge:
    """The plan of the server."""

    ceiling: int
    """The ceiling in bytes."""
    predicted: int
    """The predicted peak in bytes."""
    terms: Sequence[Term]
    """The terms of the prediction."""

    @classmethod
    def of(cls, ceiling: int, plan: Plan) -> Gauge:
        """The gauge of a plan."""
        return cls(ceiling, plan.predicted_peak_bytes, plan.footprint.at_peak())

    def read(self) -> dict[str, Any]:
        """Ceiling, prediction, what is held now, and the terms, for ``/model``."""
        return {
            "ceiling_bytes": self.ceiling,
            "predicted_bytes": self.predicted,
            "resident_bytes": meter.resident() + guard.SUPERVISOR_BYTES,
            "terms": [{"name": term.name, "bytes": term.bytes} for term in self.terms],
        }


@dataclass(frozen=True, slots=True)
class Log:
    """Where feedback is written."""

    path: Path
    events: int
    """Most events."""
    sync: bool
    """True to write each to the disk before it is answered."""


class Live:
    """The model that is served.

    Parameters
    ----------
    directory
        A model folder.
    manifest
        Its ``model.json``.
    gauge
        The plan.
    log
        Where feedback is written; ``None``: none is taken.

    Raises
    ------
    BadInput
        As ``RecommenderService`` and ``Feedback.attach``.
    """

    def __init__(self, directory: Path, manifest: RecommenderManifest, gauge: Gauge, log: Log | None = None) -> None:
        self.manifest, self.gauge = manifest, gauge
        self.version = version_of(directory)
        self._service = RecommenderService(directory, manifest)
        self._service.count()
        self.feedback: Feedback | None = None
        """What came since the model was made."""
        self.mended = 0
        """Bytes that a crash had left of a line of the log."""
        if log is not None:
            journal = journal_for(log.path, self._service, manifest, sync=log.sync)
            self.mended = journal.mend()
            self.feedback = Feedback(journal, log.events)
            self.feedback.attach(self._service, manifest)

    def service(self) -> RecommenderService:
        """The model, for the thread that answers alone; with what other workers took since the last answer."""
        if self.feedback is not None:
            with suppress(BadInput):  # the next feedback is told so
                self.feedback.read()
        return self._service

    def described(self) -> dict[str, Any]:
        """The model for ``/model``."""
        manifest: Any = self.manifest
        fields = ("kind", "users", "items", "factors", "interactions", "hyper", "made_by")
        attributes = [{"name": one["name"], "kind": one["kind"]} for one in manifest.get("attributes", ())]
        return {
            "status": "ok",
            "version": self.version,
            **{name: manifest[name] for name in fields},
            "attributes": attributes,
            "feedback": self._counted(),
            "memory": self.gauge.read(),
        }

    def _counted(self) -> dict[str, int] | None:
        if self.feedback is None:
            return None
        return {"events": self.feedback.count, "most": self.feedback.capacity, "skipped": self.feedback.skipped}
