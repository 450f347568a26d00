"""A server as a user starts it."""

import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def serving(model: Path, *options: object, **process: Any) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A running server in a process group of its own, and its address; what it says before that is dropped."""
    command = [sys.executable, "-m", "apps.recsys", "serve", model, "--port", "0", "--memory", "300MiB", *options]
    words = [str(word) for word in command]
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True, process_group=0, **process) as server:
        assert server.stderr is not None
        said, address = [], None
        try:
            while address is None and (line := server.stderr.readline()):
                said.append(line)
                address = re.search(r"http://(127\.0\.0\.1|\[::1\]|0\.0\.0\.0):\d+", line)
            assert address is not None, "".join(said)
            yield server, address[0]
        finally:
            server.terminate()
