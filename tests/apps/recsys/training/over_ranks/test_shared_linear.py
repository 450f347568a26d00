"""Linear models over ranks have the numbers of one process."""

import json
from pathlib import Path

from tests.ranks import over_ranks

MADE = """
import json
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from types import SimpleNamespace
import numpy as np
from apps.recsys.data.csr_store import NpyWriter
from apps.recsys.models.linear import ease
from apps.recsys.models.linear.log import Log
from apps.recsys.models.linear.spectral import response
from apps.recsys.models.linear.spectrum import spectrum
from apps.recsys.training.over_ranks import shared_linear
from apps.recsys.training.over_ranks.shared_ease import SharedSquare, rows_of_weights
from apps.recsys.training.over_ranks.shared_linear import SharedLog, SharedVectorRows

USERS, ITEMS, FACTORS = 900, 203, 40
shared_linear.COLUMNS, shared_linear.DRAWN, ease.PANEL, ease.PAIRS = 17, 13, 32, 500
random = np.random.default_rng(0)
counts = np.minimum(1 + random.geometric(0.05, USERS), ITEMS)
popular = 1 / np.arange(1, ITEMS + 1)
rows = [np.sort(random.choice(ITEMS, n, replace=False, p=popular / popular.sum())) for n in counts]
own = Path(folder) / str(rank)
own.mkdir()
for name, kind, values in (
    ("indptr", "<i8", np.concatenate([[0], counts.cumsum()])), ("items", "<i4", np.concatenate(rows))
):
    with NpyWriter(own / f"history.{name}.npy", kind) as writer:
        writer.append(values)
alone, shared = Log(own, ITEMS), SharedLog(own, ITEMS, None, group)
parts = group.all_of([shared.part.start, shared.part.stop])
assert [one[1] for one in parts[:-1]] == [one[0] for one in parts[1:]]
assert parts[0][0] == 0 and parts[-1][1] == USERS
read = [int(counts[start:stop].sum()) for start, stop in parts]
assert max(read) - min(read) < 2 * counts.max()
assert (shared.counts() == alone.counts()).all()
"""

SPECTRUM = (
    MADE
    + """
how = dict(item_power=0.25, seed=5, threads=1)
drawn = []
class Rows(SharedVectorRows):
    def first(self, *given):
        drawn.append(super().first(*given).copy())
        return drawn[-1].copy()
expected, values = spectrum(alone, alone.counts(), FACTORS, **how)
kept = partial(Rows, items=ITEMS, group=group)
found, same = spectrum(shared, alone.counts(), FACTORS, **how, kept=kept)
share = group.share(ITEMS)
assert found.shape == (len(share), FACTORS)
first = np.random.default_rng([5, 2]).standard_normal((ITEMS, drawn[0].shape[1]), np.float32)
assert (drawn[0] == first[share.start : share.stop]).all()
_, (whole,) = group.rows((torch.from_numpy(found),))
def weights(vectors, values):
    return (vectors * response(values, 0.1)) @ vectors.T
one = weights(expected, values)
print(json.dumps([
    float(np.abs(same / values - 1).max()),
    float(np.abs(weights(whole.numpy(), same) - one).max() / np.abs(one).max()),
]))
"""
)

EASE = (
    MADE
    + """
expected, variances = ease.item_weights(alone, 30.0)
square = SharedSquare(ITEMS, group)
for items in rows:
    square.count(items)
matrix = np.zeros((ITEMS, ITEMS), np.float32)
for items in rows:
    matrix[items[:, None], items] += 1
counted = np.concatenate([square.row_panel(start) for start in range(0, ITEMS, ease.PANEL)])
assert (counted == matrix).all()
cells = sum(cells.size for _, cells in square.panels)
assert cells <= ease.most_cells(ITEMS, 3) < 0.25 * ITEMS**2
square.add_to_diagonal(30.0)
square.invert()
found = np.stack(list(rows_of_weights(square, square.diagonal())))
histories = rows[:7]
scores = square.product(histories) / -square.diagonal()
sums = np.stack([expected[items].sum(0) for items in histories])
for line, wanted, items in zip(scores, sums, histories, strict=True):
    line[items] = wanted[items]  # an item's own row has a diagonal of 0 in B
largest = np.abs(expected).max()
print(json.dumps([
    float(np.abs(square.diagonal() / variances - 1).max()),
    float(np.abs(found - expected).max() / largest),
    float(np.abs(scores - sums).max() / largest),
]))
"""
)


def test_spectrum_is_that_of_one_process(tmp_path: Path) -> None:
    """Eigenvalues, and what the model multiplies a history by, relative to the largest number: to 1e-5."""
    for output in over_ranks(SPECTRUM, 3, tmp_path):
        assert max(json.loads(output)) <= 1e-5, output


def test_item_weights_are_those_of_one_process(tmp_path: Path) -> None:
    """The counts of pairs are equal; a rank has less than a quarter of the matrix; weights and scores to 1e-5."""
    for output in over_ranks(EASE, 3, tmp_path):
        assert max(json.loads(output)) <= 1e-5, output
