"""Run ``recsys serve`` in a cgroup, send it some requests, and stop it; a case of the promise's grid.

``python -m apps.recsys.bench.serving CEILING MODEL ITEM``. Only the server is in the cgroup. Its run record goes to
stdout.
"""

import re
import signal
import subprocess
import sys
import urllib.request
from functools import partial
from pathlib import Path

from common.memory.process import guard

QUESTIONS = ("health", "recommend?history={0}&k=100", "similar?item={0}&k=100")
ROUNDS = 20
"""Number of times each request is sent."""


def run(ceiling: int, model: Path, item: str) -> int:
    """Start the server, send the requests, stop it; returns its exit code, or the number of kills."""
    wall = guard.hard_wall(ceiling)
    command = [sys.executable, "-m", "apps.recsys", "serve", model, "--port", "0", "--memory", ceiling, "--json"]
    with subprocess.Popen(
        [*map(str, command)], stderr=subprocess.PIPE, text=True, preexec_fn=partial(guard.enter, wall)
    ) as server:
        assert server.stderr is not None
        for line in server.stderr:
            if address := re.search(r"http://[\d.]+:\d+", line):
                _ask(address[0], item)
                server.send_signal(signal.SIGTERM)
    killed = guard.take_down(wall)
    return server.returncode or killed


def _ask(address: str, item: str) -> None:
    for _ in range(ROUNDS):
        for question in QUESTIONS:
            with urllib.request.urlopen(f"{address}/{question.format(item)}", timeout=60) as answer:
                answer.read()


if __name__ == "__main__":
    sys.exit(run(int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]))
