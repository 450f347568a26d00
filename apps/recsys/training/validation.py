"""Score a model on items that are hidden from its training: to stop an embedding, and to compare trials of a search."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from apps.recsys.evaluation.full_ranking import User, evaluate
from apps.recsys.evaluation.metrics import Tally

if TYPE_CHECKING:
    from apps.recsys.data.csr_store import History
    from apps.recsys.data.splits import HeldOut, Kept
    from apps.recsys.models.scorers import Scorer
    from apps.recsys.training.session import TrainingSession

METRICS = ("ndcg@10", "ndcg@20")


def score(
    scorer: Scorer, *, history: History, hidden: HeldOut, kept: Kept, session: TrainingSession
) -> Mapping[str, float]:
    """Rank all items for the users with hidden items.

    Parameters
    ----------
    scorer
        The model: scores all items for histories.
    history
        All interactions.
    hidden
        The items to score.
    kept
        Interactions that are trained on. Only they are folded in: neither hidden items nor what the split holds out.
    session
        Gives the number of users ranked at a time, and the threads.

    Returns
    -------
    Mapping
        Means of ``METRICS`` over the users.
    """

    def users() -> Iterator[User]:
        for row, user in enumerate(hidden.users):
            trained = kept.mask(int(user), int(user) + 1)
            yield history.items(user)[trained], history.values(user)[trained], hidden.items(row)

    tally = Tally(scorer.items, METRICS)
    evaluate(users(), scorer, block=int(session.plan["user_block"]), threads=session.threads, tally=tally)
    return tally.means()
