"""Predicted against measured peaks of training steps on embedding tables of 1e5 to 2e6 rows.

Two kinds: the ``embedding`` model's own step, whose tables hold rows of float32, int8 or int4; and two towers, a plain
table each for users and items, as most people would write it, with PyTorch's optimisers.
``python -m apps.recsys.bench.promise_prediction`` is the suite's case; with ``grid`` it runs the grid itself.
"""

import random
import sys
from collections.abc import Iterator
from itertools import product
from typing import TYPE_CHECKING, Any

from apps.recsys.models.embedding.embedding_config import TARGETS, Recipe
from common.bench import prediction
from common.bench.harness import Bound, Suite
from common.bench.prediction import Configuration, Grid

if TYPE_CHECKING:
    import torch

    from common.memory.costs.trace import Prepared
    from common.training.step import Batch

TABLES = ("full", "int8", "int4")
LOSSES = ("softmax", "ccl", "bpr")
ROWS = (100_000, 250_000, 500_000, 1_000_000, 2_000_000)
FOREACH = "adamw-foreach"
"""PyTorch's AdamW as it works on lists of tensors: two copies more than fused while it steps."""
OPTIMIZERS = ("adamw", FOREACH, "adamw8bit", "adafactor", "rowwise_adagrad", "sgd")
MOST_BYTES = 1 << 31
"""No table is larger, with what its optimiser keeps; the machine is shared."""
WARM_UP = "apps.recsys.bench.promise_prediction:warm_up"


def own(*, micro_batch: int, amp: str, **recipe: Any) -> "Prepared":
    """The step of ``recsys train --model embedding``."""
    from apps.recsys.models.embedding import model

    what = Recipe(**recipe)
    network, optimizer, step = model.make_step(what, micro_batch=micro_batch, amp=amp)
    batch = model.largest_batch(what)
    return network, optimizer, lambda: step(batch)


def towers(
    *, rows: int, factors: int, batch: int, micro_batch: int, negatives: int, amp: str, optimizer: str
) -> "Prepared":
    """A table of users and a table of items, each followed by a hidden layer, with sampled softmax."""
    import torch

    from apps.recsys.models.embedding.losses import softmax
    from common.training import optimizers
    from common.training.step import TrainingStep

    class MeanOverPairs:
        def counts(self, batch: "Batch") -> "tuple[torch.Tensor]":
            return (torch.tensor(float(len(batch[0]))),)

        def sums(self, scores: "torch.Tensor", batch: "Batch") -> "tuple[torch.Tensor]":
            return (softmax(scores[:, 0], scores[:, 1:]).sum(),)

    class Towers(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.users, self.items = torch.nn.Embedding(rows // 2, factors), torch.nn.Embedding(rows // 2, factors)
            self.left, self.right = (torch.nn.Linear(factors, factors) for _ in range(2))

        def forward(self, pairs: "torch.Tensor") -> "torch.Tensor":
            user = self.left(self.users(pairs[:, 0])).relu()
            items = self.right(self.items(pairs[:, 1:])).relu()
            return (items * user[:, None]).sum(2)

    network = Towers()
    made: torch.optim.Optimizer
    if optimizer == FOREACH:
        made = torch.optim.AdamW(network.parameters(), foreach=True)
    else:
        made = optimizers.build(optimizer, network.parameters(), learning_rate=0.1)
    step = TrainingStep(network, made, MeanOverPairs(), micro_batch, amp)
    pairs = torch.arange(batch * (2 + negatives)).view(batch, -1) % (rows // 2)
    return network, made, lambda: step([pairs])


def warm_up() -> None:
    """One step of everything, small; its products are large enough (16 cubed) for torch to give them to oneDNN."""
    from apps.recsys import warm_up as warm

    warm.reading()
    for optimizer, amp in product(OPTIMIZERS, ("off", "bf16")):
        *_, step = towers(rows=256, factors=32, batch=64, micro_batch=32, negatives=2, amp=amp, optimizer=optimizer)
        step()
    for table, loss, amp in product(TABLES, LOSSES, ("off", "bf16")):
        sizes = {"items": 256, "factors": 32, "batch": 64, "negatives": 32, "window": 4}
        *_, step = own(micro_batch=32, amp=amp, table=table, loss=loss, **sizes)
        step()


def _own(table: str, rows: int, factors: int, drawn: bool = False, **changes: Any) -> Configuration:
    given = {"loss": "softmax", "batch": 512, "parts": 1, "negatives": 1024, "window": 50, "amp": "off"} | changes
    parts = given.pop("parts")
    labels = {
        "network": "embedding",
        "table": table,
        "rows": f"{rows:.1e}",
        "factors": factors,
        "loss": given["loss"],
        "batch": f"{given['batch'] // parts}x{parts}",
        "precision": "float32" if given["amp"] == "off" else given["amp"],
        "history": f"w{given['window']}-n{given['negatives']}",
    }
    arguments = given | {"items": rows, "factors": factors, "table": table, "micro_batch": given["batch"] // parts}
    return Configuration.of(labels, "apps.recsys.bench.promise_prediction:own", arguments, drawn)


def _towers(optimizer: str, rows: int, factors: int, drawn: bool = False, **changes: Any) -> Configuration:
    given = {"batch": 4096, "parts": 1, "negatives": 32, "amp": "off"} | changes
    parts = given.pop("parts")
    labels = {
        "network": "towers",
        "optimizer": optimizer,
        "rows": f"{rows:.1e}",
        "factors": factors,
        "batch": f"{given['batch'] // parts}x{parts}",
        "precision": "float32" if given["amp"] == "off" else given["amp"],
        "history": f"n{given['negatives']}",
    }
    arguments = given | {
        "rows": rows,
        "factors": factors,
        "optimizer": optimizer,
        "micro_batch": given["batch"] // parts,
    }
    return Configuration.of(labels, "apps.recsys.bench.promise_prediction:towers", arguments, drawn)


def listed() -> Iterator[Configuration]:
    """Every table and optimiser with every other axis."""
    for table, rows in product(TABLES, ROWS):
        yield _own(table, rows, 64 if table == "full" else 128)
    for table, loss in product(TABLES, LOSSES):
        yield _own(table, 500_000, 128, loss=loss, batch=1024)
        yield _own(table, 250_000, 128, loss=loss, batch=1024, parts=4, amp="bf16")
    for optimizer in OPTIMIZERS:
        for rows, factors in ((100_000, 128), (250_000, 128), (500_000, 64), (1_000_000, 64)):
            yield _towers(optimizer, rows, factors)
        yield _towers(optimizer, 200_000, 96, amp="bf16")
        yield _towers(optimizer, 500_000, 48, parts=4)


def draw(source: random.Random) -> Configuration:
    """One that nobody has thought of."""
    while True:
        rows, factors = round(10 ** source.uniform(5.3, 6.3)), source.choice((32, 48, 64, 96, 128))
        batch = {"batch": source.choice((1024, 2048, 4096, 8192)), "parts": source.choice((1, 2, 4))}
        amp = source.choice(("off", "bf16"))
        if source.random() < 0.5 and rows * factors * 4 * 2 < MOST_BYTES:
            return _own(
                source.choice(TABLES),
                rows,
                factors,
                drawn=True,
                loss=source.choice(LOSSES),
                window=source.choice((20, 50, 80)),
                negatives=source.choice((256, 1024, 2048)),
                amp=amp,
                **(batch | {"batch": batch["batch"] // TARGETS}),  # windows hold as many pairs each
            )
        if rows * factors * 4 * 6 < MOST_BYTES:
            negatives = source.choice((8, 16, 32))
            return _towers(source.choice(OPTIMIZERS), rows, factors, drawn=True, amp=amp, negatives=negatives, **batch)


def grid() -> Grid:
    """All of it."""
    unique = {each.name: each for each in listed()}
    return Grid("recsys", list(unique.values()), draw, warm_up=WARM_UP, libraries=("torch", "numpy"), huge_pages=False)


def suite() -> Suite:
    """The case that runs the grid."""
    promise = Suite("promise")
    promise.case(
        "prediction-recsys",
        ["-m", "apps.recsys.bench.promise_prediction", "grid"],
        bounds=(*prediction.BOUNDS, Bound("result.judged", at_least=70)),
    )
    return promise


if __name__ == "__main__":
    if sys.argv[1:2] == ["grid"]:
        sys.exit(prediction.main(grid, sys.argv[2:]))
    sys.exit(suite().main())
