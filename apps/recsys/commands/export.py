"""``recsys export``: a model's item vectors and ids, for an index of vectors, or its scoring as an ONNX file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from apps.recsys.commands.lists import list_files
from apps.recsys.data import arrow_numpy
from apps.recsys.models.linear.ease import FILE as EASE
from apps.recsys.models.recommender import Recommender, load_manifest
from apps.recsys.planning.questions.export import BATCH_ROWS, ExportRequest, ExportWorkload, weights_bytes
from apps.recsys.planning.questions.export import warm_up as planned_warm_up
from common.cli.session import CommandSession
from common.errors import UsageError
from common.files import atomic_file
from common.memory.process.budget import MemoryBudget, format_size

VECTORS = "item_vectors.npy"


def workload(request: ExportRequest, budget: MemoryBudget) -> ExportWorkload:
    """Read the model's manifest.

    Raises
    ------
    BadInput
        As ``recommender.load_manifest``.
    UsageError
        A model of this kind has no item vectors, or more weights than an ONNX file can have.
    """
    manifest = load_manifest(request.model)
    if request.form == "onnx":
        from apps.recsys.models.scoring_graph.wire import LARGEST

        size = weights_bytes(manifest)
        if size > LARGEST:
            raise UsageError(
                f"{request.model}: {format_size(size)} of weights; an ONNX file has less than 2 GiB: export the vectors"
                " for an index instead (--as vectors)"
            )
        return ExportWorkload(request, manifest)
    form = manifest["hyper"]["form"] if manifest["kind"] == "linear" else ""
    if form == "ease":
        raise UsageError(
            f"{request.model}: EASE has no item vectors, but weights of items by items: {EASE} of this folder, float32,"
            " whose rows of a history's items add up to the scores; --set form=spectral has vectors"
        )
    if manifest["kind"] == "popularity" or form == "filter":
        form = f", form {form}," if form else ""
        raise UsageError(
            f"{request.model}: a model of kind {manifest['kind']}{form} has no item vectors; ials, bpr, embedding and"
            " linear with form=spectral have"
        )
    return ExportWorkload(request, manifest)


def warm_up(request: ExportRequest) -> str:
    """Name of the warm-up function."""
    return planned_warm_up(request)


def execute(session: CommandSession[ExportRequest, ExportWorkload]) -> Mapping[str, Any]:
    """Write ``item_vectors.npy``, float32 of shape (items, factors), or the ONNX file, and ids, a row each.

    The product of a row with a user's vector is the score, as ``Recommender.recommend`` computes it.
    """
    import numpy as np

    request, manifest = session.request, session.workload.manifest
    if request.form == "onnx":
        return _graph(session)
    with session.phase("export"):
        vectors = Recommender(request.model, manifest).item_vectors
        assert vectors is not None
        with atomic_file(request.output / VECTORS) as unfinished, atomic_file(request.ids_path) as unfinished_ids:
            with unfinished.open("wb") as stream:
                np.save(stream, vectors)
            list_files.write(_ids(request.model / "items.parquet"), unfinished_ids, f".{request.ids}")
    session.say(f"{request.output / VECTORS}: {len(vectors):,} items of {vectors.shape[1]:,} numbers")
    return {"items": len(vectors), "factors": vectors.shape[1]}


def _graph(session: CommandSession[ExportRequest, ExportWorkload]) -> Mapping[str, Any]:
    """Write the ONNX file and the ids."""
    from apps.recsys.models.scoring_graph import written
    from apps.recsys.models.scoring_graph.graph import OPSET

    request, manifest = session.request, session.workload.manifest
    with session.phase("export"), atomic_file(request.output) as unfinished, atomic_file(request.ids_path) as ids:
        written.write(request.model, manifest, unfinished, request.ids_path.name)
        list_files.write(_ids(request.model / "items.parquet"), ids, f".{request.ids}")
    size = request.output.stat().st_size
    session.say(
        f"{request.output}: {manifest['kind']}, {manifest['items']:,} items, opset {OPSET}, {format_size(size)}"
    )
    return {"items": manifest["items"], "factors": manifest["factors"], "opset": OPSET, "file_bytes": size}


def _ids(path: Path) -> Iterator[Any]:
    """Yield tables of row, id, and title where there are titles."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with pq.ParquetFile(arrow_numpy.native(path), pre_buffer=False) as file:
        for batch in file.iter_batches(batch_size=BATCH_ROWS, use_threads=False):
            yield pa.Table.from_batches([batch])
