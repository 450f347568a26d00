"""Ways in which a child process can end, by name: as a probe, or ``python -m common.bench.forced.endings WAY``.

Tests start these to see that each end is read as what it is.
"""

import os
import signal
import sys
from typing import Any

from common.errors import UsageError
from common.memory.costs.probes import NotAvailable
from common.memory.process import child
from common.memory.process.budget import MIB

SIGNALS = {"segfault": signal.SIGSEGV, "terminate": signal.SIGTERM, "kill": signal.SIGKILL}
MESSAGES = {
    "abort": "terminate called after throwing an instance of 'std::bad_alloc'",
    "abort-by-assertion": "python: kernel.cpp:7: run: Assertion `n > 0' failed.",
    "no-thread": "libgomp: Thread creation failed: Resource temporarily unavailable",
}
"""Text that a library writes on stderr before it ends the process itself."""
ERRORS = {
    "decline": NotAvailable("not here"),
    "misuse": UsageError("no such option"),
    "fail": ValueError("a wrong value"),
}


def end(way: str) -> dict[str, Any]:
    """End this process, or raise, in one of the ways; ``answer`` returns."""
    if way in SIGNALS:
        os.kill(os.getpid(), SIGNALS[way])
    elif way in MESSAGES:
        sys.stderr.write(MESSAGES[way] + "\n")
        sys.stderr.flush()
        os._exit(1) if way == "no-thread" else os.abort()
    elif way in ERRORS:
        raise ERRORS[way]
    elif way == "leave":
        sys.exit(7)
    elif way == "allocate":
        bytearray(b"x") * (1 << 62)
    elif way == "fill":
        blocks = [bytearray(b"x") * MIB for _ in range(4096)]
        return {"blocks": len(blocks)}
    return {"bytes": 1}


def main() -> None:
    """Stand behind the walls that the parent asks for, then end."""
    child.Walls.of_this_process().stand()
    end(sys.argv[1])


if __name__ == "__main__":
    child.run_work(main)
