"""Items that training hides from itself: what decides when an embedding stops, and which settings ``--tune`` keeps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from apps.recsys.evaluation.full_ranking import User, evaluate
from apps.recsys.evaluation.metrics import Tally

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from apps.recsys.data.csr_store import History
    from apps.recsys.data.splits import HeldOut, Kept
    from apps.recsys.models.embedding.user_encoders import Fold
    from common.cli.session import Session

METRICS = ("ndcg@10", "ndcg@20")


def score(
    items: NDArray[Any], fold: Fold, *, history: History, hidden: HeldOut, kept: Kept, session: Session
) -> Mapping[str, float]:
    """Rank all items for the users that have hidden ones; means over them of ``METRICS``.

    Parameters
    ----------
    items
        Their vectors, shape (items, factors).
    kept
        What is trained on, so without what is hidden: all that may be known of a user here. What the command's split
        holds out is not.
    """

    def users() -> Iterator[User]:
        for row, user in enumerate(hidden.users):
            known = kept.mask(int(user), int(user) + 1)
            yield history.items(user)[known], history.values(user)[known], hidden.items(row)

    tally = Tally(len(items), METRICS)
    evaluate(users(), fold, items, block=int(session.plan["user_block"]), threads=session.threads, tally=tally)
    return tally.means()
