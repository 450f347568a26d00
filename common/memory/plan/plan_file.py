"""Read a plan from ``--plan``, perhaps edited. Only its knobs are used; they are checked and priced again."""

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from common.errors import DoesNotFit
from common.memory.costs.probes import ProbeFailed
from common.memory.costs.store import CostStore
from common.memory.plan.divisible import Replaceable
from common.memory.plan.plan import Knob, Plan, Setting
from common.memory.plan.planner import Workload, price
from common.memory.process.budget import MemoryBudget


def read_work(text: str, workload: Workload, budget: MemoryBudget, costs: CostStore) -> tuple[Plan, Workload]:
    """Read a plan for a workload, or for what the user allows in its place; otherwise as ``read_plan``.

    Returns
    -------
    tuple
        The plan, and the workload that it is for.
    """
    try:
        return read_plan(text, workload, budget, costs), workload
    except ValueError:
        for substitute in workload.substitutes() if isinstance(workload, Replaceable) else ():
            with suppress(ValueError):
                return replace(read_plan(text, substitute, budget, costs), note=substitute.note), substitute
        raise


def read_plan(text: str, workload: Workload, budget: MemoryBudget, costs: CostStore) -> Plan:
    """Check the knobs of a plan against those that the command line leaves open, and price them.

    Parameters
    ----------
    text
        JSON of a plan, as ``--dry-run --json`` writes it.
    workload
        The command's work.
    budget
        The ceiling.
    costs
        Source of the costs.

    Raises
    ------
    ValueError
        If the text is not a plan, is for another command, or has a knob that the command line does not leave open.
    DoesNotFit
        If the setting does not fit.
    """
    try:
        data = json.loads(text)
        name, knobs = data["workload"], dict(data["knobs"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"not a plan: {type(error).__name__} {error}") from None
    if name != workload.name:
        raise ValueError(f"a plan for {name!r}, not for {workload.name!r}")
    offered = list(workload.settings())
    _check(knobs, offered)
    try:
        candidate = price(workload, MappingProxyType(knobs), costs, ceiling=budget.host_bytes)
    except ProbeFailed as failure:
        raise DoesNotFit(ceiling=budget.host_bytes, reasons=[str(failure)]) from None
    if candidate.needed_bytes > budget.host_bytes:
        raise DoesNotFit(ceiling=budget.host_bytes, smallest=candidate)
    return candidate


def _check(knobs: Mapping[str, Any], offered: Sequence[Setting]) -> None:
    """Check that a setting is one of those offered, or lies between two that differ from it in one number only.

    Raises
    ------
    ValueError
        With the knob, its value, and what it may be.
    """
    if unknown := sorted(set(knobs) ^ set(offered[0])):
        raise ValueError(f"unknown or missing knobs: {', '.join(unknown)}; expected {', '.join(sorted(offered[0]))}")
    for knob, value in knobs.items():
        choices = list(dict.fromkeys(setting[knob] for setting in offered))
        if type(value) is not type(choices[0]):
            raise ValueError(f"knob {knob}: {value!r} is not {type(choices[0]).__name__}")
        if not _within(value, choices):
            allowed = ", ".join(map(str, choices))
            raise ValueError(f"knob {knob}: {value!r} is not among what the command line leaves open ({allowed})")
    if any(dict(setting) == knobs for setting in offered):
        return
    for knob, value in knobs.items():
        line = [s[knob] for s in offered if all(s[name] == other for name, other in knobs.items() if name != knob)]
        if _within(value, line):
            return
    nearest = max(offered, key=lambda setting: len(knobs.items() & setting.items()))
    wrong = ", ".join(f"{name}={value}" for name, value in nearest.items() if knobs[name] != value)
    raise ValueError(f"its knobs do not go together; the nearest that do have {wrong}")


def _within(value: Knob, choices: Sequence[Knob]) -> bool:
    """Tell whether a value is one of the choices, or a number between the least and the greatest of them."""
    numbers = [choice for choice in choices if not isinstance(choice, str)]
    return value in choices or (bool(numbers) and not isinstance(value, str) and min(numbers) <= value <= max(numbers))
