"""``recsys export``: its request, and its memory in bytes."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from apps.recsys.models.coded.stored import is_coded
from apps.recsys.models.manifest import RecommenderManifest, spectrum_bits
from apps.recsys.planning import embedding_terms, linear_terms
from apps.recsys.planning.baselines import ANSWERING, LIBRARIES
from apps.recsys.planning.compressing.terms import vector_terms
from apps.recsys.planning.ranking_terms import model_terms
from common.errors import UsageError
from common.memory.costs import baseline
from common.memory.costs.probes import Costs, Probe
from common.memory.footprint import Footprint, Term
from common.memory.plan.plan import OneSetting, Setting

IDS = ("csv", "parquet")
"""Formats of the ids."""
BATCH_ROWS = 1 << 14
"""Ids written at a time."""
ROW_BYTES, ROW_TEXTS = 400, 3
"""Memory of an id while it is written, as a value of Arrow and of Python; copies of its text and title."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportRequest:
    """Item vectors and ids of a model as files.

    Attributes
    ----------
    model
        The model folder.
    output
        Folder for the files.
    ids
        Format of the ids, one of ``IDS``.
    threads
        Threads of the computation.

    Raises
    ------
    UsageError
        ``output`` is a file, or the model folder.
    """

    model: Path
    output: Path
    ids: str = "csv"
    threads: int

    def __post_init__(self) -> None:
        if self.output.exists() and not self.output.is_dir():
            raise UsageError(f"-o {self.output}: is a file; expected a folder")
        if self.output.absolute() == self.model.absolute():
            raise UsageError(f"-o {self.output}: is the model folder; choose another")

    @classmethod
    def of(cls, args: argparse.Namespace) -> ExportRequest:
        """Read the command line; raises as the constructor."""
        return cls(model=args.model, output=args.output, ids=args.ids, threads=args.threads)


@dataclass(frozen=True, slots=True)
class ExportWorkload(OneSetting):
    """``recsys export``: the item vectors, and some ids at a time."""

    request: ExportRequest
    manifest: RecommenderManifest
    """``model.json`` of the model folder."""
    name: str = "recsys export"

    def probes(self, setting: Setting) -> Sequence[Probe]:
        """The baseline."""
        return [baseline.probe(ANSWERING, libraries=LIBRARIES, threads=self.request.threads)]

    def footprint(self, setting: Setting, costs: Costs) -> Footprint:
        """The model, which brings vectors to length one where it compares cosines, and a batch of ids."""
        manifest, during = self.manifest, ("export",)
        items = manifest["items"]
        batch = min(BATCH_ROWS, items)
        text = ROW_TEXTS * manifest["files"]["items.parquet"]["bytes"] // items
        return Footprint.of(
            [
                *baseline.terms(costs, self.probes(setting)[0]),
                *model_terms(
                    users=manifest["users"], items=items, factors=embedding_terms.columns(manifest), phases=during
                ),
                *_coded_terms(manifest, during),
                Term("ids", batch * (ROW_BYTES + text), "measured", during),
            ]
        )


def _coded_terms(manifest: RecommenderManifest, phases: tuple[str, ...]) -> list[Term]:
    """Terms of a model's vectors as codes, besides the decoded ones."""
    if is_coded(manifest):
        return vector_terms(manifest, threads=1, phases=phases)
    bits = spectrum_bits(manifest)
    sizes: dict[str, Any] = {"factors": manifest["factors"], "bits": bits, "phases": phases}
    return linear_terms.decoding_terms(**sizes, threads=1) + (
        linear_terms.model_terms(items=manifest["items"], **sizes) if bits < 32 else []
    )
