"""``recsys size``: what training, evaluation, lists and serving will need, before any data exists."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from apps.recsys.planning.sizing.prices import SIZING, Need, SizeWorkload, needs
from apps.recsys.planning.sizing.request import SizeRequest
from common.cli.session import CommandSession
from common.memory.costs.store import CostStore
from common.memory.process.budget import MemoryBudget, format_size


def workload(request: SizeRequest, budget: MemoryBudget) -> SizeWorkload:
    """The work; nothing is read."""
    return SizeWorkload(request)


def warm_up(request: SizeRequest) -> str:
    """Name of the warm-up function."""
    return SIZING


def execute(session: CommandSession[SizeRequest, SizeWorkload]) -> Mapping[str, Any]:
    """Print a line for each command: its predicted peak and ceiling at full speed, and its least ceiling."""
    request = session.request
    with session.phase("size"):
        costs = CostStore(walled=True).collect(session.workload.probes({}), ceiling=session.budget.host_bytes)
        found = list(needs(request, costs))
        assumed = {
            "items": request.items,
            "users": request.users,
            "interactions": request.interactions,
            "longest": request.longest,
            "kind": request.model.kind,
            "factors": request.model.factors,
            "split": request.split,
            "threads": request.threads,
        }
        session.say(
            f"assumed: {request.users:,} users, {request.items:,} items, {request.interactions:,} interactions, at most"
            f" {request.longest:,} of one user; {request.model.kind}, {request.model.factors} factors, split"
            f" {request.split}, {request.threads} threads"
        )
        if request.prints:
            _print(found)
    return {"assumed": assumed, "commands": [_recorded(need) for need in found]}


def _recorded(need: Need) -> dict[str, Any]:
    """A line as the record holds it."""
    return {
        "command": need.command,
        "predicted_peak_bytes": need.fastest.predicted_peak_bytes,
        "peak_phase": need.fastest.footprint.peak_phase,
        "ceiling_bytes": need.fastest.feasible_bytes,
        "least_ceiling_bytes": need.least.feasible_bytes,
        "knobs": dict(need.fastest.knobs),
        "least_knobs": dict(need.least.knobs),
    }


def _print(found: list[Need]) -> None:
    width = max(len(need.command) for need in found)
    sys.stdout.write(f"{'command':<{width}}  {'peak':>11}  {'full speed':>11}  {'least':>11}  largest terms\n")
    for need in found:
        sizes = (need.fastest.predicted_peak_bytes, need.fastest.feasible_bytes, need.least.feasible_bytes)
        terms = ", ".join(f"{term.name} {format_size(term.bytes)}" for term in need.fastest.footprint.at_peak()[:3])
        columns = "  ".join(f"{format_size(size):>11}" for size in sizes)
        sys.stdout.write(f"{need.command:<{width}}  {columns}  {terms}\n")
