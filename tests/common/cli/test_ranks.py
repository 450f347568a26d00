"""Ceilings and plans of a rank, and of the node that it is on."""

import json
import logging

import pytest

from common.cli import ranks
from common.memory.footprint import Footprint, Term
from common.memory.plan.plan import Plan
from common.memory.process.budget import MIB, MemoryBudget, total_memory
from common.training.distributed.price import ranks_terms
from common.training.distributed.world import LAUNCHER_BYTES, World
from tests.messages import says

PLAN = Plan("imaging train", (("amp", "off"), ("micro_batch", 2)), Footprint.of([Term("x", 400 * MIB, "measured")]))


def test_auto_is_shared_out_and_a_given_ceiling_is_each_ranks() -> None:
    world, node = World(0, 4, 4), 4 * 500 * MIB + LAUNCHER_BYTES
    assert ranks.ceiling(MemoryBudget(node, source="auto"), world).host_bytes == 500 * MIB
    assert ranks.ceiling(MemoryBudget(300 * MIB), world).host_bytes == 300 * MIB


def test_ceilings_that_are_more_than_the_machine_together_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    half = MemoryBudget(total_memory() // 2)
    with caplog.at_level(logging.WARNING, "peakline"):
        ranks.ceiling(half, World(1, 2, 2))
        assert not caplog.records  # the first rank says it
        ranks.ceiling(half, World(0, 2, 2))
    says(caplog.text, "2 ranks", "this machine")


def test_a_plan_says_what_ranks_and_nodes_take() -> None:
    assert ranks.node_text(PLAN, World()) == ""
    says(ranks.node_text(PLAN, World(0, 64)), "64 ranks", "launcher", "164.0 MiB")
    node = ranks.node_text(PLAN, World(0, 8, 4))
    says(node, f"{(4 * PLAN.needed_bytes + LAUNCHER_BYTES) / MIB / 1024:.2f} GiB")


def test_a_plan_is_the_same_where_it_was_sent() -> None:
    received = Plan.received(json.loads(json.dumps(PLAN.to_json())))
    assert (received.knobs, received.footprint, received.needed_bytes) == (
        PLAN.knobs,
        PLAN.footprint,
        PLAN.needed_bytes,
    )


def test_a_rank_keeps_a_bucket_for_every_gradient() -> None:
    assert ranks_terms(World(), 80 * MIB, ("train",)) == []
    buckets, connections = ranks_terms(World(0, 2), 80 * MIB, ("train", "validate"))
    assert (buckets.bytes, buckets.phases) == (80 * MIB, ("train", "validate"))
    many = ranks_terms(World(0, 64), 80 * MIB, ("train",))[1]
    assert connections.bytes < many.bytes < 16 * MIB
