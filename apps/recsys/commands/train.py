"""``recsys train``: read, plan, fit, evaluate what the split held out, reveal the model folder."""

from __future__ import annotations

import argparse
import json
import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apps.recsys.commands import evaluate
from apps.recsys.data import ingest, splits
from apps.recsys.data.csr_store import History
from apps.recsys.data.readers import Columns
from apps.recsys.data.splits import HeldOut, Kept
from apps.recsys.data.staging import Filters
from apps.recsys.models import bpr, recommender, search_space, weights
from apps.recsys.models.als import ials
from apps.recsys.models.als.confidence import WEIGHTS
from apps.recsys.models.embedding import embedding_config
from apps.recsys.planning.train import TrainWorkload
from apps.recsys.training import checkpoint, fit_factors, tuning
from common import files, model_folder
from common.cli import main
from common.cli.session import CommandSession, Session
from common.compression import layouts
from common.errors import BadInput, DoesNotFit, UsageError
from common.memory.process import fork
from common.memory.process.budget import MIB, MemoryBudget
from common.memory.process.meter import resident

if TYPE_CHECKING:
    from apps.recsys.training import fit_embedding

WORK = ".training"
"""Folder in the model folder that holds what an unfinished training needs."""
FACTORS = 64
"""Numbers an item, unless ``--factors`` says otherwise."""
EPOCHS = 20
"""Of an embedding, unless ``--epochs`` says otherwise."""
TRIAL = "trial"
"""In it, the embedding that is being tried."""
MICRO_BATCHES = (512, 256, 128, 64, 32, 16)
"""Windows that may go through the network together."""
SIZES = ("items", "factors", "users")
"""What a recipe has beside hyper-parameters."""
ARROW_BYTES = 64 * MIB
"""What NumPy, Arrow and their blocks add to a bare interpreter: below it the input is only counted, to refuse."""


def workload(args: argparse.Namespace, budget: MemoryBudget) -> TrainWorkload:
    """Check the command line, read the input into a scratch folder beside the output, describe the work."""
    described = _described(args)
    if args.output.exists() and not args.output.is_dir():
        raise UsageError(f"-o {args.output}: is a file; a model is a folder")
    _refuse_foreign(args.output)
    wanted = Columns(args.user_col, args.item_col, args.value_col, args.time_col)
    filters = Filters(args.min_value, args.min_user, args.min_item)
    inputs = ingest.open_inputs(args.interactions, wanted, args.items, filters, args.split, args.seed)
    if budget.host_bytes < resident() + ARROW_BYTES:
        try:
            return _work(ingest.count(inputs), described)
        except MemoryError:
            raise DoesNotFit(
                ceiling=budget.host_bytes, reasons=[f"to read Parquet alone takes {ARROW_BYTES // MIB} MiB more"]
            ) from None
    workspace = ingest.workspace(args.output)

    def read() -> dict[str, Any]:
        return asdict(ingest.ingest(inputs, workspace.path))

    try:
        facts = ingest.Facts(**fork.run(read, ceiling=budget.host_bytes, threads=args.threads))
    except MemoryError:
        raise DoesNotFit(ceiling=budget.host_bytes, reasons=["the ids of the input alone need more"]) from None
    return _work(facts, described, workspace)


def _described(args: argparse.Namespace) -> dict[str, Any]:
    """What the command line says about the model, checked."""
    factors = args.factors or FACTORS
    given = {"split": args.split, "threads": args.threads, "kind": args.model, "factors": factors}
    if args.model != "embedding":
        for name in ("loss", "table", "micro_batch", "accumulate", "amp"):
            if getattr(args, name) is not None:
                raise UsageError(f"--{name.replace('_', '-')} is for --model embedding")
    if args.model == "popularity":
        if args.tune:
            raise UsageError("--tune: popularity has no settings")
        return {**given, "factors": 1, "hyper": main.parse_settings(args.set, {})}
    if args.model in ("ials", "bpr"):
        made = solver_parameters(args) if args.model == "ials" else ranking_parameters(args, factors)
        return {**given, "hyper": made, **_searched(args, made)}
    hyper = embedding_parameters(args)
    table = args.table or "full"
    try:
        layouts.layout(table, rows=2, width=factors, row_bytes=hyper["row_bytes"])
    except ValueError as error:
        raise UsageError(f"--factors {factors}: {error}") from None
    sizes = [size for size in MICRO_BATCHES if size <= hyper["batch"]] or [hyper["batch"]]
    if args.micro_batch or args.accumulate:
        sizes = [args.micro_batch or -(-hyper["batch"] // args.accumulate)]
    hyper |= {"table": table, "epochs": args.epochs or EPOCHS}
    own = {"hyper": hyper, "amp": args.amp or "off", "micro_batches": tuple(sizes)}
    return {**given, **own, **_searched(args, hyper)}


def _searched(args: argparse.Namespace, hyper: Mapping[str, Any]) -> dict[str, Any]:
    """What ``--tune`` asks for: all that the command line does not fix."""
    if not args.tune:
        return {}
    fixed = {pair.partition("=")[0] for pair in args.set} | ({"factors"} if args.factors else set())
    searched = search_space.of(args.model, hyper, fixed)
    if not searched:
        raise UsageError("--tune: the command line fixes all that could be searched")
    return {"trials": args.tune, "space": searched}


def _work(facts: ingest.Facts, described: Mapping[str, Any], workspace: files.Workspace | None = None) -> TrainWorkload:
    made = None
    if described["kind"] == "embedding":
        named = {
            name: described["hyper"][name] for name in embedding_config.Recipe.__dataclass_fields__ if name not in SIZES
        }
        users = facts.users if described["hyper"]["user"] == "own" else 0
        made = embedding_config.Recipe(items=facts.items, factors=described["factors"], users=users, **named)
    return TrainWorkload(facts, workspace=workspace, recipe=made, **described)


def embedding_parameters(args: argparse.Namespace) -> dict[str, Any]:
    """The ``--set`` pairs of ``embedding`` and its loss, checked."""
    hyper = main.parse_settings(args.set, embedding_config.HYPER)
    hyper["loss"] = args.loss or "softmax"
    if hyper["user"] not in embedding_config.USERS:
        raise UsageError(f"--set user={hyper['user']}: expected one of {', '.join(embedding_config.USERS)}")
    if hyper["user"] == "own" and (hyper["loss"] == "bpr" or hyper["tables"] != 1):
        raise UsageError("--set user=own: takes --loss softmax or ccl, and tables=1")
    if hyper["tables"] not in (1, 2) or min(hyper["batch"], hyper["negatives"], hyper["window"] - 1) < 1:
        raise UsageError("--set: tables is 1 or 2; batch and negatives are at least 1, window at least 2")
    if hyper["row_bytes"] < 1:
        raise UsageError("--set row_bytes: at least 1")
    if hyper["prior"] < 0:
        raise UsageError("--set prior: not below 0")
    if hyper["user"] != "own" or hyper["loss"] != "softmax":
        hyper["prior"] = 0.0
    hyper["learning_rate"] = hyper["learning_rate"] or embedding_config.RATES[hyper["user"]]
    if min(hyper["learning_rate"], hyper["temperature"]) <= 0:
        raise UsageError("--set: learning_rate and temperature must be above 0")
    return hyper


def solver_parameters(args: argparse.Namespace) -> dict[str, Any]:
    """The ``--set`` pairs of ``ials``, checked."""
    hyper = main.parse_settings(args.set, ials.HYPER)
    if args.epochs is not None:
        hyper["iterations"] = args.epochs
    if hyper["weight"] not in WEIGHTS:
        raise UsageError(f"--set weight={hyper['weight']}: expected one of {', '.join(WEIGHTS)}")
    if not (hyper["alpha"] > 0 and hyper["regularization"] > 0 and hyper["iterations"] >= 1):
        raise UsageError("--set: alpha and regularization must be above 0, iterations at least 1")
    if not 0 <= hyper["frequency"] <= 2:
        raise UsageError("--set: frequency must be from 0 (one regularisation for all) to 2")
    return hyper


def ranking_parameters(args: argparse.Namespace, factors: int) -> dict[str, Any]:
    """The ``--set`` pairs of ``bpr``, checked."""
    hyper = main.parse_settings(args.set, bpr.HYPER)
    if args.epochs is not None:
        hyper["iterations"] = args.epochs
    if min(hyper["learning_rate"], hyper["user_regularization"]) <= 0 or hyper["regularization"] < 0:
        raise UsageError("--set: learning_rate and user_regularization must be above 0, regularization not below")
    if hyper["iterations"] < 1 or factors < 2:
        raise UsageError("--model bpr: takes an iteration at least, and 2 factors, one of which is an item's bias")
    return hyper


def execute(session: CommandSession[argparse.Namespace, Any]) -> Mapping[str, Any]:
    """Fit, evaluate, write; the model folder appears at the end."""
    args = session.request
    work = session.workload
    assert isinstance(work, TrainWorkload)
    if work.workspace is None:
        raise DoesNotFit(ceiling=session.budget.host_bytes, smallest=session.plan)
    directory, facts = work.workspace.path, work.facts
    _tell(session, facts)
    metrics: Mapping[str, float] = {}
    results: dict[str, Any] = {}
    with session.deferred_signals():
        if work.trials:
            found = _tune(args, work, session)
            work, session.plan, results["tuning"] = found.work, found.plan, found.results
        fields = _fields(work, session.seed)
        tensors = _learn(args, work, session) if work.recipe is not None else _fit(args, work, session)
        with session.phase("write"):
            weights.write(directory / weights.WEIGHTS, tensors)
            del tensors
        if work.split != "none":
            with session.phase("evaluate"):
                scored = {"kind": work.kind, **fields}
                metrics = evaluate.score(session, directory, scored, heldout=directory).means()
            session.say(evaluate.table(metrics))
        with session.phase("write"):
            recommender.write_card(directory, work.kind, fields, metrics)
            _reveal(directory, args.output, work.kind, fields)
        shutil.rmtree(args.output / WORK, ignore_errors=True)
    work.workspace.close()
    steps = int(work.hyper.get("iterations", work.hyper.get("epochs", 1)))
    data = {**asdict(facts), "dropped": dict(facts.dropped)}
    results |= {"metrics": dict(metrics), "steps": steps, "model": {"kind": work.kind, **fields}, "data": data}
    return results


def _fields(work: TrainWorkload, seed: int) -> dict[str, Any]:
    """What ``model.json`` says beside its files."""
    facts = work.facts
    return {
        "factors": work.factors,
        "table": work.recipe.table if work.recipe is not None else "full",
        "cosine": work.recipe is not None and work.recipe.cosine,
        "items": facts.items,
        "users": facts.users,
        "interactions": facts.interactions,
        "longest_history": facts.scored_longest or facts.longest,
        "longest": facts.longest,
        "hyper": dict(work.hyper),
        "split": work.split,
        "seed": seed,
    }


def _tell(session: Session, facts: ingest.Facts) -> None:
    session.say(
        f"data: {facts.rows:,} rows, {facts.users:,} users, {facts.items:,} items, {facts.interactions:,} interactions"
    )
    for why, rows in facts.dropped:
        session.say(f"dropped: {rows:,} rows {why}")


def _tune(args: argparse.Namespace, work: TrainWorkload, session: Session) -> tuning.Outcome:
    """Try settings; what training then goes on with."""
    assert work.workspace is not None
    directory, place = work.workspace.path, args.output / WORK
    if args.resume and not (place / tuning.FILE).is_file():
        raise checkpoint.nothing_to_resume(args.output)
    history = History(directory)
    kept = Kept.of(history, directory, work.split)
    if not splits.hide_for_validation(directory, kept, history, session.seed):
        raise BadInput("--tune: no user has enough items to hide some", public="nothing to hide")

    def fit(trial: TrainWorkload, quiet: tuning.TrialSession, watch: fit_factors.Watch) -> None:
        if trial.recipe is None:
            hidden = HeldOut(directory, "validation")
            fit_factors.Training(trial, quiet, None, validation=hidden, watch=watch).run()
        else:
            from apps.recsys.training import fit_embedding

            shutil.rmtree(place / TRIAL, ignore_errors=True)
            # It is stopped by what others reached, not by its own patience.
            own = {"validation": True, "patience": trial.hyper["epochs"], "work": place / TRIAL, "resume": False}
            fit_embedding.Learner(replace(_course(args, trial), **own), quiet, watch).run()

    about = {"data": fit_factors.digest(directory), "seed": session.seed, "space": search_space.to_json(work.space)}
    settings = {"kind": work.kind, "factors": work.factors, "hyper": dict(work.hyper), "split": work.split}
    book = tuning.Notebook(place / tuning.FILE, {**about, **settings})
    found = tuning.Search(work, session, book, fit).run()
    splits.forget_validation(directory)
    return found


def _course(args: argparse.Namespace, work: TrainWorkload) -> fit_embedding.Course:
    from apps.recsys.training import fit_embedding

    assert work.recipe is not None and work.workspace is not None
    return fit_embedding.Course(
        recipe=work.recipe,
        epochs=work.hyper["epochs"],
        patience=work.hyper["patience"],
        validation=bool(work.hyper["validation"]),
        directory=work.workspace.path,
        work=args.output / WORK,
        held_out=work.split != "none",
        whole_users=work.split == "user-holdout",
        seed=args.seed,
        resume=args.resume and not args.tune,
    )


def _learn(args: argparse.Namespace, work: TrainWorkload, session: Session) -> Mapping[str, Any]:
    """Train an embedding; its weights by name."""
    from apps.recsys.training import fit_embedding

    assert work.workspace is not None
    learner = fit_embedding.Learner(_course(args, work), session)
    tensors = fit_embedding.tensors(learner.run(), fit_embedding.priors(learner))
    splits.forget_validation(work.workspace.path)
    return tensors


def _fit(args: argparse.Namespace, work: TrainWorkload, session: Session) -> Mapping[str, Any]:
    """Train a model of factors; its weights by name."""
    return fit_factors.Training(
        work, session, args.output / WORK / checkpoint.FILE, resume=args.resume and not args.tune
    ).run()


def _reveal(directory: Path, output: Path, kind: str, fields: Mapping[str, Any]) -> None:
    """Move the files to their place and seal them; until then the folder does not count as a model."""
    output.mkdir(parents=True, exist_ok=True)
    model_folder.unseal(output)
    for name in ("heldout.users.npy", "heldout.indptr.npy", "heldout.items.npy", "evaluation.json"):
        (output / name).unlink(missing_ok=True)
    for path in sorted(directory.iterdir()):
        with path.open("rb") as stream:
            os.fsync(stream.fileno())
        path.replace(output / path.name)
    recommender.seal(output, kind=kind, fields=fields)


def record(args: argparse.Namespace) -> Path:
    """Where the run's record goes."""
    output: Path = args.output
    return output / "run.json"


def _refuse_foreign(output: Path) -> None:
    """A folder that holds another application's model must not be overwritten."""
    with suppress(OSError, ValueError):
        if json.loads((output / model_folder.MANIFEST).read_text())["application"] != "recsys":
            raise UsageError(f"-o {output}: holds another application's model; choose another folder")
