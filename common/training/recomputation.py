"""Choose which blocks of a network are computed again in the backward pass, so that a step needs less memory.

A block keeps all activations that its backward pass needs (``KEEP``), only the results of its expensive operators
(``CHEAP``), or only its input (``RECOMPUTE``). Recomputing the last large block saves nothing, because all its
activations are alive when its backward pass begins; recomputing the first one saves all of them at the peak.
``measure`` finds what each block keeps and costs, from one forward pass on a small input; ``choose`` finds the levels
that take the least time under a limit.

The bytes here only rank the choices. What a choice needs is priced by ``common.memory.costs.trace``.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any

from common.memory.costs.operators import tensors

if TYPE_CHECKING:
    import torch

EXPENSIVE = ("convolution", "addmm", "mm", "bmm")
"""Operators of ``torch.ops.aten`` whose results ``CHEAP`` keeps."""
OPERATIONS_A_BYTE = 40
"""Floating-point operations of a convolution in the time in which a pointwise operator makes a byte of its result
(two cores: 3x3x3 convolutions of 16 and 64 channels 23 and 34 GFLOP/s, ReLU, sums and group norm 0.7 to 0.8 GB/s)."""


class Level(Enum):
    """What a block keeps for the backward pass."""

    KEEP = "keep"
    CHEAP = "cheap"
    RECOMPUTE = "recompute"


@dataclass(slots=True)
class Segment:
    """A part of the forward pass: one call of a block, or what runs between two of them."""

    block: int | None = None
    """The block's index; ``None`` between blocks, where nothing is computed again."""
    inputs: int = 0
    """Bytes of the block's arguments, as far as nothing before it keeps them."""
    inside: int = 0
    """Bytes that the backward pass needs beside the arguments."""
    expensive: int = 0
    """Bytes of the results of expensive operators."""
    widest: int = 0
    """Bytes of the largest result; about two such gradients are alive in the backward pass."""
    again: dict[Level, float] = field(default_factory=lambda: dict.fromkeys(Level, 0.0))
    """Time to compute again what a level does not keep, in bytes of pointwise results."""

    @property
    def levels(self) -> tuple[Level, ...]:
        """The levels that may be chosen."""
        return tuple(Level) if self.block is not None else (Level.KEEP,)

    def stored(self, level: Level) -> int:
        """Bytes kept until the backward pass begins with this segment."""
        beside = {Level.KEEP: self.inside, Level.CHEAP: min(self.inside, self.expensive), Level.RECOMPUTE: 0}
        return self.inputs + beside[level]

    @property
    def alive(self) -> int:
        """Bytes in the segment's own backward pass, at any level."""
        return self.inputs + self.inside + 2 * self.widest


def peak(segments: Sequence[Segment], levels: Sequence[Level]) -> int:
    """Largest number of bytes alive in the backward pass of segments in the order in which they ran."""
    kept, most = 0, 0
    for segment, level in zip(segments, levels, strict=True):
        most = max(most, kept + segment.alive)
        kept += segment.stored(level)
    return most


def measure(
    network: "torch.nn.Module", blocks: "Sequence[torch.nn.Module]", run: Callable[[], object]
) -> list[Segment]:
    """Find what the parts of a forward pass keep and cost.

    Parameters
    ----------
    network
        The network.
    blocks
        Modules of the network that do not contain each other. One that runs twice counts at its first run.
    run
        Makes a forward pass.

    Returns
    -------
    list
        The segments in the order in which they ran.
    """
    import torch

    recorder = _Recorder({tensor.untyped_storage()._cdata for tensor in (*network.parameters(), *network.buffers())})
    hooks = [
        hook
        for index, block in enumerate(blocks)
        for hook in (
            block.register_forward_pre_hook(
                lambda module, args, kwargs, index=index: recorder.enter(index, (*args, *kwargs.values())),
                with_kwargs=True,
            ),
            block.register_forward_hook(lambda module, args, result: recorder.leave()),
        )
    ]
    try:
        hooks_of_saving = torch.autograd.graph.saved_tensors_hooks(recorder.save, _never)
        with hooks_of_saving, recorder.operators():
            run()
    finally:
        for hook in hooks:
            hook.remove()
        recorder.release()
    return recorder.segments


@dataclass(slots=True)
class _Recorder:
    """Assigns the tensors that autograd saves, and the operators that run, to the segment that is running."""

    seen: set[int]
    """Storages that are accounted for, by their addresses."""
    segments: list[Segment] = field(default_factory=lambda: [Segment()])
    _alive: list[Any] = field(default_factory=list)
    """Storages, so that no address is used twice."""

    def enter(self, index: int, arguments: Sequence[Any]) -> None:
        """A block begins."""
        if all(segment.block != index for segment in self.segments):
            self.segments.append(Segment(index, sum(map(self._new, tensors(arguments)))))

    def leave(self) -> None:
        """The block ends."""
        self.segments.append(Segment())

    def save(self, tensor: "torch.Tensor") -> int:
        """Autograd saves a tensor for the backward pass; as there is none, its size alone is kept."""
        size = self._new(tensor)
        self.segments[-1].inside += size
        return size

    def release(self) -> None:
        """Let the tensors go."""
        self._alive.clear()

    def operators(self) -> Any:
        """Context in which operators are counted."""
        from torch.utils._python_dispatch import TorchDispatchMode

        count = self._count

        class Count(TorchDispatchMode):  # type: ignore[no-untyped-call]
            def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
                result = func(*args, **(kwargs or {}))
                count(func, args, result)
                return result

        return Count()  # type: ignore[no-untyped-call]

    def _count(self, function: Any, arguments: Any, result: Any) -> None:
        if function.is_view:
            return
        segment = self.segments[-1]
        results = tensors(result if isinstance(result, tuple | list) else (result,))
        made = sum(value.nbytes for value in results)
        segment.widest = max([segment.widest, *(value.nbytes for value in results)])
        if operator_name(function) in EXPENSIVE:
            segment.expensive += made
            segment.again[Level.RECOMPUTE] += made + _operations(function, arguments, results[0]) / OPERATIONS_A_BYTE
        else:
            segment.again[Level.CHEAP] += made
            segment.again[Level.RECOMPUTE] += made

    def _new(self, tensor: "torch.Tensor") -> int:
        storage = tensor.untyped_storage()
        if storage._cdata in self.seen:
            return 0
        self.seen.add(storage._cdata)
        self._alive.append(storage)
        return storage.nbytes()


def _never(size: int) -> "torch.Tensor":
    """There is no backward pass."""
    raise RuntimeError("a measured forward pass has no backward pass")


def operator_name(function: Any) -> str:
    """Name of an operator without its name space and overload: ``"convolution"``."""
    name: str = function.name().removeprefix("aten::").partition(".")[0]
    return name


def _operations(function: Any, arguments: Any, result: "torch.Tensor") -> int:
    """Floating-point operations of a convolution or a matrix product."""
    if operator_name(function) == "convolution":
        image, kernel, transposed = arguments[0], arguments[1], arguments[6]
        places = image if transposed else result  # each of its voxels meets the whole kernel
        return int(2 * places.shape[0] * places[0, 0].numel() * kernel.numel())
    return int(2 * result.numel() * arguments[-2 if operator_name(function) != "addmm" else 1].shape[-1])


def choose(segments: Sequence[Segment], share: float) -> dict[int, Level]:
    """Choose the level of each block.

    A dynamic program over the segments in order: of the choices for those so far, only those stay for which no other
    keeps fewer bytes and takes less time.

    Parameters
    ----------
    segments
        As ``measure`` returns them.
    share
        0: nothing is computed again; 1: the peak is the lowest that the levels reach; between them, that share of the
        difference is saved.

    Returns
    -------
    dict
        By the blocks' indices, the levels that keep within the limit in the least time.

    Examples
    --------
    >>> first, last = Segment(0, inside=300), Segment(1, inside=400)
    >>> first.again |= {Level.CHEAP: 5, Level.RECOMPUTE: 5}
    >>> last.again |= {Level.CHEAP: 9, Level.RECOMPUTE: 9}
    >>> {block: level.value for block, level in choose([first, last], share=1).items()}
    {0: 'cheap', 1: 'keep'}
    """
    highest = peak(segments, [Level.KEEP] * len(segments))
    lowest = peak(segments, [segment.levels[-1] for segment in segments])
    limit = highest - share * (highest - lowest)
    choices: list[tuple[int, float, tuple[Level, ...]]] = [(0, 0.0, ())]
    for segment in segments:
        longer = [
            (kept + segment.stored(level), seconds + segment.again[level], (*levels, level))
            for kept, seconds, levels in choices
            if kept + segment.alive <= limit
            for level in segment.levels
        ]
        choices = []
        for choice in sorted(longer, key=lambda choice: choice[:2]):
            if not choices or choice[1] < choices[-1][1]:
                choices.append(choice)
    levels = min(choices, key=lambda choice: choice[1])[2]
    return {each.block: level for each, level in zip(segments, levels, strict=True) if each.block is not None}
