"""Keep PyTorch's compiler out of a process that compiles nothing.

PyTorch loads ``torch._dynamo`` with the first step of an optimiser and the first recomputed activation, only to tell
a compiler that does not run to leave these alone. It takes 1.2 processor seconds and 62 MiB of the 427 that a warmed-up
``imaging train`` holds (PyTorch 2.13).
"""

import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

PACKAGE = "torch._dynamo"


class _NoCompiler(ModuleType):
    """Stands in for ``torch._dynamo``: its settings, and the functions that eager code calls."""

    @staticmethod
    def graph_break(*_: Any, **__: Any) -> None:
        """Divide no graph, since none is recorded."""

    @staticmethod
    def disable(function: Any = None, *_: Any, **__: Any) -> Any:
        """Return the function, which nothing compiles; without one, a decorator that does so."""
        return (lambda decorated: decorated) if function is None else function

    utils = SimpleNamespace(get_optimize_ddp_mode=lambda: "no_optimization")
    """``DistributedDataParallel`` asks whether a compiler cuts graphs where gradients are added up."""
    trace_rules = SimpleNamespace(clear_lru_cache=lambda: None)
    """A process group empties the compiler's caches when it is made."""

    def __getattr__(self, name: str) -> Any:
        if name == "config":
            return import_module(f"{PACKAGE}.config")
        if name.startswith("__"):
            raise AttributeError(name)
        let_in()
        return getattr(import_module(PACKAGE), name)


def leave_out() -> None:
    """Put the stand-in where ``import torch._dynamo`` finds it; nothing happens if the package has been loaded.

    PyTorch itself is not imported.
    """
    torch = find_spec("torch")
    if PACKAGE in sys.modules or torch is None or torch.origin is None:
        return
    stand_in = _NoCompiler(PACKAGE)
    stand_in.__path__ = [str(Path(torch.origin).parent / "_dynamo")]
    sys.modules[PACKAGE] = stand_in


def let_in() -> None:
    """Take the stand-in away: the next import loads the package, and fake copies of real tensors need parts of it."""
    if isinstance(sys.modules.get(PACKAGE), _NoCompiler):
        del sys.modules[PACKAGE]
