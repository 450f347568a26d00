"""The child of ``common.memory.costs.store``: run the probes that it reads on stdin.

A watchdog on its resident size and the walls of ``child.Walls`` keep it below its ceiling. As in a command, the warm-up
runs before the walls are set, because libraries reserve memory at first use that they hardly touch.
"""

import json
import sys
from typing import Any

from common.errors import BadInput, UsageError
from common.memory.costs.probes import DeferredProbe, NotAvailable, resolve
from common.memory.process import child, glibc, guard, no_compiler
from common.memory.process.budget import MIB

RESERVED = 512 * MIB
"""Bytes that a probe may reserve beyond its ceiling. Engines reserve 300 MiB that they hardly touch, and the watchdog
sees resident memory only."""


def main() -> None:
    """Run the probes on stdin in this process, and write each answer as a line of JSON on stdout."""
    glibc.pin_thresholds()
    no_compiler.leave_out()
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
    """Run one probe; returns its results, or the reason why it has none."""
    try:
        return {"costs": resolve(function)(**arguments)}
    except DeferredProbe as deferred:
        return deferred.to_json()
    except NotAvailable as absent:
        return {"unavailable": str(absent)}
    except UsageError as error:
        return {"usage": str(error)}
    except BadInput as error:
        return {"input": str(error), "public": error.public}


if __name__ == "__main__":
    child.run_work(main)
