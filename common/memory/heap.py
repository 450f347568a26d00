"""Reuse memory without letting the heap grow: the third setting of the allocator, for training steps.

Mapped one by one (``allocator.tame``), tensors follow what is live exactly, but the kernel zeroes each anew: a step on
small patches takes half as long again. Kept in the heap (``allocator.relax``), they are reused, but glibc's heap holds
a third more than is live. Three things together keep it near, at the speed of the heap:

- **Blocks merge again.** PyTorch asks for aligned blocks. glibc cuts off what lies before the alignment, a few dozen
  bytes, and keeps it in a cache of small blocks (tcache, fastbins), where it never merges with its neighbour: a freed
  tensor is then a little too small for the next one of its size. Without both caches (``allocator.tunables``, read
  at process start) a step of SegResNet on 64^3 peaks at 401 to 408 MiB instead of 440 to 564.
- **Free pages go back when they would raise the peak**, and only then: ``BoundedHeap`` compares, after each layer's
  forward and backward, what is resident with the most that was seen live. That gives 337 to 343 MiB; 324 are live.
- **Huge pages** make what comes back cheap: 512 times fewer page faults.
"""

import os
from types import TracebackType
from typing import TYPE_CHECKING, Any

from common.memory import allocator
from common.memory.budget import MIB, page_size

if TYPE_CHECKING:
    import torch

SLACK = 32 * MIB
"""What may be resident beyond the most that was live: below 16 MiB pages go back and forth all the time, above 64 MiB
nothing gets faster (SegResNet, 64^3)."""


class BoundedHeap:
    """Let blocks of up to 32 MiB live in the heap while in this context, and return its free pages when they add up.

    Parameters
    ----------
    network
        Its layers are where the heap is looked at: after each forward pass, and when each gradient is ready.
    slack
        Bytes that may be resident beyond the most that was seen live.

    Notes
    -----
    Where the C library has no ``mallinfo2`` (musl, glibc before 2.33) this does nothing: tensors stay mapped.
    """

    def __init__(self, network: "torch.nn.Module", *, slack: int = SLACK) -> None:
        self.trims = 0
        """How often free pages were returned."""
        self._network, self._slack = network, slack
        self._hooks: list[Any] = []
        self._outside = self._most = 0
        self._pages = -1
        """``/proc/self/statm``, kept open: a look costs a tenth of opening it, and a step has a hundred."""

    def __enter__(self) -> "BoundedHeap":
        if allocator.statistics() is None or not allocator.relax():
            return self
        self._pages = os.open("/proc/self/statm", os.O_RDONLY | os.O_CLOEXEC)
        self._outside = self._resident() - self._live()
        for module in self._network.modules():
            if next(module.children(), None) is None:
                self._hooks.append(module.register_forward_hook(self._look))
        for parameter in self._network.parameters():
            if parameter.requires_grad:
                self._hooks.append(parameter.register_hook(self._look))  # type: ignore[no-untyped-call]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        if self._pages >= 0:
            os.close(self._pages)
            self._pages = -1
        allocator.tame()
        allocator.trim()

    def _live(self) -> int:
        """Bytes in use, in the heap and in mapped blocks."""
        found = allocator.statistics()
        assert found is not None
        return int(found.uordblks) + int(found.hblkhd)

    def _resident(self) -> int:
        return int(os.pread(self._pages, 128, 0).split()[1]) * page_size()

    def _look(self, *_: object) -> None:
        held = self._resident() - self._outside
        if held <= self._most + self._slack:
            return  # however much of it is live
        self._most = max(self._most, self._live())
        if held > self._most + self._slack:
            allocator.trim()
            self.trims += 1
