"""The model that is served: loaded once, and read by one thread."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from apps.recsys.serving.service import RecommenderService
from common import model_folder
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


class Live:
    """The model that is served.

    Parameters
    ----------
    directory
        A model folder.
    manifest
        Its ``model.json``.
    gauge
        Reads the ceiling and the prediction, in bytes, and the terms.
    """

    def __init__(self, directory: Path, manifest: Mapping[str, Any], gauge: Gauge) -> None:
        self.manifest, self.gauge = manifest, gauge
        self.version = version_of(directory)
        self._service = RecommenderService(directory, manifest)
        self._service.count()

    def service(self) -> RecommenderService:
        """The model; for the thread that answers alone."""
        return self._service

    def described(self) -> dict[str, Any]:
        """The model for ``/model``."""
        manifest = self.manifest
        fields = ("kind", "users", "items", "factors", "interactions", "hyper", "made_by")
        attributes = [{"name": one["name"], "kind": one["kind"]} for one in manifest.get("attributes", ())]
        return {
            "status": "ok",
            "version": self.version,
            **{name: manifest[name] for name in fields},
            "attributes": attributes,
            "memory": self.gauge.read(),
        }
