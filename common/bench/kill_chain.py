"""Kill a command at random instants, give it again, and compare what is there in the end with an undisturbed run.

``python -m common.bench.kill_chain OUT [--kills 20] [--seed 0] -- MODULE ARGUMENTS...``, where OUT is the file or the
folder that the command writes. About half of the kills are of all its processes at once, the supervisor included; the
others are of the youngest process only. A run that ends before its kill is removed and begun again.
"""

import argparse
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from common.bench.harness import Bound, Suite

KILLS = 20


def start(command: Sequence[str]) -> "subprocess.Popen[bytes]":
    """Start the command in its own session."""
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)


def _members(session: int) -> list[int]:
    """Return the ids of a session's processes."""
    members = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[3]) == session:
                members.append(int(entry.name))
    return members


def kill(process: "subprocess.Popen[bytes]", *, all_of_it: bool) -> None:
    """Kill all processes, or only the youngest: the worker, or a child that it is waiting for."""
    members = _members(process.pid)
    for member in members if all_of_it else [max(members, default=process.pid)]:
        try:
            os.kill(member, signal.SIGKILL)
        except ProcessLookupError:
            continue
    process.wait()
    while _members(process.pid):  # a process that lost its parent ends by itself
        time.sleep(0.02)


def run_and_kill(command: Sequence[str], random: np.random.Generator, seconds: float) -> tuple[bool, int]:
    """Run a command and kill it at a random instant within ``seconds``; half of the kills are of all its processes.

    Returns
    -------
    tuple
        True if it was killed, False if it ended before that; and its exit code.
    """
    process, killed = start(command), False
    try:
        process.wait(timeout=float(random.uniform(0, seconds)))
    except subprocess.TimeoutExpired:
        kill(process, all_of_it=bool(random.random() < 0.5))
        killed = True
    return killed, process.returncode


def digests(out: Path) -> dict[str, str]:
    """Return the SHA-256 of a file, or of all files below a folder, by relative path."""
    paths = [out] if out.is_file() else [path for path in out.rglob("*") if path.is_file()]
    return {str(path.relative_to(out.parent)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def _remove(out: Path) -> None:
    if out.is_dir():
        shutil.rmtree(out)
    out.unlink(missing_ok=True)


def _undisturbed(command: Sequence[str], out: Path) -> tuple[dict[str, str], float]:
    """Run the command from the beginning; returns the digests of what it wrote, and its seconds."""
    _remove(out)
    began = time.monotonic()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return digests(out), time.monotonic() - began


def chain(command: Sequence[str], out: Path, *, kills: int, seed: int) -> dict[str, Any]:
    """Kill and resume, then finish.

    Returns
    -------
    dict
        ``kills``; ``ended``, how many runs ended before their kill; ``compared``, the names of the files that two
        undisturbed runs write alike; ``different``, those of them that the disturbed run wrote otherwise or not at all;
        ``left_over``, files that an undisturbed run does not write.
    """
    first, _ = _undisturbed(command, out)  # measures the costs, which are cached then
    expected, seconds = _undisturbed(command, out)
    compared = sorted(name for name, digest in expected.items() if first.get(name) == digest)
    random = np.random.default_rng(seed)
    done = ended = 0
    _remove(out)
    while done < kills:
        killed, code = run_and_kill(command, random, seconds)
        done += killed
        if code == 0:
            ended += 1
            _remove(out)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return {"kills": done, "ended": ended} | _differences(digests(out), expected, compared)


def _differences(final: Mapping[str, str], expected: Mapping[str, str], compared: Sequence[str]) -> dict[str, Any]:
    return {
        "compared": list(compared),
        "different": [name for name in compared if final.get(name) != expected[name]],
        "left_over": sorted(final.keys() - expected.keys()),
        "faults": sum(final.get(name) != expected[name] for name in compared)
        + len(final.keys() ^ expected.keys())
        + (not compared),
    }


NO_FAULTS = Bound("result.faults", at_most=0)


def declare(suite: Suite, name: str, out: Path, command: Sequence[object]) -> None:
    """Declare a case that kills a command (module and arguments), which writes ``out``."""
    suite.case(name, ["-m", "common.bench.kill_chain", out, "--", *command], bounds=(NO_FAULTS,), exits=(0, 1))


def main(argv: Sequence[str]) -> int:
    """Run the command line and print the result as JSON; returns 1 if anything differs."""
    parser = argparse.ArgumentParser(prog="kill_chain", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("out", type=Path, help="what the command writes")
    parser.add_argument("--kills", type=int, default=KILLS, metavar="N", help=f"number of kills (default {KILLS})")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the instants (default 0)")
    parser.add_argument("command", nargs="+", metavar="MODULE ARGUMENTS", help="after --")
    args = parser.parse_args(argv)
    result = chain([sys.executable, "-m", *args.command], args.out, kills=args.kills, seed=args.seed)
    sys.stdout.write(json.dumps(result) + "\n")
    return int(result["faults"] > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
