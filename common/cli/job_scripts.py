"""Jobs for clusters, printed by ``--dry-run --format``: a command in parts, with the plan's memory as its request.

The plan is that of a machine that has measured nothing before, since the first run on each machine measures.
"""

import argparse
import json
import math
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from common.cli import ranks
from common.errors import UsageError
from common.memory.costs.store import CostStore
from common.memory.plan import explain
from common.memory.plan.plan import Plan
from common.parts import PART_HELP, Part

FORMATS = ("slurm", "kubernetes")
MARGIN = 1.05
"""Memory request over what the plan needs, for machines whose libraries take more."""
_MIB = 1 << 20
_WITH_VALUE = ("--part", "--format", "--memory", "--threads")
_WRITTEN_ANEW = (*_WITH_VALUE, "--dry-run")
"""Options of the command line that a job has otherwise."""
_SHORTEST = 4
"""Letters of an option's shortest abbreviation that is recognised, with its dashes."""


def add_options(parser: argparse.ArgumentParser, where: str) -> None:
    """Add ``--part`` and ``--format``.

    Parameters
    ----------
    where
        Where the outputs of a part go, for the help.
    """
    group = parser.add_argument_group("several processes or machines")
    group.add_argument("--part", type=Part.parse, metavar="K/N", help=f"{PART_HELP}; it goes to {where}")
    text = "with --dry-run: print a job for a cluster, with the plan's memory, of N parts where --part K/N is given"
    group.add_argument("--format", choices=FORMATS, help=text)


def check(form: str | None, *, dry_run: bool, as_json: bool) -> None:
    """Refuse ``--format`` where no job would be printed.

    Raises
    ------
    UsageError
        Without ``--dry-run``, or with ``--json``.
    """
    if form and (as_json or not dry_run):
        raise UsageError(f"--format {form} prints a job: it needs --dry-run, and no --json")


def fresh_costs() -> CostStore:
    """An empty cache of costs, which goes with the process."""
    import atexit
    import shutil
    import tempfile

    directory = tempfile.mkdtemp(prefix="peakline-")
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    return CostStore(Path(directory))


def dry_run_text(args: argparse.Namespace, plan: Plan, ceiling: int) -> str:
    """What ``--dry-run`` prints: the plan, or a job."""
    if (form := getattr(args, "format", None)) is None:
        return explain.plan_text(plan, ceiling) + ranks.node_text(plan, args.world)
    name = str(args.command.name)
    memory = math.ceil(MARGIN * plan.needed_bytes / _MIB)
    words = [name.split()[0], *kept_words(sys.argv[1:]), "--threads", str(args.threads), "--memory", f"{memory}MiB"]
    note = f"The plan needs {plan.needed_bytes / _MIB:.1f} MiB; 5 % more, as libraries differ between machines."
    return (_slurm if form == "slurm" else _kubernetes)(
        name.replace(" ", "-"), words, memory, args.threads, args.part, note
    )


def kept_words(words: Sequence[str]) -> list[str]:
    """The words of a command line without those that a job has otherwise.

    Examples
    --------
    >>> kept_words(["infer", "in", "--dry-run", "--part=1/4", "--memory", "1GiB", "-o", "out"])
    ['infer', 'in', '-o', 'out']
    """

    def without(words: Sequence[str]) -> Iterator[str]:
        rest = iter(words)
        for word in rest:
            name, equals, _ = word.partition("=")
            option = next((each for each in _WRITTEN_ANEW if len(name) >= _SHORTEST and each.startswith(name)), None)
            if option is None:
                yield word
            elif option in _WITH_VALUE and not equals:
                next(rest)

    return list(without(words))


def _slurm(name: str, words: Sequence[str], memory: int, threads: int, part: Part | None, note: str) -> str:
    array = [f"#SBATCH --array=1-{part.of}"] if part else []
    number = f' --part "$SLURM_ARRAY_TASK_ID/{part.of}"' if part else ""
    return "\n".join(
        [
            "#!/bin/bash",
            f"#SBATCH --job-name={name}",
            *array,
            f"#SBATCH --cpus-per-task={threads}",
            f"#SBATCH --mem={memory}M",
            f"# {note}",
            f"exec {shlex.join(words)}{number}",
        ]
    )


def _kubernetes(name: str, words: Sequence[str], memory: int, threads: int, part: Part | None, note: str) -> str:
    number = f' --part "$((JOB_COMPLETION_INDEX + 1))/{part.of}"' if part else ""
    parts = part.of if part else 1
    # Kubernetes itself replaces $(NAME) of a known name, and makes $$ one dollar. A JSON string is one of YAML, too.
    line = json.dumps(f"exec {shlex.join(words).replace('$', '$$')}{number}")
    return f"""\
apiVersion: batch/v1
kind: Job
metadata:
  name: {name}
spec:
  completionMode: Indexed
  completions: {parts}
  parallelism: {parts}
  backoffLimitPerIndex: 2
  template:
    spec:
      restartPolicy: Never
      containers:
        - name: {name}
          image: peakline  # mount the folders that the command names
          command: [/bin/sh, -c]
          args: [{line}]
          resources:  # {note}
            requests: {{cpu: {threads}, memory: {memory}Mi}}
            limits: {{memory: {memory}Mi}}"""
