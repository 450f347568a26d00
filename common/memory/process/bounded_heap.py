"""Reuse memory at the peak of memory that is mapped anew: the third setting of the allocator, for training steps.

Mapped one by one (``glibc.pin_thresholds``), tensors follow what is live exactly, but the kernel zeroes each anew: a step on
small patches takes half as long again. Kept in the heap (``glibc.unpin_thresholds``), they are reused, but glibc's heap holds
a third more than is live. ``BoundedHeap`` takes from each what it is good at. It looks at the process at each layer,
forward and backward, and learns by how much it grows from one look to the next while all blocks are mapped: the most
that is ever held so is what the step needs. From then on tensors live in the heap, and only where what is resident and
the growth to come would exceed that most, free pages go back, and where that is not enough, blocks are mapped until the
next look. In a step of SegResNet on 64^3 that is at 6 of 160 looks.

Two settings at process start (``glibc.tunables``) make the heap worth it:

- **Blocks merge again.** PyTorch asks for aligned blocks. glibc cuts off what lies before the alignment, a few dozen
  bytes, and keeps it in a cache of small blocks (tcache, fastbins), where it never merges with its neighbour: a freed
  tensor is then a little too small for the next one of its size. Without both caches it is not.
- **Huge pages** make what comes back cheap: 512 times fewer page faults.
"""

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from common.memory.process import glibc, meter
from common.memory.process.budget import MIB, page_size
from common.memory.process.glibc import MMAP_THRESHOLD, UNPINNED_MMAP_THRESHOLD

if TYPE_CHECKING:
    import torch

PASSES = 2
"""Of each kind, while which all blocks are mapped: what the first one makes may stay for good (optimiser states, code),
the second is like all others."""
FRAGMENTS, REUSED = 3, 0.75
"""What a look expects: growth of so many times that of mapped blocks (holes may be too small for what follows), and of
the heap's free pages such a share to be used for it. Measured on SegResNet's step at 64^3: 324 MiB and 336 MiB zeroed a
step; 2 and 0.75 give 340 and 304, 1.5 and 0.5 340 and 290 but 361 in one run of seven, 1.5 and 0 as mapped, 316 and
540."""
FRAGMENTS_WITH_SLACK = 2
"""The same where there is slack, which has what grows more: 0.5 to 1.3 of ``room``."""
ROOM, MOST_ROOM = 0.25, 160 * MIB
"""Slack as a share of a step's tensors with which it takes 1.0 to 1.15 of the time of a heap that is never trimmed,
without it 1.1 to 1.35 (SegResNet, UNet and BasicUNet, 32^3 to 96^3, float32 and bfloat16: such a heap holds 0.27 to
0.38 of them free, SegResNet's at 48^3 in float32 0.6); and the most, because blocks of more than 32 MiB are mapped
anyway (SegResNet at 96^3 in float32: 107 MiB of 1,003)."""
SLACK = 8 * MIB
"""What may be held beside tensors: 0 to 7 MiB were, in 15 steps of four networks from 24^3 to 96^3, in float32 and
bfloat16, with and without recomputation."""


def room(tensors: int) -> int:
    """The slack that is worth its price, of a step whose tensors take so many bytes."""
    return min(int(ROOM * tensors), MOST_ROOM)


@dataclass(slots=True)
class _Interval:
    """From one look to the next."""

    growth: int = 0
    """Bytes by which the process grew at most, while blocks were mapped."""
    passes: int = 0
    """How often that was measured."""


class BoundedHeap:
    """Let blocks of up to 32 MiB live in the heap while in this context, at the peak that mapped blocks have.

    Parameters
    ----------
    network
        Its layers are where the process is looked at: after each one's forward pass, when the gradient of its output is
        ready, and that of each parameter. So are the ends of the optimiser's steps.
    slack
        Bytes that may be held beyond what mapped blocks need: fewer pages go back.

    Notes
    -----
    A pass goes from one forward pass of the network to the next; passes are of one kind if shapes, mode and
    gradients wanted are the same. What the first passes of each kind do not show is not in the bound: before something
    that grows seldom (validation, a checkpoint) ``glibc.trim`` returns what is free.

    Where the C library has no ``mallinfo2`` (musl, macOS, glibc before 2.33) this does nothing; where the kernel does
    not reset its mark of a process's peak, tensors stay mapped.
    """

    def __init__(self, network: "torch.nn.Module", *, slack: int = 0) -> None:
        self.trims = 0
        """How often free pages were returned, since passes of this kind are known."""
        self._network, self._slack = network, slack
        self._fragments = FRAGMENTS_WITH_SLACK if slack else FRAGMENTS
        self._hooks: list[Any] = []
        self._kinds: dict[Any, list[_Interval]] = {}
        self._pass: list[_Interval] = []
        self._at = 0
        self._measured: _Interval | None = None
        self._outside = self._base = self._most = 0
        self._pages = -1
        """``/proc/self/statm``, kept open: a look costs a tenth of opening it, and a step has a hundred."""

    def __enter__(self) -> "BoundedHeap":
        if glibc.statistics() is None or not glibc.unpin_thresholds():
            return self
        from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

        self._pages = os.open("/proc/self/statm", os.O_RDONLY | os.O_CLOEXEC)
        self._outside = self._resident() - self._live()
        self._hooks.append(self._network.register_forward_pre_hook(self._begin))
        for module in self._network.modules():
            if next(module.children(), None) is None:
                self._hooks.append(module.register_forward_hook(self._after_layer))
        for parameter in self._network.parameters():
            if parameter.requires_grad:
                self._hooks.append(parameter.register_hook(self._sample))  # type: ignore[no-untyped-call]
        self._hooks += [register_optimizer_step_pre_hook(self._sample), register_optimizer_step_post_hook(self._sample)]
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        if self._pages >= 0:
            os.close(self._pages)
            self._pages = -1
        glibc.pin_thresholds()
        glibc.trim()

    def _begin(self, network: "torch.nn.Module", inputs: tuple[Any, ...]) -> None:
        import torch

        self._close()
        shapes = tuple(getattr(value, "shape", None) for value in inputs)
        self._pass = self._kinds.setdefault((shapes, network.training, torch.is_grad_enabled()), [])
        self._at = 0
        self._open()

    def _after_layer(self, layer: "torch.nn.Module", inputs: Any, output: Any) -> None:
        self._sample()
        if getattr(output, "requires_grad", False):
            output.register_hook(self._sample)

    def _sample(self, *_: object) -> None:
        self._close()
        self._at += 1
        self._open()

    def _close(self) -> None:
        """End an interval; one that is being measured shows what it needs."""
        if self._measured is not None:
            peak = meter.lap()
            self._most = max(self._most, peak)
            self._measured.growth = max(0, peak - self._base)  # a phase's end starts the mark anew
            self._measured.passes += 1

    def _open(self) -> None:
        """Begin an interval, with blocks mapped or in the heap."""
        if self._at >= len(self._pass):
            self._pass.append(_Interval())
        interval = self._pass[self._at]
        self._measured = interval if interval.passes < PASSES else None
        if self._measured is not None:
            glibc.map_from(MMAP_THRESHOLD)
            glibc.trim()
            meter.lap()
            self._base = self._resident()
            return
        growth = self._fragments * interval.growth
        mapped = self._at + 1 == len(self._pass)  # what follows is not the network's: as everywhere else
        if self._exceeds(growth):
            glibc.trim()
            self.trims += 1
            mapped |= self._resident() + growth > self._most + self._slack
            self._most = max(self._most, self._resident() + interval.growth)
        glibc.map_from(MMAP_THRESHOLD if mapped else UNPINNED_MMAP_THRESHOLD)

    def _exceeds(self, growth: int) -> bool:
        """Whether free pages are in the way of ``growth`` bytes."""
        held = self._resident()
        if held + growth <= self._most + self._slack:
            return False
        free = held - self._outside - self._live()
        return held + growth - REUSED * free > self._most + self._slack

    def _live(self) -> int:
        """Bytes in use, in the heap and in mapped blocks."""
        found = glibc.statistics()
        assert found is not None
        return int(found.uordblks) + int(found.hblkhd)

    def _resident(self) -> int:
        return int(os.pread(self._pages, 128, 0).split()[1]) * page_size()
