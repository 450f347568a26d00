"""The plan of a command whose libraries map more pages than those of the process that was measured.

How many pages of a library a process maps depends on what the kernel has in its cache: a page that is used brings those
around it, as far as they are there. So a baseline of yesterday can be short today.
"""

from common.errors import DoesNotFit
from common.memory.costs.store import CostStore
from common.memory.footprint import Term
from common.memory.plan.plan import Plan
from common.memory.process.meter import file_bytes

GROWN = "libraries, more than was measured"
"""Name of the term."""
USUAL_BYTES = 8 << 20
"""A command may map so much more before its baseline is corrected, so that the next plan has it.

Usual are 0.1 to 2.1 MiB. After another program has read PyTorch's files as a whole, 85 MiB more were mapped than before
(289 MiB)."""
LATER = 1.2
"""What is loaded after the warm-up grows, too: in that run by 14 MiB."""


def amended(plan: Plan, costs: CostStore, warm_up: str, ceiling: int) -> Plan:
    """The plan with what this process maps beyond the baseline's, in all phases.

    Parameters
    ----------
    costs
        With what was measured for the plan.
    warm_up
        The warm-up that has just been run.
    ceiling
        Bytes.

    Raises
    ------
    DoesNotFit
        It is more than usual, and does not fit.
    """
    if warm_up not in costs.baselines:  # measured by an earlier version
        return plan
    baseline, files = costs.baselines[warm_up]
    more = max(0, file_bytes() - files)
    if unusual := more > USUAL_BYTES:
        more = int(LATER * more)
        costs.correct(baseline, more)
    larger = plan.plus(Term(GROWN, more, "measured"))
    if unusual and larger.needed_bytes > ceiling:
        raise DoesNotFit(ceiling=ceiling, smallest=larger)
    return larger if larger.predicted_peak_bytes <= ceiling else plan
