"""``recsys train``: read, plan, fit, evaluate what the split held out, write the model folder."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apps.recsys.commands import evaluate
from apps.recsys.data import ingest, readers, splits
from apps.recsys.data.attributes.collect import described
from apps.recsys.data.csr_store import History
from apps.recsys.data.splits import HeldOut, Kept
from apps.recsys.models import recommender, streamed, weights
from apps.recsys.models.linear.ease import FILE as EASE
from apps.recsys.models.linear.options import AUTO, open_factors
from apps.recsys.models.scan import stored as scan_files
from apps.recsys.planning.resume_settings import resume_settings
from apps.recsys.planning.train import TrainWorkload, training_warm_up
from apps.recsys.planning.train_request import TrainRequest
from apps.recsys.training import checkpoint, fit_ease, fit_factors, fit_linear, tuning
from common import model_folder
from common.cli.session import CommandSession, Session
from common.errors import BadInput, DoesNotFit
from common.files import Workspace
from common.memory.plan.plan import Plan
from common.memory.process import fork, guard
from common.memory.process.budget import MIB, MemoryBudget
from common.memory.process.meter import resident
from common.search.space import to_json
from common.search.trials import FILE, TrialLog

if TYPE_CHECKING:
    from apps.recsys.training import fit_embedding

log = logging.getLogger("peakline")

CHECKPOINTS = ".training"
"""Folder in the model folder with the checkpoints of an unfinished training."""
TRIAL = "trial"
"""Folder in it with the checkpoints of an embedding that is one trial of a search."""
ARROW_BYTES = 64 * MIB
"""Memory of NumPy, Arrow and their blocks on top of Python. Under a smaller ceiling the input is only counted, so
that a refusal can name a ceiling."""


def workload(request: TrainRequest, budget: MemoryBudget) -> TrainWorkload:
    """Read the input into a scratch folder next to the output, and describe the work.

    Raises
    ------
    UsageError
        The output is a file, or another application's model.
    BadInput
        As ``ingest.open_inputs`` and ``ingest.ingest``.
    DoesNotFit
        Reading the input alone needs more than the ceiling.
    """
    for note in request.notes:
        log.warning("%s", note)
    model_folder.check_output(request.output, "recsys")
    data = request.data
    inputs = ingest.open_inputs(
        data.paths,
        data.columns,
        data.items,
        data.filters,
        request.split,
        request.seed,
        data.layout,
        data.duplicates,
        data.needs_times,
    )
    return TrainWorkload(request, *read(inputs, request.output, budget, request.threads), inputs)


def read(
    inputs: ingest.Inputs, output: Path, budget: MemoryBudget, threads: int
) -> tuple[ingest.Facts, Workspace | None]:
    """Read files into a scratch folder next to the output; under a very small ceiling only count.

    Returns
    -------
    facts, workspace
        Sizes of the data, and the folder; ``None`` if the command can only be refused.

    Raises
    ------
    BadInput, DoesNotFit
        As ``workload``.
    """
    ceiling = budget.host_bytes
    if ceiling < resident() + ARROW_BYTES:
        # A model's ids are Parquet too.
        if inputs.base is None and not any(source.needs_arrow for source in inputs.sources):
            return ingest.count(inputs), None
        ceiling = guard.LEAST_WALL  # where the walls stand until there is a plan: read, in order to refuse
    workspace = ingest.workspace(output)

    def ingested() -> dict[str, Any]:
        return asdict(ingest.ingest(inputs, workspace.path))

    try:
        facts = ingest.Facts(**fork.run(ingested, ceiling=ceiling, threads=threads))
    except MemoryError:
        raise DoesNotFit(ceiling=budget.host_bytes, reasons=["the ids of the input alone need more"]) from None
    return facts, workspace if ceiling == budget.host_bytes else None


def warm_up(request: TrainRequest) -> str:
    """Name of the warm-up function."""
    return training_warm_up(request.model.kind, request.world.size)


def record(request: TrainRequest) -> Path:
    """Path of the run's record."""
    return request.output / "run.json"


def execute(session: CommandSession[TrainRequest, TrainWorkload]) -> Mapping[str, Any]:
    """Fit, evaluate, write; the model folder appears at the end."""
    work = session.workload
    if work.workspace is None:
        raise DoesNotFit(ceiling=session.budget.host_bytes, smallest=session.plan)
    print_sizes(session, work)
    results: dict[str, Any] = {}
    with session.deferred_signals():
        if work.request.trials:
            best = _tune(work, session)
            work, session.plan, results["tuning"] = best.work, best.plan, best.results
        if work.request.model.kind == "linear":
            tensors, work, results["tried"] = fit_linear_model(work, session)
        else:
            tensors = _fit(work, session)
        with session.phase("write"):
            if not session.group.leads:
                streamed.send(tensors)
                return results
            weights.write(work.directory / weights.WEIGHTS, tensors)
        del tensors  # the evaluation loads its own
        return results | complete(work, session)


def complete(work: TrainWorkload, session: Session, changed: Mapping[str, Any] = {}) -> dict[str, Any]:
    """Evaluate what the split held out, and move the model folder into place.

    Parameters
    ----------
    work
        The training; its workspace has all files but the manifest and the card, and is closed.
    session
        Plan, threads and progress.
    changed
        Fields of ``model.json`` that are not those of the training.

    Returns
    -------
    dict
        The record's results (``apps.recsys.commands.results.TrainResults``).
    """
    assert work.workspace is not None
    request, facts, directory = work.request, work.facts, work.directory
    output, kind = request.output, request.model.kind
    fields = {**_manifest_fields(work), **changed}
    metrics: Mapping[str, float] = {}
    measured: dict[str, Any] = {"metrics": {}}
    if request.split != "none":
        with session.phase("evaluate"):
            tally = evaluate.score(session, directory, {"kind": kind, **fields}, heldout=directory)
            measured = evaluate.measured(tally, request.seed)
            metrics = measured["metrics"]
            del tally
        for line in evaluate.lines(measured):
            session.say(line)
    with session.phase("write"):
        if not fields.get("codes"):
            scan_files.write(directory, kind, fields["hyper"])
        recommender.write_card(directory, kind, fields, metrics)
        move_into_place(directory, output)
        recommender.seal(output, kind=kind, fields=fields)
    shutil.rmtree(output / CHECKPOINTS, ignore_errors=True)
    work.workspace.close()
    columns = [asdict(source.columns) for source in (work.inputs.sources if work.inputs else ())]
    read = [one for place, one in enumerate(columns) if one not in columns[:place]]
    data = {**asdict(facts), "dropped": dict(facts.dropped), "columns": read}
    return {
        **measured,
        "steps": request.model.iterations,
        "model": {"kind": kind, **fields},
        "data": data,
    }


def fit_linear_model(work: TrainWorkload, session: Session) -> tuple[Mapping[str, Any], TrainWorkload, Any]:
    """Fit a linear model; returns its weights by name, the work with the chosen settings, and what was tried."""
    trainers: dict[str, Any] = {"ease": fit_ease.EaseTrainer, AUTO: fit_ease.AnyFormTrainer}
    if session.group.several:
        from apps.recsys.training.over_ranks import shared_ease, shared_linear

        trainers = {"ease": shared_ease.SharedEaseTrainer, "spectral": shared_linear.SharedLinearTrainer}
    trainer = trainers.get(work.request.model.hyper["form"], fit_linear.LinearTrainer)
    fitted: fit_linear.Fitted = trainer(_linear_config(work, session.plan), session).run()
    return fitted.tensors, work.with_settings(fitted.settings), fitted.tried


def _manifest_fields(work: TrainWorkload) -> dict[str, Any]:
    """Fields of ``model.json``, besides the list of files."""
    facts, request, hyper = work.facts, work.request, work.request.model.hyper
    return {
        "factors": request.model.factors,
        "table": hyper.get("table", "full"),
        "cosine": request.model.kind == "embedding" and hyper["loss"] != "bpr",
        "items": facts.items,
        "users": facts.users,
        "interactions": facts.interactions,
        "longest_history": facts.scored_longest or facts.longest,
        "longest": facts.longest,
        "hyper": dict(hyper),
        "split": request.split,
        "seed": request.seed,
        **({"attributes": list(facts.attributes)} if facts.attributes else {}),
        **({"columns": asdict(work.inputs.sources[0].columns)} if work.inputs and work.inputs.sources else {}),
        "duplicates": request.data.duplicates,
        **({"min_value": request.data.filters.min_value} if request.data.filters.min_value is not None else {}),
    }


def print_sizes(session: Session, work: TrainWorkload) -> None:
    """Print the columns that were taken, the sizes of the data, and what was left out."""
    inputs, facts = work.inputs, work.facts
    for line in readers.understood(inputs.sources) if inputs and inputs.sources else ():
        session.say(line)
    session.say(
        f"data: {facts.rows:,} rows, {facts.users:,} users, {facts.items:,} items, {facts.interactions:,} interactions"
    )
    for why, rows in facts.dropped:
        session.say(f"dropped: {rows:,} rows {why}")
    if facts.repeated:
        counts = {"sum": "values are summed", "last": "the last value counts", "once": "each pair counts 1"}
        session.say(f"repeated pairs: {facts.repeated:,} rows; {counts[work.request.data.duplicates]}")
    if inputs is not None and inputs.titles is not None:
        table, title = inputs.titles
        which = f"item={table.columns.item} title={title} in {table.path.name}"
        session.say(f"titles: {which}; {facts.titled:,} of {facts.items:,} items have one")
    for line in described(facts.attributes, facts.left_out):
        session.say(line)


def _tune(work: TrainWorkload, session: Session) -> tuning.SearchResult:
    """Search for the best settings; raises as ``tuning.Search.run``, or ``BadInput`` if no items can be hidden."""
    request, directory = work.request, work.directory
    checkpoints = request.output / CHECKPOINTS
    history = History(directory)
    kept = Kept.of(history, directory, request.split)
    if not splits.hide_for_validation(directory, kept, history, request.seed):
        raise BadInput("--tune: no user has enough items to hide some", public="nothing to hide")
    settings = resume_settings(request, data=fit_factors.data_digest(directory))
    trials = TrialLog(
        checkpoints / FILE,
        {**settings, "space": to_json(request.space)},
        output=request.output,
        required=request.resume,
        say=session.say,
    )

    def fit(trial: TrainWorkload, trial_session: tuning.TrialSession, callback: fit_factors.IterationCallback) -> None:
        if trial.request.model.kind != "embedding":
            hidden = HeldOut(directory, "validation")
            config = factor_config(trial, None, resume=False)
            fit_factors.FactorTrainer(config, trial_session, hidden, callback).run()
            return
        from apps.recsys.training import fit_embedding

        shutil.rmtree(checkpoints / TRIAL, ignore_errors=True)
        training = _embedding_config(trial, checkpoints / TRIAL, resume=False)
        # A trial is stopped by comparison with the others, not by its own patience.
        training = replace(training, validates=True, patience=training.epochs)
        fit_embedding.Trainer(training, trial_session, callback).run()

    best = tuning.Search(work, session, trials, fit).run()
    splits.forget_validation(directory)
    return best


def _embedding_config(work: TrainWorkload, checkpoints: Path, *, resume: bool) -> fit_embedding.TrainingConfig:
    from apps.recsys.training import fit_embedding

    request, network, directory = work.request, work.embedding, work.directory
    assert network is not None
    return fit_embedding.TrainingConfig(
        network=network,
        epochs=request.model.iterations,
        patience=int(request.model.hyper["patience"]),
        validates=bool(request.model.hyper["validation"]),
        directory=directory,
        checkpoints=checkpoints,
        split=request.split,
        seed=request.seed,
        settings=resume_settings(request, data=fit_factors.data_digest(directory)),
        resume=resume,
    )


def _linear_config(work: TrainWorkload, plan: Plan) -> fit_linear.LinearConfig:
    factors = int(plan["factors"])
    of_filter = open_factors("filter", work.facts.items, work.fit_interactions)
    return fit_linear.LinearConfig(
        factors=factors,
        filter_factors=of_filter if len(work.request.model.ranks) > 1 else factors,
        hyper=work.request.model.hyper,
        items=work.facts.items,
        directory=work.directory,
        split=work.request.split,
        seed=work.request.seed,
    )


def factor_config(work: TrainWorkload, path: Path | None, *, resume: bool) -> fit_factors.FactorConfig:
    """The training of a matrix of factors, with its checkpoint at ``path``; ``None``: it has none."""
    request, directory = work.request, work.directory
    return fit_factors.FactorConfig(
        kind=request.model.kind,
        factors=request.model.factors,
        hyper=request.model.hyper,
        items=work.facts.items,
        interactions=work.fit_interactions,
        directory=directory,
        split=request.split,
        seed=request.seed,
        settings=resume_settings(request, data=fit_factors.data_digest(directory)),
        checkpoint=path,
        output=request.output,
        resume=resume,
    )


def _fit(work: TrainWorkload, session: Session) -> Mapping[str, Any]:
    """Train the model; returns its weights by name."""
    request, checkpoints = work.request, work.request.output / CHECKPOINTS
    resume = request.resume and not request.trials
    if request.model.kind != "embedding":
        config = factor_config(work, checkpoints / checkpoint.FILE, resume=resume)
        if session.group.several:
            from apps.recsys.training.over_ranks.shared_factors import SharedFactorTrainer

            return SharedFactorTrainer(config, session).run()
        return fit_factors.FactorTrainer(config, session).run()
    from apps.recsys.training import fit_embedding

    trainer = fit_embedding.Trainer(_embedding_config(work, checkpoints, resume=resume), session)
    tensors = fit_embedding.tensors(trainer.run(), fit_embedding.priors(trainer))
    splits.forget_validation(work.directory)
    return tensors


def move_into_place(directory: Path, output: Path) -> None:
    """Move the files into the model folder, which does not count as a model until it is sealed."""
    output.mkdir(parents=True, exist_ok=True)
    model_folder.unseal(output)
    of_before = (output.glob(f"{name}.*.npy") for name in ("heldout", "trained", "readers", "attribute", "scan"))
    for stale in (*chain(*of_before), output / EASE, output / "evaluation.json"):
        stale.unlink(missing_ok=True)
    for path in sorted(directory.iterdir()):
        with path.open("rb") as stream:
            os.fsync(stream.fileno())
        path.replace(output / path.name)
