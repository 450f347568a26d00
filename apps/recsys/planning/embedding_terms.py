"""Memory terms of fitting an ``embedding`` model: its step, traced on fake tensors, and its other arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from apps.recsys.data.csr_store import BLOCK
from apps.recsys.models.embedding.embedding_config import POOL, EmbeddingConfig
from apps.recsys.models.scan.stored import writing_bytes
from apps.recsys.planning.baselines import TRACING
from apps.recsys.planning.ranking_terms import VALUE_BYTES
from common.compression.row_formats import FORMATS
from common.memory.costs import trace
from common.memory.costs.probes import Probe
from common.memory.footprint import Term
from common.training.distributed.row_files import BLOCK_BYTES
from common.training.distributed.world import World

LIBRARIES = ("torch", "numpy")
"""Libraries whose versions decide the cost of a step."""
FRAGMENTATION = 0.8
"""Free memory in the heap as a share of a step's live tensors (0.3 to 0.9 measured, with 1,024 and 4,096 negatives)."""
POOL_BYTES = 24
"""Bytes per pair in the pool of ``batches``: item, user, position in the shuffled order, and temporary arrays."""
CATALOGUE_BYTES = 32
"""Bytes per item in ``batches.Batches`` where items are counted: counts, shares, their sums, correction and prior."""
RANK_BYTES = 28
"""Bytes per row of a ``frequency`` table while ranks are computed: counts, their order, and ranks."""
SVD_COPIES = 5
"""Copies of the singular vectors at the same time: the basis, its product, and the QR decomposition."""
WINDOW_BYTES = 64
"""Bytes per position in the windows of a batch while they are made."""
TABLE_ROWS, WHOLE, SHARED = "table_rows", "whole", "shared"
"""A knob of several ranks and its values: each has the whole tables, or a range of their rows."""
EXCHANGE = 1.25
"""Time of a step with shared rows over that with whole tables, in which they are not exchanged before a step."""
BLOCKS_SENT = 2
"""Blocks of rows (``row_files``) at the same time: one that is received, and the one before, which is written."""


SCORED_ROWS = 1 << 12
"""Rows of a shared table that are scored at a time: 1 MiB of 64 numbers."""
UNPRICED = {"learning_rate": 1.0, "temperature": 1.0, "margin": 0.0, "negative_weight": 1.0, "popularity": 0.0}
"""Hyper-parameters that change no size. They are the same in all probes, so other values need no new measurement."""


def priced(config: EmbeddingConfig, *, users: int, interactions: int) -> EmbeddingConfig:
    """The network with its largest batch: an epoch of a small table has fewer windows than ``config.batch``.

    Parameters
    ----------
    config
        The network.
    users, interactions
        Their numbers, as far as training sees them.
    """
    windows = -(-(interactions + (config.targets - 1) * users) // config.targets)
    return replace(config, batch=max(1, min(config.batch, windows)))


def probe(config: EmbeddingConfig, *, micro_batch: int, amp: str, threads: int) -> Probe:
    """The probe that prices a training step.

    Parameters
    ----------
    config
        The network (``priced``).
    micro_batch
        Windows that go through the network together.
    amp
        As ``make_step``.
    threads
        Threads that compute.
    """
    return trace.probe(
        "apps.recsys.planning.embedding_terms:prepare",
        warm_up=TRACING,
        libraries=LIBRARIES,
        threads=threads,
        config=asdict(config) | UNPRICED,
        micro_batch=min(micro_batch, config.batch),
        amp=amp,
    )


def prepare(*, config: Mapping[str, Any], micro_batch: int, amp: str) -> trace.Prepared:
    """Make a training step on the largest batch, which a probe's child traces."""
    from apps.recsys.models.embedding.model import largest_batch, make_step

    network_config = EmbeddingConfig(**config)
    network, optimizer, step = make_step(network_config, micro_batch=micro_batch, amp=amp)
    batch = largest_batch(network_config)
    return network, optimizer, lambda: step(batch)


PRIOR_COLUMNS = 9
"""Columns of a prior: itself, and the memory of sampling items by it, in units of a float32 column."""


def columns(manifest: Mapping[str, Any]) -> int:
    """Numbers per item in a loaded model, by ``factors`` and ``hyper`` of its manifest."""
    hyper = manifest["hyper"]
    return int(manifest["factors"]) * int(hyper.get("tables", 1)) + (PRIOR_COLUMNS if hyper.get("prior") else 0)


def table_terms(config: EmbeddingConfig, *, phases: tuple[str, ...]) -> list[Term]:
    """Terms of the tables while they train: weights, and one number per row for the optimiser."""
    tables = config.layouts
    terms = [
        Term("tables", sum(table.weights for table in tables), "analytic", phases),
        Term("optimizer state", sum(table.optimizer for table in tables), "analytic", phases),
    ]
    if config.table not in FORMATS:
        dense = 4 * config.tables * config.items * config.factors
        terms.append(Term("item factors to write", dense, "analytic", ("write",)))
    return terms


def table_rows(config: EmbeddingConfig, world: World) -> tuple[str, ...]:
    """Values of the knob ``TABLE_ROWS``: made tables are small, so only those that store each row are shared out."""
    return (WHOLE, SHARED) if world.size > 1 and config.table in FORMATS else (WHOLE,)


def of_largest_share(config: EmbeddingConfig, world: World) -> EmbeddingConfig:
    """The network with as many rows as the rank has that has most."""
    return replace(config, items=world.largest_share(config.items), users=world.largest_share(config.users))


def shared_terms(config: EmbeddingConfig, world: World, *, block: int, hidden: int, longest: int) -> list[Term]:
    """Terms of tables whose rows are shared out, of their checkpoints and of their validation.

    Parameters
    ----------
    config
        The network.
    world
        The ranks.
    block
        Users that are ranked at a time.
    hidden
        Number of users with hidden items.
    longest
        Largest number of items of one user.
    """
    own, validate = of_largest_share(config, world), ("validate",)
    block = min(block, hidden)
    width = config.factors + 1
    return [
        *table_terms(own, phases=("fit", "validate", "write")),
        Term("rows on their way", BLOCKS_SENT * BLOCK_BYTES, "analytic", ("fit", "validate", "write")),
        Term("codes to write", writing_bytes(config.items, config.factors), "analytic", ("write",)),
        Term("scores", 4 * block * own.items, "analytic", validate),
        Term("top-k workspace", 6 * own.items, "analytic", validate),
        Term("block of scores", 4 * SCORED_ROWS * (width + 2 * block), "analytic", validate),
        Term("histories", block * 4 * width + 3 * 4 * width * longest, "analytic", validate),
        Term("sample of items", 4 * PRIOR_COLUMNS * config.items * bool(config.users), "analytic", validate),
        Term("values of users", VALUE_BYTES * hidden, "analytic", validate),
    ]


def without(phase: str, terms: Sequence[Term]) -> list[Term]:
    """Terms of a command that does not have a phase."""
    others = [replace(term, phases=tuple(one for one in term.phases if one != phase)) for term in terms]
    return [term for term in others if term.phases]


def fixed_input_terms(config: EmbeddingConfig) -> list[Term]:
    """Terms of ``table_codes.fixed_inputs``, in the phase ``arrange``: ranks, or a truncated SVD."""
    arrange, rows = ("arrange",), config.items + config.users
    if config.table == "frequency":
        return [Term("frequencies", RANK_BYTES * rows, "analytic", arrange)]
    if config.table == "pq":
        rank = max(table.fixed for table in config.layouts)
        return [
            Term("singular vectors", SVD_COPIES * 4 * rank * rows, "analytic", arrange),
            Term("block of the SVD", 4 * rank * BLOCK, "analytic", arrange),
        ]
    return []


def step_terms(
    config: EmbeddingConfig,
    step: Mapping[str, float],
    *,
    interactions: int,
    longest: int,
    after: Sequence[str],
    shared: bool = False,
) -> list[Term]:
    """Terms of a step and of its batches, in the phase ``fit``.

    Parameters
    ----------
    config
        The network (``priced``).
    step
        Result of the probe of the step.
    interactions
        Number of interactions that training sees.
    longest
        Largest number of items of one user.
    after
        Phases after a step.
    shared
        True if rows of the tables are shared out: their checkpoint is a term of ``shared_terms``.
    """
    fit, lasting = ("fit",), ("fit", *after)
    pool = min(interactions, POOL + BLOCK + longest)
    return [
        Term("activations", int(step["activations"]), "replayed", fit),
        Term("fragments of the heap", int(FRAGMENTATION * step["activations"]), "measured", fit),
        Term("workspace", int(step["workspace"]), "replayed", fit),
        Term("kernels", int(step["kernels"]), "measured", lasting),
        Term("small blocks", int(step["unseen"]), "measured", lasting),
        Term("pool of pairs", POOL_BYTES * pool, "analytic", fit),
        Term("next batch", WINDOW_BYTES * config.batch * config.width, "analytic", fit),
        Term("catalogue", CATALOGUE_BYTES * config.items * config.counts_items, "analytic", fit),
        Term("checkpoint", 0 if shared else sum(each.total for each in config.layouts), "analytic", (*fit, "validate")),
    ]
