"""The child of ``common.memory.costs.store``: measures the probes that it reads on stdin.

It is kept below its ceiling by a watchdog on its resident size and by the walls of ``child.Walls``. Libraries load
before the walls stand, as in the command itself: what they reserve at first use is not data.
"""

import json
import sys
from typing import Any

from common.errors import UsageError
from common.memory.costs.probes import DeferredProbe, NotAvailable, resolve
from common.memory.process import child, glibc, guard
from common.memory.process.budget import MIB

RESERVED = 512 * MIB
"""What a probe may reserve beyond its ceiling: engines reserve much that they hardly touch, and the watchdog looks at
what is touched."""


def main() -> None:
    """Run the probes given on stdin in this process, and write each answer as a line of JSON on stdout."""
    glibc.pin_thresholds()
    work = [(function, json.loads(arguments)) for function, arguments in json.load(sys.stdin)]
    walls = child.Walls.of_this_process()
    guard.lift_soft_wall()
    if walls.ceiling is None:
        guard.leave_hard_wall()
    else:
        walls.watch()
    if warm_up := work[0][1].get("warm_up"):
        resolve(warm_up)()
    walls.stand(slack=RESERVED)
    for function, arguments in work:
        sys.stdout.write("\n" + json.dumps(_answer(function, arguments)) + "\n")
        sys.stdout.flush()


def _answer(function: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """One probe's numbers, or why there are none; libraries may write other lines on stdout."""
    try:
        return {"costs": resolve(function)(**arguments)}
    except DeferredProbe as deferred:
        return deferred.to_json()
    except NotAvailable as absent:
        return {"unavailable": str(absent)}
    except UsageError as error:
        return {"usage": str(error)}


if __name__ == "__main__":
    child.run_work(main)
