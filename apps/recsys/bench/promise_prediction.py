"""Compare predicted with measured peaks of training steps on embedding tables of 1e5 to 2e6 rows.

There are two kinds of step: that of the ``embedding`` model, whose tables have rows of float32, int8 or int4; and that
of a plain two-tower model with ``torch.nn.Embedding`` tables for users and items and PyTorch's optimisers.
``python -m apps.recsys.bench.promise_prediction`` runs the suite's case, ``... grid`` the grid itself.
"""

import random
import sys
from collections.abc import Iterator
from itertools import product
from typing import TYPE_CHECKING, Any

from apps.recsys.models.embedding.embedding_config import TARGETS, EmbeddingConfig
from common.bench import prediction
from common.bench.harness import Bound, Suite
from common.bench.prediction import Configuration, Grid

if TYPE_CHECKING:
    import torch

    from common.memory.costs.trace import Prepared
    from common.training.gradcache import Batch

TABLES = ("full", "int8", "int4")
LOSSES = ("softmax", "ccl", "bpr")
ROWS = (100_000, 250_000, 500_000, 1_000_000, 2_000_000)
FOREACH = "adamw-foreach"
"""PyTorch's AdamW on lists of tensors; during a step it makes two copies more than the fused one."""
OPTIMIZERS = ("adamw", FOREACH, "adamw8bit", "adafactor", "rowwise_adagrad", "sgd")
MOST_BYTES = 1 << 31
"""Largest table including its optimiser state; the machine is shared."""
WARM_UP = "apps.recsys.bench.promise_prediction:warm_up"


def embedding(*, micro_batch: int, amp: str, **recipe: Any) -> "Prepared":
    """Prepare the step of ``recsys train --model embedding``; ``recipe`` has the fields of ``EmbeddingConfig``."""
    from apps.recsys.models.embedding import model

    config = EmbeddingConfig(**recipe)
    network, optimizer, step = model.make_step(config, micro_batch=micro_batch, amp=amp)
    batch = model.largest_batch(config)
    return network, optimizer, lambda: step(batch)


def towers(
    *, rows: int, factors: int, batch: int, micro_batch: int, negatives: int, amp: str, optimizer: str
) -> "Prepared":
    """Prepare the step of a two-tower model: tables of users and of items, a hidden layer each, sampled softmax."""
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
            scores: torch.Tensor = (items * user[:, None]).sum(2)
            return scores

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
    """Run one small step of each kind; its matrix products are large enough (16x16x16) for PyTorch to use oneDNN."""
    from apps.recsys import warm_up as warm

    warm.reading()
    for optimizer, amp in product(OPTIMIZERS, ("off", "bf16")):
        *_, step = towers(rows=256, factors=32, batch=64, micro_batch=32, negatives=2, amp=amp, optimizer=optimizer)
        step()
    for table, loss, amp in product(TABLES, LOSSES, ("off", "bf16")):
        sizes = {"items": 256, "factors": 32, "batch": 64, "negatives": 32, "window": 4}
        *_, step = embedding(micro_batch=32, amp=amp, table=table, loss=loss, **sizes)
        step()


def _embedding(table: str, rows: int, factors: int, drawn: bool = False, **changes: Any) -> Configuration:
    options: dict[str, Any] = {"loss": "softmax", "batch": 512, "negatives": 1024, "window": 50, "amp": "off"} | changes
    parts = options.pop("parts", 1)
    labels = {
        "network": "embedding",
        "table": table,
        "rows": f"{rows:.1e}",
        "factors": factors,
        "loss": options["loss"],
        "batch": f"{options['batch'] // parts}x{parts}",
        "precision": "float32" if options["amp"] == "off" else options["amp"],
        "history": f"w{options['window']}-n{options['negatives']}",
    }
    arguments = options | {"items": rows, "factors": factors, "table": table, "micro_batch": options["batch"] // parts}
    return Configuration.of(labels, "apps.recsys.bench.promise_prediction:embedding", arguments, drawn)


def _towers(optimizer: str, rows: int, factors: int, drawn: bool = False, **changes: Any) -> Configuration:
    options: dict[str, Any] = {"batch": 4096, "negatives": 32, "amp": "off"} | changes
    parts = options.pop("parts", 1)
    labels = {
        "network": "towers",
        "optimizer": optimizer,
        "rows": f"{rows:.1e}",
        "factors": factors,
        "batch": f"{options['batch'] // parts}x{parts}",
        "precision": "float32" if options["amp"] == "off" else options["amp"],
        "history": f"n{options['negatives']}",
    }
    arguments = options | {
        "rows": rows,
        "factors": factors,
        "optimizer": optimizer,
        "micro_batch": options["batch"] // parts,
    }
    return Configuration.of(labels, "apps.recsys.bench.promise_prediction:towers", arguments, drawn)


def listed() -> Iterator[Configuration]:
    """Yield every table and optimiser with every other axis."""
    for table, rows in product(TABLES, ROWS):
        yield _embedding(table, rows, 64 if table == "full" else 128)
    for table, loss in product(TABLES, LOSSES):
        yield _embedding(table, 500_000, 128, loss=loss, batch=1024)
        yield _embedding(table, 250_000, 128, loss=loss, batch=1024, parts=4, amp="bf16")
    for optimizer in OPTIMIZERS:
        for rows, factors in ((100_000, 128), (250_000, 128), (500_000, 64), (1_000_000, 64)):
            yield _towers(optimizer, rows, factors)
        yield _towers(optimizer, 200_000, 96, amp="bf16")
        yield _towers(optimizer, 500_000, 48, parts=4)


def draw(source: random.Random) -> Configuration:
    """Draw a configuration at random."""
    while True:
        rows, factors = round(10 ** source.uniform(5.3, 6.3)), source.choice((32, 48, 64, 96, 128))
        batch = {"batch": source.choice((1024, 2048, 4096, 8192)), "parts": source.choice((1, 2, 4))}
        amp = source.choice(("off", "bf16"))
        if source.random() < 0.5 and rows * factors * 4 * 2 < MOST_BYTES:
            return _embedding(
                source.choice(TABLES),
                rows,
                factors,
                drawn=True,
                loss=source.choice(LOSSES),
                window=source.choice((20, 50, 80)),
                negatives=source.choice((256, 1024, 2048)),
                amp=amp,
                **(batch | {"batch": batch["batch"] // TARGETS}),  # a window holds TARGETS pairs
            )
        if rows * factors * 4 * 6 < MOST_BYTES:
            negatives = source.choice((8, 16, 32))
            return _towers(source.choice(OPTIMIZERS), rows, factors, drawn=True, amp=amp, negatives=negatives, **batch)


def grid() -> Grid:
    """Return the whole grid."""
    unique = {each.name: each for each in listed()}
    return Grid("recsys", list(unique.values()), draw, warm_up=WARM_UP, libraries=("torch", "numpy"), huge_pages=False)


def suite() -> Suite:
    """Declare the case that runs the grid."""
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
