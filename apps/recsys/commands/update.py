"""``recsys update``: add interactions to a model, and forget users, without training it again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apps.recsys.commands import train
from apps.recsys.data import ingest
from apps.recsys.data.columns import Columns
from apps.recsys.data.csr_store import NpyReader
from apps.recsys.data.formats.paths import expanded
from apps.recsys.data.readers import Source, open_source
from apps.recsys.data.updates.base import KEPT, Base
from apps.recsys.data.updates.feedback_log import snapshot
from apps.recsys.models import weights
from apps.recsys.models.coded import stored as coded
from apps.recsys.models.coded.stored import is_coded
from apps.recsys.models.linear.filter import code_weights
from apps.recsys.models.manifest import RecommenderManifest
from apps.recsys.models.new_items import Extension
from apps.recsys.models.recommender import load_manifest, read_manifest
from apps.recsys.planning.train import TrainWorkload, training_warm_up
from apps.recsys.planning.updating.request import UpdateRequest
from apps.recsys.planning.updating.workload import REBUILT, WARM_UPS, UpdateWorkload
from apps.recsys.training import fit_factors
from apps.recsys.training.compressing import vectors
from common import model_folder
from common.cli.session import CommandSession
from common.compression.row_codes import RowCodes
from common.compression.row_grid import Grid, column_deviations
from common.errors import BadInput, DoesNotFit
from common.memory.process.budget import MemoryBudget

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def workload(request: UpdateRequest, budget: MemoryBudget) -> UpdateWorkload:
    """Read the model's interactions and the new ones into a scratch folder next to the output, and describe the work.

    Raises
    ------
    UsageError
        The output is a file, or another application's model.
    BadInput
        No model of a recommender; the files have other columns than those it was trained on; as
        ``ingest.open_inputs`` and ``ingest.ingest``.
    DoesNotFit
        Reading alone needs more than the ceiling.
    """
    manifest = load_manifest(request.model)
    model_folder.check_output(request.output, "recsys")
    training = request.training(manifest)
    base = Base(
        request.model,
        items=manifest["items"],
        interactions=manifest["interactions"],
        attributes=manifest.get("attributes", ()),
        forget=request.forget,
    )
    titles, attributes = ingest.titled(request.items)
    with snapshot(request.feedback, request.output, manifest.get("feedback")) as (events, folded):
        paths = request.paths if events is None else (*request.paths, events)
        inputs = ingest.Inputs(
            _sources(replace(request, paths=paths), manifest),
            titles,
            training.data.filters,
            training.split,
            training.seed,
            duplicates=training.data.duplicates,
            attributes=attributes,
            base=base,
        )
        facts, workspace = train.read(inputs, request.output, budget, request.threads)
    if training.split != "none" and workspace is not None and not facts.scored_users:
        training = replace(training, split="none")  # nobody is left of those whose items were held out
    return UpdateWorkload(request, manifest, TrainWorkload(training, facts, workspace, inputs), folded)


def _sources(request: UpdateRequest, manifest: RecommenderManifest) -> tuple[Source, ...]:
    """The files with the model's columns, or those that the command line names.

    Raises
    ------
    BadInput
        A file lacks the model's columns, or values where the model has some; or has values where it has none.
    """
    read = manifest.get("columns")
    if read is None:
        wanted = request.columns
    else:
        named = {name: getattr(request.columns, name) or read[name] for name in ("user", "item", "value")}
        wanted = Columns(**named, time=request.columns.time)
    sources = []
    for path, partitions in expanded(request.paths):
        try:
            source = open_source(path, wanted, request.layout, partitions=partitions)
        except BadInput as error:
            if read is None or error.public != "no such column":
                raise
            raise BadInput(
                f"{error}; the model was trained on columns {_listed(read)}: name others with --user-col, --item-col"
                " and --value-col",
                public="columns other than the model's",
            ) from None
        if read is not None and read["value"] is None and source.columns.value is not None:
            raise BadInput(
                f"{path}: has values ({source.columns.value!r}), and in the model every row counts 1; leave that column"
                " out",
                public="columns other than the model's",
            )
        sources.append(source)
    return tuple(sources)


def _extended(path: Path, rows: NDArray[np.int32], items: int) -> dict[str, Any]:
    """The spectrum of a model for its items that stay and for new ones, whose rows are zeros."""
    import numpy as np

    vectors, eigenvalues = weights.read_spectrum(path)
    extended = np.zeros((items, vectors.shape[1]), np.float32)
    np.take(vectors, rows, axis=0, out=extended[: len(rows)], mode="clip")  # without the copy of another mode
    return {weights.SPECTRUM: extended, weights.EIGENVALUES: eigenvalues}


def _recoded(tensors: Mapping[str, Any], path: Path, hyper: Mapping[str, Any]) -> dict[str, Any]:
    """The weights of a linear model with its spectrum as codes, with as many bits of each column as in a file."""
    (bits,) = coded.read_levels(path, weights.SPECTRUM).grid.bits
    rows = tensors[weights.SPECTRUM]
    rows *= code_weights(tensors[weights.EIGENVALUES], hyper["form"], float(hyper["saturation"]))
    importance = column_deviations(rows).astype("f8") ** 2
    vectors.rotate(rows, vectors.mixing(bits, importance))
    codes = RowCodes.of(rows, Grid.of(bits, column_deviations(rows)), importance)
    return {**tensors, **coded.tensors(weights.SPECTRUM, codes)}


def _listed(columns: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={column}" for name, column in columns.items() if column is not None and name != "time")


def warm_up(request: UpdateRequest) -> str:
    """Name of the warm-up function."""
    kind = read_manifest(request.model)["kind"]
    return training_warm_up(kind) if kind in REBUILT else WARM_UPS[kind]


def record(request: UpdateRequest) -> Path:
    """Path of the run's record."""
    return request.output / "run.json"


def execute(session: CommandSession[UpdateRequest, UpdateWorkload]) -> Mapping[str, Any]:
    """Build or extend the model; the new model folder appears at the end."""
    from threadpoolctl import threadpool_limits

    request, manifest, work = session.request, session.workload.manifest, session.workload.train
    if work.workspace is None:
        raise DoesNotFit(ceiling=session.budget.host_bytes, smallest=session.plan)
    kind, facts = manifest["kind"], work.facts
    train.print_sizes(session, work)
    added = {
        "users": facts.users - manifest["users"],
        "items": facts.items - manifest["items"],
        "interactions": facts.interactions - manifest["interactions"],
    }
    session.say("model: " + ", ".join(f"{count:+,} {what}" for what, count in added.items()))
    with session.deferred_signals():
        rows = NpyReader(work.directory / KEPT)[:]
        (work.directory / KEPT).unlink()
        if kind == "linear":
            tensors, work, _ = train.fit_linear_model(work, session)
            if request.keep_spectrum:
                with session.phase("fit"):
                    tensors = {**tensors, **_extended(request.model / weights.WEIGHTS, rows, facts.items)}
                work = work.with_settings({**manifest["hyper"], "factors": manifest["factors"]})
            if is_coded(manifest):
                with session.phase("fit"):
                    tensors = _recoded(tensors, request.model / weights.WEIGHTS, manifest["hyper"])
        elif kind == "popularity":
            tensors = fit_factors.FactorTrainer(train.factor_config(work, None, resume=False), session).run()
        else:
            extension = Extension(
                kind=kind,
                hyper=work.request.model.hyper,
                base=request.model,
                rows=rows,
                directory=work.directory,
                items=facts.items,
                split=work.request.split,
                fit_block=int(session.plan["fit_block"]),
                threads=session.threads,
            )
            with session.phase("fit"), session.progress(total=extension.new, unit="item", label="solve") as bar:

                def after_item(items: int) -> None:
                    bar.update(items)
                    if session.stopping:
                        raise KeyboardInterrupt

                # The systems are small, so that threads of BLAS would wait for each other; ``ials`` has its own.
                with threadpool_limits(1, "blas"):
                    tensors = extension.tensors(after_item)
        if request.forget and kind not in REBUILT:
            session.say(
                f"forgotten: {len(request.forget)} users, {facts.forgotten:,} interactions; the vectors of items were"
                " trained with them, and change only in a training without them"
            )
        changed: dict[str, Any] = {"columns": manifest["columns"]} if "columns" in manifest else {}
        changed |= {"feedback": session.workload.folded} if session.workload.folded else {}
        if is_coded(manifest):
            changed["codes"] = {name: coded.row_size(coded.of_tensors(tensors, name)) for name in manifest["codes"]}
            changed |= {"code_form": manifest["code_form"]} if "code_form" in manifest else {}
        with session.phase("write"):
            weights.write(work.directory / weights.WEIGHTS, tensors)
        del tensors  # the evaluation loads its own
        results = train.complete(work, session, changed)
    return {**results, "steps": 0, "added": added}
