"""Prices of everything that is done with a model of a size, and of finding them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from apps.recsys.planning.baselines import LIBRARIES
from apps.recsys.planning.sizing.assumed import workloads
from apps.recsys.planning.sizing.request import SizeRequest
from common.memory.costs import baseline
from common.memory.costs.probes import Costs, Probe
from common.memory.footprint import Footprint, Term
from common.memory.plan import planner
from common.memory.plan.plan import OneSetting, Plan, Setting
from common.memory.plan.planner import Workload

SIZING = "apps.recsys.warm_up:sizing"
"""Name of the warm-up function."""
PLANS_BYTES = 1 << 20
"""Memory of the settings and their plans."""


@dataclass(frozen=True, slots=True)
class Need:
    """What a command needs."""

    command: str
    fastest: Plan
    """The plan of its fastest setting."""
    least: Plan
    """The plan that needs least."""


@dataclass(frozen=True, slots=True)
class SizeWorkload(OneSetting):
    """``recsys size``: arithmetic, once the costs of the commands are measured."""

    request: SizeRequest
    name: str = "recsys size"

    def probes(self, setting: Setting) -> Sequence[Probe]:
        """The own baseline, and all that the prices of the commands need."""
        own = baseline.probe(SIZING, libraries=LIBRARIES, threads=self.request.threads)
        return [own, *(probe for _, work in workloads(self.request) for probe in _measured(work))]

    def footprint(self, setting: Setting, costs: Costs) -> Footprint:
        """The process alone: nothing of the assumed size is allocated."""
        own = baseline.terms(costs, self.probes(setting)[0])
        return Footprint.of([*own, Term("plans", PLANS_BYTES, "measured", ("size",))])


def needs(request: SizeRequest, costs: Costs) -> Iterator[Need]:
    """Yield the needs of each command, from the results of ``SizeWorkload.probes``."""
    for command, work in workloads(request):
        settings = _ordered(work)
        measured = set(_measured(work))
        plans = [
            Plan(work.name, tuple(sorted(setting.items())), work.footprint(setting, costs))
            for setting in settings
            if measured.issuperset(work.probes(setting))
        ]
        yield Need(command, plans[0], min(plans, key=lambda plan: plan.needed_bytes))


def _ordered(work: Workload) -> list[Setting]:
    """The settings in the planner's order, the fastest first."""
    return [setting for _, _, setting in planner.ordered(work)]


def _measured(work: Workload) -> list[Probe]:
    """The probes of the fastest setting and of the slowest: one may take seconds, where a step is traced."""
    settings = _ordered(work)
    return [*work.probes(settings[0]), *work.probes(settings[-1])]
