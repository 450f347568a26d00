"""``recsys evaluate``, and the evaluation that ends a training: who is ranked for, by which rules."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apps.recsys.data import ingest
from apps.recsys.data.splits import HeldOut, known_rows
from apps.recsys.evaluation import metrics
from apps.recsys.evaluation.full_ranking import User, evaluate
from apps.recsys.evaluation.metrics import Tally
from apps.recsys.models import recommender as model
from apps.recsys.planning.evaluate import EvaluateWorkload
from common import model_folder
from common.cli.session import CommandSession, Session
from common.errors import DoesNotFit, UsageError
from common.memory.process import fork
from common.memory.process.budget import MemoryBudget

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

PROTOCOLS = ("user-holdout", "leave-last", "temporal", "random", "split", "lightgcn", "ncf")
"""The model's own splits; a test file, with this suite's recall or LightGCN's; NCF's sampled negatives."""
NCF_DEPTH = 10


def workload(args: argparse.Namespace, budget: MemoryBudget) -> EvaluateWorkload:
    """Check the command line; read the test file, if one is given, into a scratch folder."""
    manifest = model.load_manifest(args.model)
    described = {"directory": args.model, "manifest": manifest, "threads": args.threads}
    if args.test is None and args.negatives is None:
        if args.protocol not in (None, manifest["split"]):
            raise UsageError(
                f"--protocol {args.protocol}: the model was trained with --split {manifest['split']}"
                + (", so it takes --test FILE" if args.protocol in ("split", "lightgcn") else "")
                + (", so it takes --negatives FILE" if args.protocol == "ncf" else "")
            )
        return EvaluateWorkload(scored_users=model.heldout_count(args.model, manifest), **described)
    _check_files(args)
    workspace = ingest.workspace(args.model)

    def read() -> dict[str, Any]:
        from apps.recsys.data import readers, test_files

        if args.negatives is not None:
            return asdict(test_files.write_candidates(args.negatives, args.model, workspace.path))
        sources = tuple(readers.open_source(path, readers.Columns()) for path in args.test)
        return asdict(test_files.write(sources, args.model, workspace.path))

    try:
        found = fork.run(read, ceiling=budget.host_bytes, threads=args.threads)
    except MemoryError:
        raise DoesNotFit(ceiling=budget.host_bytes, reasons=["the test file's pairs alone need more"]) from None
    return EvaluateWorkload(
        scored_users=found["users"], workspace=workspace, test_pairs=found["pairs"], found=found, **described
    )


def _check_files(args: argparse.Namespace) -> None:
    if args.test is not None and args.negatives is not None:
        raise UsageError("--negatives holds the scored pairs too: leave out --test")
    fitting = ("ncf",) if args.negatives is not None else ("split", "lightgcn")
    if args.protocol not in (None, *fitting):
        raise UsageError(f"--protocol {args.protocol}: expected {' or '.join(fitting)} with this file")


def execute(session: CommandSession[argparse.Namespace, Any]) -> Mapping[str, Any]:
    """Rank, and say how well."""
    args = session.request
    work = session.workload
    assert isinstance(work, EvaluateWorkload)
    results: dict[str, Any] = {"users": work.scored_users}
    place = work.workspace.path if work.workspace is not None else args.model
    with session.deferred_signals(), session.phase("evaluate"):
        if args.negatives is not None:
            results["metrics"] = among_candidates(session, args.model, work.manifest, place)
        else:
            tally = score(
                session,
                args.model,
                work.manifest,
                heldout=place,
                trained_on_all=work.workspace is not None,
                plain_recall=args.protocol == "lightgcn",
            )
            intervals = {name: list(pair) for name, pair in tally.intervals(seed=args.seed).items()}
            results |= {"metrics": tally.means(), "intervals": intervals}
    if work.workspace is not None:
        work.workspace.close()
        results["test"] = dict(work.found)
        _tell(session, work.found)
    session.say(table(results["metrics"]))
    return results


def _tell(session: Session, found: Mapping[str, int]) -> None:
    session.say(f"test: {found['users']:,} users, {found['pairs']:,} pairs")
    for what in ("users", "items"):
        if count := found[f"unknown_{what}"]:
            session.say(f"not in the model: {what} of {count:,} rows")


def record(args: argparse.Namespace) -> Path | None:
    """Beside the model, if it is one."""
    path: Path = args.model / "evaluation.json"
    return path if (args.model / model_folder.MANIFEST).is_file() else None


def score(
    session: Session,
    directory: Path,
    manifest: Mapping[str, Any],
    *,
    heldout: Path,
    trained_on_all: bool = False,
    plain_recall: bool = False,
) -> Tally:
    """Rank all items for users with scored items.

    Parameters
    ----------
    heldout
        Folder with ``heldout.*.npy``.
    trained_on_all
        Scored items are not part of the history: what a user had is masked as a whole.
    """
    import numpy as np

    scored = HeldOut(heldout)
    recommender = model.Recommender(directory, manifest)
    owners = np.zeros(len(recommender.item_factors), np.int64)
    for start, stop in recommender.history.blocks():
        owners += np.bincount(recommender.history.items(start, stop), minlength=len(owners))
    names = (*metrics.METRICS, "novelty@10")
    tally = Tally(len(owners), names, plain_recall=plain_recall, owners=owners, users=recommender.history.rows)
    with session.progress(total=len(scored), unit="user", label="evaluate") as bar:

        def after_block(users: int) -> None:
            bar.update(users)
            if session.stopping:
                raise KeyboardInterrupt

        evaluate(
            _users(recommender, scored, trained_on_all=trained_on_all),
            recommender.user_vector,
            recommender.item_factors,
            block=int(session.plan["user_block"]),
            threads=session.threads,
            tally=tally,
            after_block=after_block,
        )
    return tally


def _users(recommender: model.Recommender, heldout: HeldOut, *, trained_on_all: bool) -> Iterator[User]:
    history = recommender.history
    for row, user in enumerate(heldout.users):
        scored = heldout.items(row)
        if trained_on_all:
            yield history.items(user), history.values(user), scored
        else:
            yield *known_rows(history, scored, int(user)), scored


def among_candidates(
    session: Session, directory: Path, manifest: Mapping[str, Any], place: Path
) -> Mapping[str, float]:
    """HR and NDCG of one scored item among its sampled negatives (He et al. 2017, NCF); ties count against it."""
    import numpy as np

    heldout, others = HeldOut(place), HeldOut(place, "others")
    recommender = model.Recommender(directory, manifest)
    history, factors = recommender.history, recommender.item_factors
    ranks = np.empty(len(heldout), np.int64)
    for row, user in enumerate(heldout.users):
        vector = recommender.user_vector(history.items(user), history.values(user))
        own, rest = (_scores(factors, part.items(row), vector) for part in (heldout, others))
        ranks[row] = 1 + int((rest >= own[0]).sum())
        if session.stopping:
            raise KeyboardInterrupt
    hits = ranks <= NCF_DEPTH
    gains = np.where(hits, 1 / np.log2(ranks + 1), 0.0)
    return {f"hr@{NCF_DEPTH}": float(hits.mean()), f"ndcg@{NCF_DEPTH}": float(gains.mean())}


def _scores(factors: NDArray[np.float32], items: NDArray[np.int32], vector: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scores of a few items; ``-inf`` for those that the model does not have."""
    import numpy as np

    known = items < len(factors)
    scores = np.full(len(items), -np.inf, np.float32)
    scores[known] = factors[items[known]] @ vector
    return scores


def table(values: Mapping[str, float]) -> str:
    """The metrics for people."""
    return "  ".join(f"{name} {value:.4f}" for name, value in values.items())
