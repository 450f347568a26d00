"""Fixtures that every test may use: real data sets by name, and the command lines as a user runs them."""

import gc
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from common.memory.process import child, libraries
from tests.apps import forks
from tests.machine import patience
from tests.schemas import checked_record

ROOT = Path(__file__).resolve().parents[1]
# As in a command, and before a test imports torch, which reads it then: beside other processes, waiting threads that
# spin as long as libgomp has them by default take 2.5 times the processor seconds (tests of training, load of 5).
os.environ.setdefault("GOMP_SPINCOUNT", "1000")
# The same examples in every run, and none that fails because the machine is busy; ``--hypothesis-profile=search`` draws
# new ones.
SLOW = [HealthCheck.too_slow]
settings.register_profile("repeatable", deadline=None, derandomize=True, suppress_health_check=SLOW)
settings.register_profile("search", deadline=None, suppress_health_check=SLOW, print_blob=True)
settings.load_profile("repeatable")
# ``nohup`` and a shell's background jobs ignore these, and every command that a test starts would ignore them too.
signal.signal(signal.SIGHUP, signal.SIG_DFL)
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_finish() -> None:
    """What a worker holds of all tests is not looked at again by each collection of garbage.

    Half a million objects, for which a collection takes 0.3 processor seconds; a step that is done again makes one.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="module", autouse=True)
def _libraries_are_no_garbage() -> Iterator[None]:
    """Nor is what a module's tests have imported looked at in those of the next."""
    yield
    gc.collect()
    gc.freeze()


def absent(what: str) -> None:
    """Skip, saying what is absent; where everything must be present, fail instead."""
    message = f"{what} is not on this machine"
    if os.environ.get("PEAKLINE_REQUIRE") == "all":
        pytest.fail(message)
    pytest.skip(message)


@pytest.fixture(scope="session")
def dataset() -> Callable[[str], Path]:
    """``dataset("ml-1m")`` is the folder of a real data set below ``PEAKLINE_DATA``."""

    def find(name: str) -> Path:
        base = os.environ.get("PEAKLINE_DATA", "")
        path = (ROOT / base).resolve() / name if base else None
        if path is None or not path.is_dir():
            absent(f"data set {name} (PEAKLINE_DATA)")
        assert path is not None
        return path

    return find


@dataclass(frozen=True)
class Run:
    """The end of a command."""

    code: int
    out: str
    err: str

    @property
    def record(self) -> dict[str, Any]:
        """The record that ``--json`` writes on stdout, which matches its schema."""
        return checked_record(json.loads(self.out))


@pytest.fixture(scope="session")
def run() -> Callable[..., Run]:
    """``run("apps.recsys", "train", path, ...)`` runs a module of peakline in a fresh process."""

    def call(module: str, *arguments: object, timeout: float = 300, env: dict[str, str] | None = None) -> Run:
        done = subprocess.run(
            [sys.executable, "-m", module, *map(str, arguments)],
            cwd=ROOT,
            env=os.environ | (env or {}),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=patience(timeout),
        )
        return Run(done.returncode, done.stdout, done.stderr)

    return call


@pytest.fixture(scope="session")
def _servers() -> Iterator[Callable[[str], forks.Server]]:
    found: dict[str, forks.Server] = {}

    def server(module: str) -> forks.Server:
        application = forks.application_of(module)
        if application not in found:
            found[application] = forks.Server(application)
        return found[application]

    yield server
    for one in found.values():
        one.close()


@pytest.fixture(scope="session")
def quick(_servers: Callable[[str], forks.Server]) -> Callable[..., Run]:
    """As ``run``, in a copy of a process that has imported the libraries: where nothing is asked of its memory."""

    def call(module: str, *arguments: object, timeout: float = 300) -> Run:
        done = _servers(module).run(module, [*map(str, arguments)], timeout=patience(timeout))
        return Run(done.exit.status, done.stdout.decode(), done.stderr.decode())

    return call


@pytest.fixture
def quick_api(_servers: Callable[[str], forks.Server], monkeypatch: pytest.MonkeyPatch) -> None:
    """The Python API runs its commands as ``quick`` does."""

    def run_command(module: str, arguments: Sequence[str], **also: Any) -> child.Finished:
        return _servers(module).run(module, arguments, timeout=patience(300), **also)

    monkeypatch.setattr(child, "run_command", run_command)


@pytest.fixture(scope="session", autouse=True)
def _late_libraries() -> None:
    """Every command that the tests start fails if it loads a large library after its warm-up."""
    os.environ[libraries.CHECK] = "1"


@pytest.fixture(scope="session", autouse=True)
def _cost_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Measured costs are shared by the workers of one test run, and by nothing else."""
    shared = tmp_path_factory.getbasetemp()
    if os.environ.get("PYTEST_XDIST_WORKER"):
        shared = shared.parent
    old = os.environ.get("XDG_CACHE_HOME")
    os.environ["XDG_CACHE_HOME"] = str(shared / "cache")
    yield
    if old is None:
        del os.environ["XDG_CACHE_HOME"]
    else:
        os.environ["XDG_CACHE_HOME"] = old
