"""``recsys evaluate``, and the evaluation that ends a training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apps.recsys.data import ingest, readers
from apps.recsys.data.formats.paths import expanded
from apps.recsys.data.splits import HeldOut, Kept, fold_in_rows
from apps.recsys.data.test_files import TestPairs
from apps.recsys.evaluation import metrics
from apps.recsys.evaluation.full_ranking import User, evaluate
from apps.recsys.evaluation.metrics import Tally
from apps.recsys.models import popularity
from apps.recsys.models.manifest import RecommenderManifest
from apps.recsys.models.recommender import Recommender, heldout_count, load_manifest, read_manifest
from apps.recsys.planning.baselines import SCORING, warm_up_for
from apps.recsys.planning.evaluate import EvaluateWorkload
from apps.recsys.planning.requests import EvaluateRequest
from common import model_folder
from common.cli.session import CommandSession, Session
from common.errors import BadInput, DoesNotFit, UsageError
from common.memory.process import fork
from common.memory.process.budget import MemoryBudget

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

USUAL = (*metrics.METRICS, "novelty@10")
"""The metrics of an evaluation that names none."""
NCF_DEPTH = 10
"""Items that NCF's protocol looks at."""


def workload(request: EvaluateRequest, budget: MemoryBudget) -> EvaluateWorkload:
    """Read the model's manifest, and test files into a scratch folder next to the model.

    Raises
    ------
    UsageError
        The model was trained with another split than the protocol's.
    BadInput
        No model, no held-out data, or unreadable test files.
    DoesNotFit
        The pairs of the test files alone need more than the ceiling.
    """
    manifest = load_manifest(request.model)
    if not request.reads_files:
        _check_split(request.protocol, manifest["split"])
        return EvaluateWorkload(request, manifest, heldout_count(request.model, manifest))
    workspace = ingest.workspace(request.model)
    sources = _sources(request, manifest)

    def read() -> dict[str, Any]:
        from apps.recsys.data import test_files

        if request.negatives is not None:
            return asdict(test_files.write_candidates(request.negatives, request.model, workspace.path))
        least = manifest.get("min_value")
        return asdict(test_files.write(sources, request.model, workspace.path, min_value=least))

    try:
        pairs = TestPairs(**fork.run(read, ceiling=budget.host_bytes, threads=request.threads))
    except MemoryError:
        raise DoesNotFit(ceiling=budget.host_bytes, reasons=["the test file's pairs alone need more"]) from None
    return EvaluateWorkload(request, manifest, pairs.users, workspace, pairs, sources)


def _sources(request: EvaluateRequest, manifest: RecommenderManifest) -> tuple[readers.Source, ...]:
    """The test files, by the options, then by the columns that the model was trained on, then by common names."""
    read = manifest.get("columns")
    model = readers.Columns(read["user"], read["item"], read["value"]) if read is not None else readers.Columns()
    return tuple(
        readers.open_source(path, request.columns, request.layout, partitions=partitions, model=model)
        for path, partitions in expanded(request.test)
    )


def _check_split(protocol: str | None, split: str) -> None:
    if protocol not in (None, split):
        raise UsageError(
            f"--protocol {protocol}: the model was trained with --split {split}"
            + (", so it takes --test FILE" if protocol in ("split", "lightgcn") else "")
            + (", so it takes --negatives FILE" if protocol == "ncf" else "")
        )


def warm_up(request: EvaluateRequest) -> str:
    """Name of the warm-up function."""
    return warm_up_for(read_manifest(request.model), SCORING)


def record(request: EvaluateRequest) -> Path | None:
    """Path of the record: in the model folder, if it is one."""
    path = request.model / "evaluation.json"
    return path if (request.model / model_folder.MANIFEST).is_file() else None


def execute(session: CommandSession[EvaluateRequest, EvaluateWorkload]) -> Mapping[str, Any]:
    """Rank all items for the users to score; returns metrics with intervals."""
    request, work = session.request, session.workload
    results: dict[str, Any] = {"users": work.scored_users}
    for line in readers.understood(work.sources) if work.sources else ():
        session.say(line)
    found: dict[str, int] = {}
    heldout = work.workspace.path if work.workspace is not None else request.model
    with session.deferred_signals(), session.phase("evaluate"):
        if request.negatives is not None:
            results["metrics"] = among_candidates(session, request.model, work.manifest, heldout)
        else:
            tally = score(
                session,
                request.model,
                work.manifest,
                heldout=heldout,
                trained_on_all=work.test is not None,
                plain_recall=request.protocol == "lightgcn",
                found=found,
                names=request.metrics or USUAL,
            )
            intervals = {name: list(pair) for name, pair in tally.intervals(seed=request.seed).items()}
            results |= {"metrics": tally.means(), "intervals": intervals}
    if work.workspace is not None:
        work.workspace.close()
    if new := found.pop("new_users", 0):
        results["new_users"] = new
    if work.test is not None:
        columns = [asdict(source.columns) for source in work.sources]
        read = [one for place, one in enumerate(columns) if one not in columns[:place]]
        results["test"] = {**asdict(work.test), "dropped": dict(work.test.dropped), **found, "columns": read}
        _print_sizes(session, work.test)
    session.say(table(results["metrics"]))
    return results


def _print_sizes(session: Session, test: TestPairs) -> None:
    session.say(f"test: {test.users:,} users, {test.pairs:,} pairs")
    for what, count in (("users", test.unknown_users), ("items", test.unknown_items)):
        if count:
            session.say(f"not in the model: {what} of {count:,} rows")
    for why, rows in test.dropped:
        session.say(f"not scored: {rows:,} rows {why}")


def score(
    session: Session,
    directory: Path,
    manifest: Mapping[str, Any],
    *,
    heldout: Path,
    trained_on_all: bool = False,
    plain_recall: bool = False,
    found: dict[str, int] | None = None,
    names: tuple[str, ...] = USUAL,
) -> Tally:
    """Rank all items for the users with held-out items.

    Parameters
    ----------
    session
        Gives the number of users ranked at a time, and the threads.
    directory
        A model folder.
    manifest
        Its ``model.json``.
    heldout
        Folder with ``heldout.*.npy``.
    trained_on_all
        True if the history has no held-out items: all of it is folded in, and not ranked.
    plain_recall
        As ``metrics.Tally``.
    found
        Gets the number of scored users whom training did not see (``new_users``), and with ``trained_on_all`` the
        number of scored pairs that it did see (``trained``); both are said too.
    names
        Names of the metrics, with their depths.

    Returns
    -------
    Tally
        The metrics of each user.

    Raises
    ------
    KeyboardInterrupt
        The session is stopping.
    """
    import numpy as np

    held_out = HeldOut(heldout)
    recommender = Recommender(directory, manifest)
    if len(held_out) and not 0 <= held_out.users.min() <= held_out.users.max() < recommender.history.rows:
        raise BadInput(f"{heldout}: held-out users that the model does not have", public="model file corrupt")
    owners = np.zeros(recommender.scorer.items, np.int64)
    for start, stop in recommender.history.blocks():
        owners += np.bincount(recommender.history.items(start, stop), minlength=len(owners))
    tally = Tally(len(owners), names, plain_recall=plain_recall, owners=owners, users=recommender.history.rows)
    counts = {"new_users": 0, "trained": 0}
    popular = None
    if not trained_on_all and (held_out.lengths == np.diff(recommender.history.indptr)[held_out.users]).any():
        history, popular = recommender.history, recommender.recent_shares
        if popular is None:
            popular = popularity.fit(history, Kept.of(history, heldout, manifest["split"]), items=len(owners))[:, 0]
    with session.progress(total=len(held_out), unit="user", label="evaluate") as bar:

        def after_block(users: int) -> None:
            bar.update(users)
            if session.stopping:
                raise KeyboardInterrupt

        evaluate(
            _users(recommender, held_out, counts, trained_on_all=trained_on_all),
            recommender.scorer,
            block=int(session.plan["user_block"]),
            threads=session.threads,
            tally=tally,
            popular=popular,
            after_block=after_block,
        )
    if new := counts["new_users"]:
        session.say(f"new: {new:,} of {len(held_out):,} users have no history in training, and are shown popular items")
    if trained := counts["trained"]:
        session.say(f"trained on: {trained:,} of the pairs; what a user had is never shown, so these count as missed")
    if found is not None:
        found |= counts if trained_on_all else {"new_users": new}
    return tally


def _users(
    recommender: Recommender, heldout: HeldOut, counts: dict[str, int], *, trained_on_all: bool
) -> Iterator[User]:
    """Histories and items to score; adds to ``counts`` the users without a history and the pairs that are in one."""
    import numpy as np

    history = recommender.history
    for row, user in enumerate(heldout.users):
        scored = heldout.items(row)
        if trained_on_all:
            items, values = history.items(user), history.values(user)
            counts["trained"] += int(np.isin(scored, items).sum())
        else:
            items, values = fold_in_rows(history, scored, int(user))
        counts["new_users"] += not len(items)
        yield items, values, scored


def among_candidates(
    session: Session, directory: Path, manifest: Mapping[str, Any], heldout: Path
) -> Mapping[str, float]:
    """HR and NDCG of one positive item among its sampled negatives (He et al. 2017, NCF); ties count against it.

    Parameters
    ----------
    session
        Asked whether to stop.
    directory
        A model folder.
    manifest
        Its ``model.json``.
    heldout
        Folder with ``heldout.*.npy``, an item per user, and ``others.*.npy``, its negatives.
    """
    import numpy as np

    positives, negatives = HeldOut(heldout), HeldOut(heldout, "others")
    recommender = Recommender(directory, manifest)
    history, scorer = recommender.history, recommender.scorer
    workspace = scorer.workspace(1)
    ranks = np.empty(len(positives), np.int64)
    for row, user in enumerate(positives.users):
        scores = scorer.scores([(history.items(user), history.values(user))], workspace)[0]
        positive_scores, negative_scores = _of(scores, positives.items(row)), _of(scores, negatives.items(row))
        ranks[row] = 1 + int((negative_scores >= positive_scores[0]).sum())
        if session.stopping:
            raise KeyboardInterrupt
    hits = ranks <= NCF_DEPTH
    gains = np.where(hits, 1 / np.log2(ranks + 1), 0.0)
    return {f"hr@{NCF_DEPTH}": float(hits.mean()), f"ndcg@{NCF_DEPTH}": float(gains.mean())}


def _of(scores: NDArray[np.float32], items: NDArray[np.int32]) -> NDArray[np.float32]:
    """Scores of a few items; ``-inf`` for items that the model does not have."""
    import numpy as np

    in_model = items < len(scores)
    some = np.full(len(items), -np.inf, np.float32)
    some[in_model] = scores[items[in_model]]
    return some


def table(values: Mapping[str, float]) -> str:
    """The metrics as one line of text."""
    return "  ".join(f"{name} {value:.4f}" for name, value in values.items())
