"""Ways in which a child process can end, by name: as a probe, or ``python -m common.bench.forced_endings WAY``.

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


def end(way: str) -> dict[str, Any]:
    """End this process, or raise, in one of the ways; ``answer`` returns."""
    if way == "segfault":
        os.kill(os.getpid(), signal.SIGSEGV)
    elif way == "terminate":
        os.kill(os.getpid(), signal.SIGTERM)
    elif way == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif way == "leave":
        sys.exit(7)
    elif way == "allocate":
        bytearray(b"x") * (1 << 62)
    elif way == "fill":
        blocks = [bytearray(b"x") * MIB for _ in range(4096)]
        return {"blocks": len(blocks)}
    elif way == "decline":
        raise NotAvailable("not here")
    elif way == "misuse":
        raise UsageError("no such option")
    elif way == "abort":
        sys.stderr.write("terminate called after throwing an instance of 'std::bad_alloc'\n")
        sys.stderr.flush()
        os.abort()
    elif way == "fail":
        raise ValueError("a wrong value")
    return {"bytes": 1}


def main() -> None:
    """Stand behind the walls that the parent asks for, then end."""
    child.Walls.of_this_process().stand()
    end(sys.argv[1])


if __name__ == "__main__":
    child.run_work(main)
