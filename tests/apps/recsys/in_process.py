"""Run ``recsys`` commands in the test's own process: what they compute and write, without walls, plan or record."""

from collections.abc import Mapping
from typing import Any

from apps.recsys import cli
from tests.apps import in_process

InProcess = in_process.InProcess


def done(*words: object) -> tuple[Mapping[str, Any], list[str]]:
    """Run a command in the first setting of its work; otherwise as ``tests.apps.in_process.done``."""
    return in_process.done(cli.parser(), lambda workload: next(iter(workload.settings())), *words)
