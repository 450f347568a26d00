"""What fitting an ``embedding`` model holds: its own step, traced on fake tensors, and the arrays beside it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from apps.recsys.data.csr_store import BLOCK
from apps.recsys.models.embedding.embedding_config import POOL, EmbeddingConfig
from common.compression.row_formats import FORMATS
from common.memory.costs.probes import Probe
from common.memory.footprint import Term

LIBRARIES = ("torch", "numpy")
FRAGMENTATION = 0.8
"""What the heap holds beside a step's live tensors, as a share of them (0.3 to 0.9 measured, with 1,024 and 4,096
negatives)."""
POOL_BYTES = 24
"""A pair in the pool of ``batches``: item, user, place in the shuffled order, and what making those took."""
CATALOGUE_BYTES = 37
"""An item in ``batches.Batches``: counts, shares, their sums, the correction, two arrays of scratch."""
PLACES_BYTES = 28
"""A row of a ``frequency`` table while its place is found: its count, in order, and places."""
SVD_COPIES = 5
"""Singular vectors held at once: the basis, its product, and what turning that into a basis takes."""
WINDOW_BYTES = 48
"""A place in the windows of a batch while they are made."""


UNPRICED = {"learning_rate": 1.0, "temperature": 1.0, "margin": 0.0, "negative_weight": 1.0, "popularity": 0.0}
"""Settings of a config that change no size: all alike in a probe, so that one is not measured again for another."""


def probe(config: EmbeddingConfig, *, micro_batch: int, amp: str, threads: int) -> Probe:
    """The traced step as a probe."""
    parts = 1 if micro_batch >= config.batch else 2
    return Probe.of(
        "apps.recsys.planning.embedding_terms:measure",
        libraries=LIBRARIES,
        threads=threads,
        config=asdict(config) | UNPRICED,
        micro_batch=micro_batch,
        parts=parts,
        amp=amp,
        workers=threads,
    )


def measure(*, config: Mapping[str, Any], micro_batch: int, parts: int, amp: str, workers: int) -> dict[str, float]:
    """Price a training step on the largest batch (``common.memory.costs.trace``); called in a probe's child."""
    import torch

    from apps.recsys.models.embedding.model import largest_batch, make_step
    from common.memory.costs import trace

    torch.set_num_threads(workers)
    what = EmbeddingConfig(**config)

    def prepare() -> trace.Prepared:
        network, optimizer, step = make_step(what, micro_batch=micro_batch, amp=amp)
        batch = largest_batch(what)
        return network, optimizer, lambda: step(batch)

    return trace.price(prepare)


PRIOR_COLUMNS = 9
"""A prior, and in bytes of float32 what drawing the compared items by it holds for a moment."""


def columns(made: Mapping[str, Any]) -> int:
    """Numbers of an item in a loaded model, by its manifest."""
    hyper = made["hyper"]
    return int(made["factors"]) * int(hyper.get("tables", 1)) + (PRIOR_COLUMNS if hyper.get("prior") else 0)


def table_terms(config: EmbeddingConfig, *, phases: tuple[str, ...]) -> list[Term]:
    """The tables while they train: weights, and one number a row for the optimiser."""
    tables = config.layouts
    terms = [
        Term("tables", sum(table.weights for table in tables), "analytic", phases),
        Term("optimizer state", sum(table.optimizer for table in tables), "analytic", phases),
    ]
    if config.table not in FORMATS:
        dense = 4 * config.tables * config.items * config.factors
        terms.append(Term("item factors to write", dense, "analytic", ("write",)))
    return terms


def fixed_input_terms(config: EmbeddingConfig) -> list[Term]:
    """What ``known.gather`` holds, in the phase ``arrange``: counts and their order, or a truncated SVD of a block."""
    arrange, rows = ("arrange",), config.items + config.users
    if config.table == "frequency":
        return [Term("frequencies", PLACES_BYTES * rows, "analytic", arrange)]
    if config.table == "pq":
        rank = max(table.fixed for table in config.layouts)
        return [
            Term("singular vectors", SVD_COPIES * 4 * rank * rows, "analytic", arrange),
            Term("block of the SVD", 4 * rank * BLOCK, "analytic", arrange),
        ]
    return []


def step_terms(config: EmbeddingConfig, step: Mapping[str, float], *, interactions: int, longest: int) -> list[Term]:
    """A step with its batch, and what the batches are made from, in the phase ``fit``."""
    fit = ("fit",)
    pool = min(interactions, POOL + BLOCK + longest)
    return [
        Term("activations", int(step["activations"]), "replayed", fit),
        Term("fragments of the heap", int(FRAGMENTATION * step["activations"]), "measured", fit),
        Term("workspace", int(step["workspace"]), "replayed", fit),
        Term("kernels", int(step["kernels"]), "measured", ("fit", "validate", "evaluate", "write")),
        Term("small blocks", int(step["unseen"]), "measured", ("fit", "validate", "evaluate", "write")),
        Term("pool of pairs", POOL_BYTES * pool, "analytic", fit),
        Term("next batch", WINDOW_BYTES * config.batch * config.width, "analytic", fit),
        Term("catalogue", CATALOGUE_BYTES * config.items, "analytic", fit),
        Term("checkpoint", sum(table.total for table in config.layouts), "analytic", ("fit", "validate")),
    ]
