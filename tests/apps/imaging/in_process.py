"""Run ``imaging`` commands in the test's own process: what they compute and write, without walls, plan or record.

Whether a command keeps its ceiling and loads its libraries in time, tests of the command line ask.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

from apps.imaging import cli
from apps.imaging.importers import convert, nnunet
from common.files import scratch_directory
from common.memory.plan.plan import Setting
from tests.apps import in_process


def done(*words: object) -> tuple[Mapping[str, Any], list[str]]:
    """Run a command in the fastest setting of its work; otherwise as ``tests.apps.in_process.done``.

    Foreign models are converted in this process too.
    """
    with patch.object(convert, "_convert", _convert):
        return in_process.done(cli.parser(), _fastest, *words)


def _fastest(workload: Any) -> Setting:
    """But with PyTorch's tensors mapped: the other allocator is one of a whole process."""
    settings: Sequence[Setting] = [one for one in workload.settings() if one.get("allocator", "mapped") == "mapped"]
    return min(settings, key=workload.seconds)


def _convert(directory: Path, target: Path, budget: object, needed: int, weights: Sequence[str]) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with scratch_directory(target.parent, target.name) as draft:
        if nnunet.is_nnunet(directory):
            convert.convert_nnunet(directory, draft, nnunet.Weights(tuple(weights[1:]), weights[0]))
        else:
            convert.convert_bundle(directory, draft)
        os.rename(draft, target)
