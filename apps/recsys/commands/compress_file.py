"""``recsys compress`` for factors that the library ``implicit`` saved: a file of codes of both sides."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from apps.recsys.models.coded import implicit_file, stored
from apps.recsys.models.coded.implicit_file import ITEMS, USERS
from apps.recsys.models.top_k import top_k
from apps.recsys.planning.compressing.file_workload import LIST_BLOCK, CompressFileWorkload
from apps.recsys.planning.compressing.request import LAYERS, CompressRequest
from apps.recsys.planning.compressing.workload import LISTED, LISTED_USERS
from apps.recsys.training.compressing import vectors
from apps.recsys.training.compressing.encode import described
from common import files
from common.cli.session import CommandSession

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def workload(request: CompressRequest) -> CompressFileWorkload:
    """Read the headers of the file.

    Raises
    ------
    BadInput
        As ``implicit_file.shapes``.
    UsageError
        As ``CompressRequest.file_bytes``.
    """
    shapes = implicit_file.shapes(request.model)
    rows = min(shape[0] for shape in shapes.values())
    return CompressFileWorkload(request, shapes, request.file_bytes(shapes[ITEMS][1], rows))


def execute(session: CommandSession[CompressRequest, CompressFileWorkload]) -> dict[str, Any]:
    """Encode both sides, compare lists of some users, and write the file."""
    import numpy as np
    from threadpoolctl import threadpool_limits

    request, work = session.request, session.workload

    def check() -> None:
        if session.stopping:
            raise KeyboardInterrupt

    with session.deferred_signals(), session.phase("encode"), threadpool_limits(session.threads, "blas"):
        matrices = {name: implicit_file.factors(request.model, name) for name in (ITEMS, USERS)}
        items, users = matrices[ITEMS], matrices[USERS]
        step = max(1, -(-len(users) // LISTED_USERS))
        before = _lists(users[::step], items)
        values, axes = vectors.rotation(users.T @ users)
        for rows in (items, users):
            vectors.rotate(rows, axes)
        importance = {ITEMS: values, USERS: np.einsum("ij,ij->j", items, items, dtype=np.float64)}
        del items, users, rows
        budget = vectors.Budget(work.row_bytes, request.dimensions, LAYERS[request.codes])
        made = vectors.encoded_alike(
            matrices, importance, budget, by_length=(ITEMS,), cosine=False, last=False, after_each=check
        )
        some = made[USERS].decode(np.arange(0, len(made[USERS]), step))
        after = _lists(some, made[ITEMS].decode(slice(0, len(made[ITEMS]))))
        arrays = implicit_file.others(request.model)
        for name, codes in made.items():
            arrays |= stored.tensors(name, codes)
        with files.atomic_file(request.output) as unfinished:
            implicit_file.write(unfinished, arrays)
    shares = [len(np.intersect1d(old, new)) / len(old) for old, new in zip(before, after, strict=True)]
    return _results(request, work.shapes, made, float(np.mean(shares)))


def _results(
    request: CompressRequest,
    shapes: Mapping[str, tuple[int, int, int]],
    made: Mapping[str, stored.Coded],
    in_common: float,
) -> dict[str, Any]:
    """What the record and the printed lines have, as for a model folder."""
    codes = made[ITEMS]
    return {
        "item_bytes": stored.row_size(codes),
        "item_bytes_before": shapes[ITEMS][1] * shapes[ITEMS][2],
        "file_bytes": request.output.stat().st_size,
        "file_bytes_before": request.model.stat().st_size,
        "dimensions": codes.width,
        "bits": {ITEMS: described(codes)},
        "metrics": {},
        "in_common": in_common,
    }


def _lists(users: NDArray[np.float32], items: NDArray[np.float32]) -> list[NDArray[np.intp]]:
    """The items with the largest products for each user."""
    made = []
    for start in range(0, len(users), LIST_BLOCK):
        made += [top_k(scores, LISTED) for scores in users[start : start + LIST_BLOCK] @ items.T]
    return made
