"""Count the way of a value: how often the file changes between a command's arguments and the work itself.

``python -m tests.trip infer`` follows what ``imaging infer`` was asked to the first call of the engine,
``python -m tests.trip train`` what ``recsys train`` was asked to the first iteration. Followed are the parsed options,
what carries them on (requests, workloads, sessions), and the paths and objects of ours that these hold. A call counts
when one of these is among its arguments, once for each function that makes it and each file that it goes to; what a
session or the ranks do for everybody (phases, progress, who speaks) does not. A *stay* is a visit to a file: the walk
enters the called file, and is back in the caller's when that one makes its next call. Fewer stays in fewer files mean
that a reader has fewer files to open.
"""

import argparse
import json
import os
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
CARRIER = re.compile(r"(Request|Options|Workload|Session|Job)$")
FOR_EVERYBODY = ("common/cli/session.py", "common/cli/ranks.py", "common/training/distributed/world.py")
"""Surroundings of every command: what it runs in, and which of several ranks it is."""
MOST_STAYS, MOST_FILES = 25, 12
"""Limits of the house."""


class Walk:
    """The calls that hand a value on, in the order in which they are first made.

    Attributes
    ----------
    files
        The files visited, each followed by a different one.
    """

    def __init__(self, arrived: str) -> None:
        self.files: list[str] = []
        self._arrived = arrived
        self._seen: set[tuple[CodeType, str]] = set()
        self._held: dict[int, object] = {}

    def __call__(self, frame: FrameType, event: str, argument: object) -> None:
        """A profile function for ``sys.setprofile``."""
        code, target = frame.f_code, _project_file(frame.f_code)
        if event != "call" or target is None or target in FOR_EVERYBODY:
            return
        if f"{target}:{code.co_qualname}" == self._arrived and not _warming_up(frame):
            raise Arrived
        names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
        if not any([self._follow(frame.f_locals.get(name)) for name in names]):
            return
        caller = frame.f_back
        while caller is not None and _project_file(caller.f_code) is None:
            caller = caller.f_back
        if caller is None or (caller.f_code, target) in self._seen:
            return
        self._seen.add((caller.f_code, target))
        for visited in (_project_file(caller.f_code), target):
            if visited is not None and self.files[-1:] != [visited]:
                self.files.append(visited)

    def _follow(self, value: object) -> bool:
        """True if a call with this argument counts; the values in a carrier are followed from then on."""
        if not _carries(value):
            return id(value) in self._held
        for each in _fields(value):
            items = each if isinstance(each, list | tuple) else each.values() if isinstance(each, dict) else ()
            for inner in (each, *items):
                if isinstance(inner, Path) or _ours(inner):
                    self._held[id(inner)] = inner
        return True


class Arrived(BaseException):
    """The walk is at its end."""


def _project_file(code: CodeType) -> str | None:
    path = code.co_filename
    for top in ("apps", "common"):
        if path.startswith(f"{ROOT}/{top}/"):
            return path.removeprefix(f"{ROOT}/")
    return None


def _warming_up(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.endswith("warm_up.py"):
            return True
        frame = frame.f_back
    return False


def _ours(value: object) -> bool:
    return type(value).__module__.startswith(("apps.", "common."))


def _carries(value: object) -> bool:
    return isinstance(value, argparse.Namespace) or (_ours(value) and bool(CARRIER.search(type(value).__name__)))


def _fields(carrier: object) -> Iterator[object]:
    """Yield the values in a carrier; of a session only the request: the meter and the plan are shared by all."""
    names = getattr(carrier, "__dataclass_fields__", None) or vars(carrier)
    if type(carrier).__name__.endswith("Session"):
        names = ("request", "workload")
    yield from (getattr(carrier, name, None) for name in names)


def walk(application: str, argv: Sequence[str], arrived: str) -> Walk:
    """Run a command in this process, as the supervised child would, until the function ``arrived`` is called."""
    import importlib

    main = importlib.import_module("common.cli.main")
    child = importlib.import_module("common.memory.process.child")
    parser = importlib.import_module(f"apps.{application}.cli").parser()
    child.supervisor_pid = os.getppid  # type: ignore[attr-defined]
    child.tell_supervisor = lambda number: None  # type: ignore[attr-defined]  # the parent is none
    walked = Walk(arrived)
    begin = main._run

    def run(*arguments: Any) -> Any:
        sys.setprofile(walked)
        return begin(*arguments)

    main._run = run
    try:
        main.main(parser, f"apps.{application}", list(argv))
    except Arrived:
        return walked
    finally:
        sys.setprofile(None)
    raise SystemExit(f"{application} {argv[0]} ended before it arrived")


def infer(folder: Path) -> Walk:
    """``imaging infer`` of a generated volume with the shipped model, to the first call of the engine."""
    import nibabel
    import numpy as np

    image = folder / "volume.nii.gz"
    values = np.random.default_rng(0).normal(100, 20, (40, 48, 40)).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), image)  # type: ignore[no-untyped-call]
    model = ROOT / "data" / "models" / "hippocampus"
    argv = ["infer", str(image), "-m", str(model), "-o", str(folder / "out"), "--engine", "openvino", "--batch", "1"]
    return walk("imaging", argv, "common/engines/openvino.py:OpenVinoEngine.__call__")


def train(folder: Path) -> Walk:
    """``recsys train`` of generated interactions, to the first iteration."""
    from apps.recsys.data import synthetic

    interactions, _ = synthetic.write(folder, users=100, items=80)
    argv = ["train", str(interactions), "-o", str(folder / "model"), "--split", "user-holdout"]
    argv += ["--model", "ials"]
    return walk("recsys", argv, "apps/recsys/models/als/ials.py:fit")


def main(arguments: Sequence[str]) -> int:
    """Print the walk as JSON."""
    trips = {"infer": infer, "train": train}
    if len(arguments) != 1 or arguments[0] not in trips:
        sys.stderr.write(f"usage: python -m tests.trip {'|'.join(trips)}\n")
        return 2
    with tempfile.TemporaryDirectory() as folder:
        walked = trips[arguments[0]](Path(folder))
    sys.stdout.write(json.dumps({"stays": len(walked.files), "files": len(set(walked.files)), "walk": walked.files}))
    sys.stdout.write("\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
