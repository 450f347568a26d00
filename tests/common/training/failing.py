"""Allocation failures where a test wants them."""

from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

MESSAGE = "[enforce fail at alloc_cpu.cpp:119] err == 0. DefaultCPUAllocator: can't allocate memory"


class Failing(TorchDispatchMode):
    """Inside, the ``nth`` operator that makes a tensor raises what torch's allocator does, before it runs (0: none)."""

    def __init__(self, nth: int) -> None:
        super().__init__()
        self.nth, self.seen, self.raised = nth, 0, False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if _allocates(func, kwargs or {}):
            self.seen += 1
            if self.seen == self.nth:
                self.raised = True
                raise RuntimeError(f"{MESSAGE} (injected: {func})")
        return func(*args, **(kwargs or {}))


def _allocates(func: Any, kwargs: dict[str, Any]) -> bool:
    """True if a result is a tensor that is neither a view nor an argument."""
    made = [value for value in func._schema.returns if "Tensor" in str(value.type) and value.alias_info is None]
    return bool(made) and "out" not in kwargs
