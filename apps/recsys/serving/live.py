"""The model that is served: read by one thread, and changed for a newer version between two answers."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from apps.recsys.models.manifest import RecommenderManifest
from apps.recsys.models.recommender import load_manifest
from apps.recsys.planning.answer import PHASES
from apps.recsys.serving.feedback.feedback import Feedback, journal_for
from apps.recsys.serving.pinned import Pinned
from apps.recsys.serving.service import RecommenderService
from common import model_folder
from common.errors import BadInput
from common.files import sha256
from common.memory.footprint import ALL, Term
from common.memory.plan.plan import Plan
from common.memory.process import glibc, guard, meter

VERSION_LETTERS = 12
"""Letters of the digest of ``model.json`` that name a version."""


@dataclass(frozen=True, slots=True)
class Gauge:
    """The plan of the server."""

    ceiling: int
    """The ceiling in bytes."""
    predicted: int
    """The prediction in bytes, while it answers."""
    terms: Sequence[Term]
    """The terms of the prediction, the largest first."""
    filters: int = 0
    """Number of filters of which the items that pass are kept."""

    @classmethod
    def of(cls, ceiling: int, plan: Plan) -> Gauge:
        """The gauge of a plan."""
        terms = [term for term in plan.footprint.terms if {ALL, *PHASES} & set(term.phases)]
        filters = dict(plan.knobs).get("filters", 0)
        return cls(
            ceiling, sum(term.bytes for term in terms), sorted(terms, key=lambda term: -term.bytes), int(filters)
        )

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


@dataclass(frozen=True, slots=True)
class Version:
    """A model folder at some time."""

    name: str
    """The first letters of the digest of its ``model.json``."""
    pinned: Pinned
    manifest: RecommenderManifest
    gauge: Gauge


class Live:
    """The model that is served.

    Parameters
    ----------
    directory
        A model folder.
    price
        Makes the gauge of a model; raises ``BadInput`` for one that cannot be served below the ceiling.
    log
        Where feedback is written; ``None``: none is taken.
    mapped
        True where several processes serve the model.

    Raises
    ------
    BadInput
        As ``RecommenderService`` and ``Feedback.attach``.
    """

    def __init__(
        self,
        directory: Path,
        price: Callable[[RecommenderManifest], Gauge],
        log: Log | None = None,
        *,
        mapped: bool = False,
    ) -> None:
        self.directory, self._price, self._mapped = directory, price, mapped
        self.version = self._read()
        self.changes, self.refused = 0, ""
        """Number of changes to another version; why the last one was refused."""
        self.feedback: Feedback | None = None
        """What came since the model was made."""
        self.mended = 0
        """Bytes that a crash had left of a line of the log."""
        self._service: RecommenderService | None = self._load(self.version)
        if log is not None:
            journal = journal_for(log.path, self._service, self.version.manifest, sync=log.sync)
            self.mended = journal.mend()
            self.feedback = Feedback(journal, log.events)
            self.feedback.attach(self._service, self.version.manifest)

    @property
    def manifest(self) -> RecommenderManifest:
        """``model.json`` of the model."""
        return self.version.manifest

    def service(self) -> RecommenderService:
        """The model, for the thread that answers alone; with what other workers took since the last answer.

        Raises
        ------
        BadInput
            There is none: a change of the model failed, and the one before could not be loaded again.
        """
        if self._service is None:
            raise BadInput("no model", public="the model cannot be loaded")
        if self.feedback is not None:
            with suppress(BadInput):  # the next feedback is told so
                self.feedback.read()
        return self._service

    def newer(self) -> Version | None:
        """What the folder holds now, checked by its digests and priced; ``None`` if that is what is served.

        Only blocks of its files are in memory.

        Raises
        ------
        BadInput
            It cannot be served.
        """
        with suppress(OSError):
            if _version(self.directory) == self.version.name:
                return None
        version = self._read()
        try:
            model_folder.verify(version.pinned.path, version.manifest)
        except BadInput as error:
            version.pinned.close()
            raise version.pinned.named(error) from None
        return version

    def change(self, version: Version) -> None:
        """Serve another version, in the thread that answers: the present one leaves memory before the other comes.

        Raises
        ------
        BadInput
            It could not be loaded; the one before is served.
        """
        before = self.version
        self._leave()
        try:
            self._enter(version)
        except (BadInput, MemoryError, OSError) as error:
            self._leave()
            version.pinned.close()
            self._enter(before)
            if isinstance(error, BadInput):
                raise version.pinned.named(error) from None
            raise BadInput(f"{self.directory}: {error}", public="the model cannot be loaded") from None
        before.pinned.close()
        self.changes += 1

    def described(self) -> dict[str, Any]:
        """The model for ``/model``."""
        manifest: Any = self.manifest
        fields = ("kind", "users", "items", "factors", "interactions", "hyper", "made_by")
        attributes = [{"name": one["name"], "kind": one["kind"]} for one in manifest.get("attributes", ())]
        return {
            "status": "ok",
            "version": self.version.name,
            "changes": self.changes,
            "refused": self.refused,
            **{name: manifest[name] for name in fields},
            "attributes": attributes,
            "feedback": self._counted(),
            "memory": self.version.gauge.read(),
        }

    def _read(self) -> Version:
        manifest = load_manifest(self.directory)
        pinned = Pinned(self.directory, [*manifest["files"], model_folder.MANIFEST])
        try:
            manifest = load_manifest(pinned.path)  # the files that are open now
            return Version(_version(pinned.path), pinned, manifest, self._price(manifest))
        except BadInput as error:
            pinned.close()
            raise pinned.named(error) from None

    def _load(self, version: Version) -> RecommenderService:
        try:
            service = RecommenderService(
                version.pinned.path, version.manifest, mapped=self._mapped, filters=version.gauge.filters
            )
            service.count()
        except BadInput as error:
            raise version.pinned.named(error) from None
        return service

    def _leave(self) -> None:
        """Let the model leave memory."""
        self._service = None
        if self.feedback is not None:
            self.feedback.detach()
        gc.collect()
        glibc.trim()

    def _enter(self, version: Version) -> None:
        service = self._load(version)
        if self.feedback is not None:
            self.feedback.attach(service, version.manifest)
        self._service, self.version = service, version

    def _counted(self) -> dict[str, int] | None:
        if self.feedback is None:
            return None
        return {"events": self.feedback.count, "most": self.feedback.capacity, "skipped": self.feedback.skipped}


def _version(directory: Path) -> str:
    return sha256(directory / model_folder.MANIFEST)[:VERSION_LETTERS]
