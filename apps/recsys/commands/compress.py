"""``recsys compress``: a model folder whose item vectors are codes of a few bits."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apps.recsys.commands import compress_file, evaluate, train
from apps.recsys.data.ingest import workspace
from apps.recsys.models import recommender, weights
from apps.recsys.models.manifest import ModelFields, RecommenderManifest
from apps.recsys.models.recommender import Recommender, load_manifest, read_manifest
from apps.recsys.models.scan import stored as scan_files
from apps.recsys.models.top_k import top_k
from apps.recsys.planning.baselines import SCORING, TRAINING, warm_up_for
from apps.recsys.planning.compressing.file_workload import CompressFileWorkload
from apps.recsys.planning.compressing.request import LAYERS, ROUNDS, SCALAR, CompressRequest
from apps.recsys.planning.compressing.workload import LISTED, LISTED_USERS, CompressWorkload
from apps.recsys.training.compressing.encode import Compression, Encoded
from apps.recsys.training.compressing.least_squares import STATE, Checkpoint
from common import model_folder
from common.cli.session import CommandSession
from common.memory.process import glibc
from common.memory.process.budget import MemoryBudget, format_size

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

OTHERS = (weights.WEIGHTS, "card.md", "run.json", "evaluation.json", model_folder.MANIFEST)
"""Files of the model that are not copied: they are written anew, or belong to another run."""
NAMED = ("ndcg@20", "recall@20")
"""Metrics that are printed."""


def workload(request: CompressRequest, budget: MemoryBudget) -> CompressWorkload | CompressFileWorkload:
    """Read the model's manifest, or the headers of a file of factors.

    Raises
    ------
    BadInput
        As ``recommender.load_manifest``, or ``compress_file.workload``.
    UsageError
        As ``CompressRequest.row_bytes``; the output is a file, or another application's model.
    """
    if request.of_file:
        return compress_file.workload(request)
    manifest = load_manifest(request.model)
    row_bytes = request.row_bytes(manifest)
    model_folder.check_output(request.output, "recsys")
    held = manifest["split"] != "none" and "heldout.users.npy" in manifest["files"]
    scored = recommender.heldout_count(request.model, manifest) if held else 0
    return CompressWorkload(request, manifest, row_bytes, scored)


def warm_up(request: CompressRequest) -> str:
    """Name of the warm-up function."""
    if request.of_file:
        return SCORING
    manifest = read_manifest(request.model)
    return TRAINING if manifest["kind"] == "ials" else warm_up_for(manifest, SCORING)


def record(request: CompressRequest) -> Path:
    """Path of the run's record; that of a file stands next to it."""
    return request.output.with_suffix(".run.json") if request.of_file else request.output / "run.json"


def execute(session: CommandSession[CompressRequest, Any]) -> Mapping[str, Any]:
    """Encode the vectors, rank by both models, and write the new one, which appears at the end."""
    results = compress_file.execute(session) if session.request.of_file else _compress(session)
    for line in _lines(results):
        session.say(line)
    return results


def _compress(session: CommandSession[CompressRequest, CompressWorkload]) -> dict[str, Any]:
    """Make a model folder; returns the record's results."""
    request, work = session.request, session.workload
    manifest = work.manifest
    scratch = workspace(request.output)
    checkpoint = Checkpoint(request.output / STATE, request.resume_settings(manifest))
    with session.deferred_signals():
        with session.phase("encode"):
            made = Compression(
                model=request.model,
                manifest=manifest,
                scratch=scratch.path,
                row_bytes=work.row_bytes,
                dimensions=request.dimensions,
                layers=LAYERS[request.codes],
                rounds=ROUNDS if request.rounds is None else request.rounds,
                checkpoint=checkpoint,
                session=session,
            ).run()
            weights.write(scratch.path / weights.WEIGHTS, made.tensors)
            results = _sizes(manifest, made, request.model, scratch.path)
            fields = _fields(manifest, made, request.codes)
            del made
            glibc.trim()
        for name in manifest["files"]:
            if name not in OTHERS and not name.startswith("scan."):
                shutil.copyfile(request.model / name, scratch.path / name)
        with session.phase("before"):
            before = _measured(session, request.model, manifest)
        glibc.trim()
        with session.phase("after"):
            after = _measured(session, scratch.path, {"kind": work.kind, "files": manifest["files"], **fields})
        results |= _compared(before, after)
        with session.phase("write"):
            if request.scan:
                scan_files.write(scratch.path, work.kind, manifest["hyper"], coded=True)
            recommender.write_card(scratch.path, work.kind, fields, results.get("metrics", {}))
            train.move_into_place(scratch.path, request.output)
            recommender.seal(request.output, kind=work.kind, fields=fields)
            checkpoint.remove()
    scratch.close()
    return {**results, "model": {"kind": work.kind, **fields}}


def _fields(manifest: RecommenderManifest, made: Encoded, codes: str) -> dict[str, Any]:
    """Fields of the new ``model.json``."""
    fields = {name: manifest[name] for name in ModelFields.__annotations__ if name in manifest}  # type: ignore[literal-required]
    form = {} if codes == SCALAR else {"code_form": codes}
    return {**fields, "factors": made.factors, "codes": dict(made.codes), **form}


def _sizes(manifest: RecommenderManifest, made: Encoded, model: Path, scratch: Path) -> dict[str, Any]:
    """Bytes of an item and of the file, before and after."""
    items = manifest["items"]
    prior = 4 * bool(manifest["hyper"].get("prior"))
    before = sum(_row_bytes(model / weights.WEIGHTS, name, items) for name in made.codes)
    return {
        "item_bytes": sum(made.codes.values()) + prior,
        "item_bytes_before": before + prior,
        "file_bytes": (scratch / weights.WEIGHTS).stat().st_size,
        "file_bytes_before": (model / weights.WEIGHTS).stat().st_size,
        "dimensions": made.factors,
        "bits": dict(made.bits),
    }


def _row_bytes(path: Path, name: str, items: int) -> int:
    """Bytes of an item in a matrix as it is stored, with its scale."""
    name = weights.user_side_name(path) if name == weights.USER_SIDE else name
    (_, columns), kind, _ = weights.entry(path, name)
    return columns * kind.itemsize + (0 if kind.kind == "f" else 2)


def _measured(
    session: CommandSession[CompressRequest, CompressWorkload], directory: Path, manifest: Any
) -> Mapping[str, Any]:
    """Metrics on held-out items; where there are none, lists of some users."""
    if session.workload.scored_users:
        tally = evaluate.score(session, directory, manifest, heldout=session.request.model)
        return evaluate.measured(tally, session.request.seed)
    return {"lists": _lists(session, Recommender(directory, manifest))}


def _lists(session: CommandSession[CompressRequest, CompressWorkload], model: Recommender) -> list[NDArray[np.intp]]:
    """The best items of users at even distances, of those with a history."""
    import numpy as np

    made, history, scorer = [], model.history, model.scorer
    users = [user for user in range(0, history.rows, max(1, history.rows // LISTED_USERS)) if len(history.items(user))]
    size = int(session.plan["user_block"])
    workspace = scorer.workspace(size)
    with session.progress(total=len(users), unit="list", label="compare") as bar:
        for start in range(0, len(users), size):
            histories = [(history.items(user), history.values(user)) for user in users[start : start + size]]
            for scores, (items, _) in zip(scorer.scores(histories, workspace), histories, strict=True):
                scores[items] = -np.inf
                made.append(top_k(scores, LISTED))
            bar.update(len(histories))
            if session.stopping:
                raise KeyboardInterrupt
    return made


def _compared(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """What changed: metrics of both models, or the share of items that lists have in common."""
    import numpy as np

    if "lists" not in before:
        return {**after, "before": before["metrics"]}
    pairs = list(zip(before["lists"], after["lists"], strict=True))
    shares = [len(np.intersect1d(old, new)) / max(1, len(old)) for old, new in pairs]
    return {"metrics": {}, "in_common": float(np.mean(shares)) if shares else 1.0}


def _classes(found: Sequence[Mapping[str, Any]]) -> str:
    """Bits of the dimensions where all rows have the same, or how many rows have how many bytes."""
    if len(found) == 1:
        return ", ".join(f"{count} of {each} bits" for each, count in sorted(found[0]["bits"].items(), reverse=True))
    return ", ".join(f"{each['rows']:,} of {each['bytes']} bytes" for each in reversed(found) if each["rows"])


def _lines(results: Mapping[str, Any]) -> list[str]:
    """What is printed at the end."""
    old, new = results["item_bytes_before"], results["item_bytes"]
    bits = "; ".join(f"{name}: {_classes(found)}" for name, found in results["bits"].items())
    files = f"{format_size(results['file_bytes_before'])} -> {format_size(results['file_bytes'])}"
    lines = [f"an item: {old} -> {new} bytes ({old / new:.1f}x); weights {files}; {bits}"]
    if results["file_bytes"] >= results["file_bytes_before"]:
        lines.append("larger: the codes take more than what they replace; keep the model as it was")
    if "in_common" in results:
        lines.append(
            f"lists: {results['in_common']:.1%} of the {LISTED} best items stay, of at most {LISTED_USERS} users;"
            " without held-out items no quality was measured"
        )
    for name in NAMED:
        if name in results["metrics"]:
            was, now = results["before"][name], results["metrics"][name]
            change = f" ({now / was - 1:+.2%})" if was else ""
            lines.append(f"{name}: {was:.4f} -> {now:.4f}{change}")
    return lines
