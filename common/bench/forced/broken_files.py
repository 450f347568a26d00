"""Run a command on damaged copies of a folder: each has to end with a documented exit code, in one line and in time."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from common.bench.forced.damage import damaged
from common.errors import EXIT_BAD_INPUT, EXIT_DOES_NOT_FIT, EXIT_OK, EXIT_USAGE

DOCUMENTED = (EXIT_OK, EXIT_USAGE, EXIT_DOES_NOT_FIT, EXIT_BAD_INPUT)
HANG_SECONDS = 10
"""Seconds a command may take beyond those of the undamaged folder."""
HEADER = 400
"""Bytes at the beginning of a file among which most damage is done."""
FAULTS_KEPT = 20
MODELS, CACHES = 800, 200
TOO_LONG = "took too long"


def copy_with_damage(folder: Path, copy: Path, number: int) -> Path:
    """Copy ``folder`` and damage one of its files, both chosen by ``number``; returns the damaged file."""
    random = np.random.default_rng([7, number])
    shutil.copytree(folder, copy)
    files = sorted(path for path in copy.rglob("*") if path.is_file() and path.stat().st_size > 0)
    path = files[int(random.integers(len(files)))]
    path.write_bytes(damaged(path.read_bytes(), random, header=HEADER))
    return path


def campaign(
    folder: Path, command: Callable[[Path], Sequence[object]], count: int, *, first: int = 0, cache: bool = False
) -> dict[str, Any]:
    """Run ``command`` on ``count`` damaged copies of ``folder``.

    Parameters
    ----------
    command
        Called with the copy; returns the module and its arguments.
    first
        Number of the first copy.
    cache
        True if ``folder`` is the user's cache (``XDG_CACHE_HOME``) rather than an argument of the command.

    Returns
    -------
    dict
        ``runs``, ``exits`` by code, ``slowest`` in seconds, ``failed``, and the first ``faults``.
    """
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as empty:  # a damaged cost is measured anew
        _run(Path(empty) if cache else folder, command, cache=cache, seconds=600)
    limit = HANG_SECONDS + (time.monotonic() - began)

    def one(number: int) -> tuple[int, float, str]:
        with tempfile.TemporaryDirectory() as scratch:
            path = copy_with_damage(folder, Path(scratch) / folder.name, number)
            start = time.monotonic()
            code, text = _run(Path(scratch) / folder.name, command, cache=cache, seconds=limit)
            fault = _fault(code, text)
            name = path.relative_to(Path(scratch) / folder.name)
            return code, time.monotonic() - start, f"{number} ({name}): {fault}" if fault else ""

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        ended = list(pool.map(one, range(first, first + count)))
    # What took too long comes last: on a busy machine it may be many.
    faults = sorted((fault for _, _, fault in ended if fault), key=lambda fault: fault.endswith(TOO_LONG))
    return {
        "runs": len(ended),
        "exits": dict(sorted(Counter(str(code) for code, _, _ in ended).items())),
        "slowest": round(max(seconds for _, seconds, _ in ended), 2),
        "failed": len(faults),
        "faults": faults[:FAULTS_KEPT],
    }


def run_campaigns(campaigns: Callable[[int, int], Iterator[tuple[str, dict[str, Any]]]], argv: Sequence[str]) -> int:
    """Run campaigns as a program: a line of JSON on stdout for each, once it is done.

    Parameters
    ----------
    campaigns
        Called with the numbers of damaged models and of damaged caches; yields names and counts.
    argv
        The two numbers; empty: ``MODELS`` and ``CACHES``.

    Returns
    -------
    int
        1 if a command ended otherwise than documented.
    """
    failed = 0
    for name, counts in campaigns(*map(int, argv or (MODELS, CACHES))):
        sys.stdout.write(json.dumps({name: counts}) + "\n")
        sys.stdout.flush()
        failed += counts["failed"]
    return int(failed > 0)


def _run(folder: Path, command: Callable[[Path], Sequence[object]], *, cache: bool, seconds: float) -> tuple[int, str]:
    variables = {"XDG_CACHE_HOME": str(folder)} if cache else {}
    argv = [sys.executable, "-m", *map(str, command(folder))]
    try:
        done = subprocess.run(
            argv,
            env=os.environ | variables,
            capture_output=True,
            timeout=seconds,
            stdin=subprocess.DEVNULL,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return -1, TOO_LONG
    return done.returncode, done.stderr.decode("utf-8", "replace")


def _fault(code: int, text: str) -> str:
    if code not in DOCUMENTED:
        return f"exit {code}: {text[-300:]}"
    return f"a traceback: {text[-300:]}" if "traceback" in text.lower() else ""
