"""``recsys export``: its request, and its memory in bytes."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from apps.recsys.data.csr_store import BLOCK
from apps.recsys.models.coded.stored import is_coded
from apps.recsys.models.embedding.user_encoders import COMPARED
from apps.recsys.models.manifest import RecommenderManifest, spectrum_bits
from apps.recsys.planning import embedding_terms, linear_terms
from apps.recsys.planning.baselines import ANSWERING, EXPORTING, LIBRARIES, uses_interactions
from apps.recsys.planning.compressing.terms import vector_terms
from apps.recsys.planning.ranking_terms import model_terms
from common.errors import UsageError
from common.memory.costs import baseline
from common.memory.costs.probes import Costs, Probe
from common.memory.footprint import Footprint, Term
from common.memory.plan.plan import OneSetting, Setting

IDS = ("csv", "parquet")
"""Formats of the ids."""
FORMS = ("vectors", "onnx")
"""What is written: a matrix of vectors, or the whole scoring."""
SUFFIX = ".onnx"
BATCH_ROWS = 1 << 14
"""Ids written at a time."""
COPIES = 4
"""Copies of a small tensor while a graph is made."""
GRAPH_BYTES = 1 << 20
"""Nodes of a graph and their texts."""
ROW_BYTES, ROW_TEXTS = 400, 3
"""Memory of an id while it is written, as a value of Arrow and of Python; copies of its text and title."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportRequest:
    """Item vectors or scoring graph of a model, and ids, as files.

    Attributes
    ----------
    model
        The model folder.
    output
        Folder for the files; for ``onnx`` the file, beside which ids are written.
    form
        One of ``FORMS``.
    ids
        Format of the ids, one of ``IDS``.
    threads
        Threads of the computation.

    Raises
    ------
    UsageError
        ``output`` is of the other kind, or the model folder.
    """

    model: Path
    output: Path
    form: str = "vectors"
    ids: str = "csv"
    threads: int

    def __post_init__(self) -> None:
        if self.form == "onnx" and (self.output.suffix != SUFFIX or self.output.is_dir()):
            raise UsageError(f"-o {self.output}: expected a file NAME{SUFFIX}")
        if self.form == "onnx" and self.model.resolve() in self.output.resolve().parents:
            raise UsageError(f"-o {self.output}: is in the model folder; choose another")
        if self.form == "vectors" and self.output.exists() and not self.output.is_dir():
            raise UsageError(f"-o {self.output}: is a file; expected a folder")
        if self.output.absolute() == self.model.absolute():
            raise UsageError(f"-o {self.output}: is the model folder; choose another")

    @classmethod
    def of(cls, args: argparse.Namespace) -> ExportRequest:
        """Read the command line; raises as the constructor."""
        return cls(model=args.model, output=args.output, form=args.form, ids=args.ids, threads=args.threads)

    @property
    def ids_path(self) -> Path:
        """The file of ids."""
        if self.form == "onnx":
            return self.output.with_suffix(f".ids.{self.ids}")
        return self.output / f"ids.{self.ids}"


@dataclass(frozen=True, slots=True)
class ExportWorkload(OneSetting):
    """``recsys export``: the item vectors or what scores by them, and some ids at a time."""

    request: ExportRequest
    manifest: RecommenderManifest
    """``model.json`` of the model folder."""
    name: str = "recsys export"

    def probes(self, setting: Setting) -> Sequence[Probe]:
        """The baseline."""
        libraries = (*LIBRARIES, "onnx") if self.request.form == "onnx" else LIBRARIES
        return [baseline.probe(warm_up(self.request), libraries=libraries, threads=self.request.threads)]

    def footprint(self, setting: Setting, costs: Costs) -> Footprint:
        """The model, which brings vectors to length one where it compares cosines, and a batch of ids."""
        manifest, during = self.manifest, ("export",)
        items = manifest["items"]
        batch = min(BATCH_ROWS, items)
        text = ROW_TEXTS * manifest["files"]["items.parquet"]["bytes"] // items
        graph = graph_terms(manifest, during) if self.request.form == "onnx" else []
        return Footprint.of(
            [
                *baseline.terms(costs, self.probes(setting)[0]),
                *model_terms(
                    users=manifest["users"], items=items, factors=embedding_terms.columns(manifest), phases=during
                ),
                *_coded_terms(manifest, during),
                Term("ids", batch * (ROW_BYTES + text), "measured", during),
                *graph,
            ]
        )


def warm_up(request: ExportRequest) -> str:
    """Name of the warm-up function."""
    return EXPORTING if request.form == "onnx" else ANSWERING


def weights_bytes(manifest: RecommenderManifest) -> int:
    """Bytes of the large tensors of an ONNX file (``models.scoring_graph``), at most."""
    items, hyper = manifest["items"], manifest["hyper"]
    if manifest["kind"] == "linear" and hyper["form"] == "ease":
        return 4 * items * (items + 1)
    numbers = items * embedding_terms.columns(manifest) + 6 * items
    if uses_interactions(manifest):
        numbers += 2 * manifest["interactions"] + manifest["users"]
    return 4 * numbers


def graph_terms(manifest: RecommenderManifest, phases: tuple[str, ...]) -> list[Term]:
    """Terms of a scoring graph, whose large tensors are written from arrays."""
    items, factors, hyper = manifest["items"], manifest["factors"], manifest["hyper"]
    # A constant exists as an array, in the graph, and in the graph that is serialised: identities in double precision
    # for each of the bodies of loops, a Gramian, an identity, and rows that are compared with.
    small = COPIES * (2 * 8 * factors * factors + 8 * factors * factors + 8 * COMPARED)
    linear, ease = manifest["kind"] == "linear", hyper.get("form") == "ease"
    numbers = 8 * 4 * items * linear + 4 * 4 * items * ease
    past = 0
    if uses_interactions(manifest):
        longest = manifest.get("longest", manifest["longest_history"])
        past = 16 * manifest["users"] + 16 * (max(BLOCK, longest))
    return [
        Term("graph", GRAPH_BYTES + small, "measured", phases),
        Term("numbers of items", numbers + past, "analytic", phases),
    ]


def _coded_terms(manifest: RecommenderManifest, phases: tuple[str, ...]) -> list[Term]:
    """Terms of a model's vectors as codes, besides the decoded ones."""
    if is_coded(manifest):
        return vector_terms(manifest, threads=1, phases=phases)
    bits = spectrum_bits(manifest)
    sizes: dict[str, Any] = {"factors": manifest["factors"], "bits": bits, "phases": phases}
    return linear_terms.decoding_terms(**sizes, threads=1) + (
        linear_terms.model_terms(items=manifest["items"], **sizes) if bits < 32 else []
    )
