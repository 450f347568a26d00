"""Keep the tensors of training steps in glibc's heap without exceeding the peak that separate mappings have.

If each tensor has a mapping of its own (``glibc.pin_thresholds``), resident memory equals live memory, but the kernel
zeroes the pages of each: a step on small patches takes 1.5 times as long. In the heap (``glibc.unpin_thresholds``)
tensors are reused, but glibc's heap holds a third more than is live.

``BoundedHeap`` samples the resident size at each layer, forward and backward. In the first passes all blocks are
mapped; it learns how much the process grows between samples, and the peak. Afterwards tensors live in the heap. Where
resident size plus the expected growth would exceed that peak, it trims the heap, and if that is not enough, blocks are
mapped until the next sample. In a step of SegResNet on 64^3 that happens at 6 of 160 samples.

It depends on two settings at process start (``glibc.tunables``):

- **Freed blocks merge.** PyTorch asks for aligned blocks. glibc cuts off the few dozen bytes before the alignment and
  keeps them in a cache of small blocks (tcache, fastbins), where they never merge with their neighbour. A freed tensor
  is then a little too small for the next one of its size. Without both caches the pieces merge.
- **Huge pages** make a page fault of a returned page 512 times rarer.
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
"""Number of passes of each kind with all blocks mapped. The first may allocate what stays (optimiser states, code); the
second is like all that follow."""
FRAGMENTS, REUSED = 3, 0.75
"""Expected growth until the next sample, as a multiple of that of mapped blocks (holes in the heap may be too small),
and the share of the heap's free pages that it is expected to use. Measured on SegResNet's step at 64^3: 324 MiB at the
peak and 336 MiB zeroed a step; 2 and 0.75 give 340 and 304, 1.5 and 0.5 give 340 and 290 but 361 in one run of seven,
1.5 and 0 as mapped, 316 and 540."""
FRAGMENTS_WITH_SLACK = 2
"""The multiple if there is slack, which holds larger growth: 0.5 to 1.3 of ``room`` were used."""
ROOM, MOST_ROOM = 0.25, 160 * MIB
"""Slack as a share of a step's tensors, and its limit. With it a step takes 1.0 to 1.15 of the time of a heap that is
never trimmed, without it 1.1 to 1.35 (SegResNet, UNet and BasicUNet, 32^3 to 96^3, float32 and bfloat16: such a heap
has 0.27 to 0.38 of the tensors' bytes free, SegResNet's at 48^3 in float32 0.6). The limit, because blocks of more than
32 MiB are always mapped (SegResNet at 96^3 in float32: 107 MiB of 1,003)."""
SLACK = 8 * MIB
"""Free bytes in the heap at the peak: 0 to 7 MiB measured in 15 steps of four networks from 24^3 to 96^3, in float32
and bfloat16, with and without recomputation."""


def room(tensors: int) -> int:
    """Return the slack in bytes for a step whose tensors take ``tensors`` bytes."""
    return min(int(ROOM * tensors), MOST_ROOM)


@dataclass(slots=True)
class _Interval:
    """Interval between two memory samples."""

    growth: int = 0
    """Largest growth of the process in bytes, with blocks mapped."""
    passes: int = 0
    """Number of measurements."""


class BoundedHeap:
    """A context in which blocks of up to 32 MiB live in the heap, at the peak that mapped blocks have.

    Parameters
    ----------
    network
        Memory is sampled after the forward pass of each layer, when the gradient of its output is ready, when that of
        each parameter is ready, and before and after the optimiser's steps.
    slack
        Bytes that may be resident beyond the peak of mapped blocks, so that the heap is trimmed less often.

    Notes
    -----
    A pass extends from one forward pass of the network to the next. Passes are of the same kind if input shapes,
    training mode and gradient mode are equal. The bound does not include allocations that the first passes of each kind
    do not make; call ``glibc.trim`` before rarer work such as validation or a checkpoint.

    Without ``mallinfo2`` (musl, macOS, glibc before 2.33) this does nothing. If the kernel does not reset the
    high-water mark, tensors stay mapped.
    """

    def __init__(self, network: "torch.nn.Module", *, slack: int = 0) -> None:
        self.trims = 0
        """Number of trims, after the first passes."""
        self._network, self._slack = network, slack
        self._fragments = FRAGMENTS_WITH_SLACK if slack else FRAGMENTS
        self._hooks: list[Any] = []
        self._kinds: dict[Any, list[_Interval]] = {}
        self._pass: list[_Interval] = []
        self._at = 0
        self._measured: _Interval | None = None
        self._outside = self._base = self._peak = 0
        self._pages = -1
        """File descriptor of ``/proc/self/statm``. Reading takes a tenth of the time of opening it, and a step has a
        hundred samples."""

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
        """End an interval, and record its growth if it was measured."""
        if self._measured is not None:
            peak = meter.lap()
            self._peak = max(self._peak, peak)
            self._measured.growth = max(0, peak - self._base)  # the end of a phase resets the mark
            self._measured.passes += 1

    def _open(self) -> None:
        """Begin an interval, and choose whether its blocks are mapped or in the heap."""
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
        mapped = self._at + 1 == len(self._pass)  # what follows is not the network's work: mapped
        if self._exceeds(growth):
            glibc.trim()
            self.trims += 1
            mapped |= self._resident() + growth > self._peak + self._slack
            self._peak = max(self._peak, self._resident() + interval.growth)
        glibc.map_from(MMAP_THRESHOLD if mapped else UNPINNED_MMAP_THRESHOLD)

    def _exceeds(self, growth: int) -> bool:
        """Tell whether ``growth`` bytes would exceed the bound because of free pages in the heap."""
        size = self._resident()
        if size + growth <= self._peak + self._slack:
            return False
        free = size - self._outside - self._live()
        return size + growth - REUSED * free > self._peak + self._slack

    def _live(self) -> int:
        """Return the bytes in use, in the heap and in mapped blocks."""
        current = glibc.statistics()
        assert current is not None
        return int(current.uordblks) + int(current.hblkhd)

    def _resident(self) -> int:
        return int(os.pread(self._pages, 128, 0).split()[1]) * page_size()
