"""Measure the workspace of single operators by replaying them on real tensors, and cache the results.

Fake tensors show an operator's inputs and outputs. Its kernel's own allocations (im2col buffers, reordered weights,
oneDNN's scratch memory: 63 of 169 MiB for a small 3D U-Net) need a run. The results are lines of a file that all plans
share, so that a new plan replays only operators that no earlier plan had.

A replay needs the memory of one operator, not that of the step. It runs in a child that has loaded torch alone
(``common.memory.costs.probes.DeferredProbe``).
"""

import hashlib
import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.memory.costs import cpu
from common.memory.costs.probes import Probe, environment_facts
from common.memory.costs.store import cache_directory, plausible
from common.memory.process import glibc, guard
from common.memory.process.budget import MIB
from common.memory.process.meter import lifetime_peak, reset_peak, resident

if TYPE_CHECKING:
    import torch

log = logging.getLogger("peakline.operators")

LARGE_WORKSPACE = 16 * MIB
"""Workspaces from this size on are measured repeatedly."""
AGREE = 1 * MIB
"""Largest difference between two runs that agree."""
REPEATS = 3
"""Largest number of repeated runs."""
FILL = 0.5
"""Value of the operands in a replay; zeros would need the same memory but less time."""


@dataclass(frozen=True, slots=True)
class Like:
    """Shape, strides and dtype of a tensor, which select the kernel."""

    size: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: "torch.dtype"

    @classmethod
    def of(cls, tensor: "torch.Tensor") -> "Like":
        """Describe a tensor."""
        return cls(tuple(tensor.shape), tuple(tensor.stride()), tensor.dtype)

    def real(self) -> "torch.Tensor":
        """Make a tensor of this layout, with its pages touched."""
        import torch

        extent = 1 + sum((n - 1) * s for n, s in zip(self.size, self.stride, strict=True)) if all(self.size) else 0
        value = FILL if self.dtype.is_floating_point else 0
        return torch.full((extent,), value, dtype=self.dtype).as_strided(self.size, self.stride)


@dataclass(frozen=True, slots=True)
class Call:
    """An operator with its arguments; equal calls allocate the same."""

    function: Any
    leaves: tuple[Any, ...]
    layout: Any

    @classmethod
    def of(cls, function: Any, leaves: Sequence[Any], layout: Any) -> "Call | None":
        """Describe a call by its flattened arguments; ``None`` if one of them cannot be hashed."""
        import torch

        described = tuple(Like.of(leaf) if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves)
        try:
            hash(described)
        except TypeError:
            return None
        return cls(function, described, layout)

    def arguments(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Make real arguments for the function."""
        from torch.utils._pytree import tree_unflatten

        real = [leaf.real() if isinstance(leaf, Like) else leaf for leaf in self.leaves]
        args, kwargs = tree_unflatten(real, self.layout)
        return args, kwargs

    @property
    def probe(self) -> Probe | None:
        """The probe that replays it on as many threads as this process was started with."""
        return self.probe_on(int(os.environ.get("OMP_NUM_THREADS", 1)))

    def probe_on(self, threads: int) -> Probe | None:
        """Return the probe that replays it; ``None`` if an argument has no JSON form."""
        from torch.utils._pytree import tree_unflatten

        try:
            args, kwargs = _written(tree_unflatten(list(self.leaves), self.layout))
        except TypeError:
            return None
        named = {"key": self.key, "operator": str(self.function), "args": args, "kwargs": kwargs}
        return Probe.of(MEASURE, libraries=("torch",), threads=threads, warm_up=WARM_UP, **named)

    @property
    def key(self) -> str:
        """Key in the cache, made of operator, shapes, strides, dtypes and all other arguments."""
        return hashlib.sha256(repr((str(self.function), self.leaves, str(self.layout))).encode()).hexdigest()[:24]


def _written(value: Any) -> Any:
    """Return an argument as JSON; torch's names (``torch.float32``) and descriptions of tensors become objects.

    Raises
    ------
    TypeError
        If the argument has no such form.
    """
    import torch

    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Like):
        return {"tensor": [value.size, value.stride, _written(value.dtype)]}
    if isinstance(value, (torch.dtype, torch.layout, torch.memory_format)):
        return {"torch": str(value).removeprefix("torch.")}
    if isinstance(value, torch.device):
        return {"device": str(value)}
    if isinstance(value, (list, tuple)):
        return [_written(each) for each in value]
    if isinstance(value, dict) and all(isinstance(name, str) for name in value):
        return {name: _written(each) for name, each in value.items()}
    raise TypeError(f"{type(value).__name__} has no written form")


def _real(value: Any) -> Any:
    """Make an argument from its JSON."""
    import torch

    if isinstance(value, list):
        return [_real(each) for each in value]
    if not isinstance(value, dict):
        return value
    if "tensor" in value:
        size, stride, dtype = value["tensor"]
        return Like(tuple(size), tuple(stride), _real(dtype)).real()
    return torch.device(value["device"]) if "device" in value else getattr(torch, value["torch"])


@dataclass(frozen=True, slots=True)
class Cost:
    """The result of a replay."""

    workspace: int
    """Bytes that the operator allocates beyond its result and frees again."""
    kept: int
    """Bytes that stay after its first use: compiled code, primitives, libraries loaded late."""


def replay(function: Any, arguments: Callable[[], tuple[Sequence[Any], Mapping[str, Any]]]) -> Cost:
    """Run an operator, first to compile its kernel, then to measure it.

    The number of scratch pages that a kernel writes to varies (bfloat16 convolutions: 5 of 70 MiB), so a large
    workspace is measured until two runs agree; the largest counts.

    Parameters
    ----------
    arguments
        Makes the arguments, whose memory must not exist before.

    Raises
    ------
    RuntimeError, MemoryError
        If there is not enough memory for this operator.
    """
    import torch

    before = _resident_without_top()
    args, kwargs = arguments()
    with torch.no_grad():
        try:
            function(*args, **kwargs)
        except RuntimeError as error:
            if guard.is_out_of_memory(error):
                raise
            log.debug("not replayed: %s: %s", function, error)
            return Cost(0, 0)
        workspace = _run(function, args, kwargs)
        for _ in range(REPEATS if workspace >= LARGE_WORKSPACE else 0):
            again = _run(function, args, kwargs)
            settled = abs(again - workspace) <= AGREE
            workspace = max(workspace, again)
            if settled:
                break
    del args, kwargs
    return Cost(workspace, max(0, _resident_without_top() - before))


def _run(function: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> int:
    """Run the operator; returns the bytes at its peak beyond its result."""
    glibc.trim()
    before = resident()
    reset_peak()
    result = function(*args, **kwargs)
    peak = lifetime_peak()
    made = _storages(result)
    for storage in _storages((args, kwargs)):
        made.pop(storage, None)  # views and in-place results
    return max(0, peak - before - sum(made.values()))


def _resident_without_top() -> int:
    """Return resident bytes without the heap's free end, which may grow by a whole huge page for a few bytes."""
    glibc.trim()
    heap = glibc.statistics()
    return resident() - (int(heap.keepcost) if heap is not None else 0)


def _storages(values: Any) -> dict[int, int]:
    """Return the bytes of each distinct storage by its address."""
    from torch.utils._pytree import tree_flatten

    storages = [tensor.untyped_storage() for tensor in tensors(tree_flatten(values)[0])]
    return {storage.data_ptr(): storage.nbytes() for storage in storages}


def tensors(values: Any) -> "list[torch.Tensor]":
    """Return those of the flattened values that are tensors."""
    import torch

    return [value for value in values if isinstance(value, torch.Tensor)]


MEASURE = "common.memory.costs.operators:measure"
WARM_UP = "common.memory.costs.operators:warm_up"


def warm_up() -> None:
    """Load torch, start its threads and use its libraries once, so that no operator's cost includes that."""
    import torch
    import torch.nn.functional as F

    kernels = ((16, 1, 3, 3, 3), (32, 16, 2, 2, 2), (32, 16, 2, 2, 2), (16, 32, 3, 3, 3), (3, 16, 1, 1, 1))
    stem, down, up, block, head = (torch.ones(*shape, requires_grad=True) for shape in kernels)
    last, few = (torch.ones(*shape, requires_grad=True) for shape in ((32, 5, 3, 3, 3), (5, 5, 3, 3, 3)))
    precisions = (False, True) if "bf16" in cpu.precisions("torch") else (False,)  # nobody uses it without kernels
    for amp, samples in product(precisions, (1, 2)):
        image, classes = torch.ones(samples, 1, 16, 16, 16), torch.ones(samples, 1, 16, 16, 16, dtype=torch.int64)
        with torch.autocast("cpu", torch.bfloat16, enabled=amp):
            fine = F.leaky_relu(F.instance_norm(F.conv3d(image, stem, padding=1)))
            coarse = F.relu(F.group_norm(F.conv3d(fine, down, stride=2), 2))
            joined = torch.cat(
                [F.conv_transpose3d(coarse, up, stride=2), F.interpolate(coarse, scale_factor=2)[:, :16]], 1
            )
            logits = F.conv3d(F.conv3d(joined, block, padding=1), head)
            # Convolutions of many voxels and few channels use other code, as at the end of MONAI's ``UNet``.
            wide = F.interpolate(coarse, scale_factor=3)
            rest = F.conv3d(F.conv_transpose3d(wide, last, stride=2, padding=1, output_padding=1), few, padding=1)
            products = logits[..., ::2, ::2, ::2].flatten(1) @ torch.ones(3 * 8**3, 16)
        scores = logits.float().log_softmax(1)
        loss = scores.gather(1, classes) + scores.exp().sum(1, keepdim=True) * (classes > 0)
        (loss.sum() + products.softmax(1).sum() + rest.float().sum()).backward()  # type: ignore[no-untyped-call]
    F.embedding_bag(torch.zeros(4, 4, dtype=torch.int64), torch.ones(8, 8), mode="sum")


def measure(*, key: str, operator: str, args: Any, kwargs: Any, warm_up: str) -> dict[str, float]:
    """Replay a call from its JSON; runs in a probe's child, after ``warm_up``."""
    import torch

    function: Any = torch.ops
    for name in operator.split("."):
        function = getattr(function, name)
    cost = replay(function, lambda: (_real(args), {name: _real(value) for name, value in kwargs.items()}))
    OperatorCosts().add(key, cost)
    return asdict(cost)


VERSION = 6
"""Increase it if what a replay measures changes."""


def default_file(threads: int | None = None) -> Path:
    """Return ``operators-HASH.jsonl`` in the cache: one file per torch version, CPU, thread count and allocator.

    Parameters
    ----------
    threads
        ``None`` for as many as this process was started with.
    """
    started = os.environ.get("OMP_NUM_THREADS", "") if threads is None else str(threads)
    facts = [*environment_facts(("torch",)), started, VERSION]
    return cache_directory() / f"operators-{hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]}.jsonl"


@dataclass(slots=True)
class OperatorCosts:
    """Costs of operators from the cache; missing ones are replayed in this process.

    Lines are appended whole, so that processes can share the file; a damaged line, or one
    that makes no sense, is ignored.
    """

    file: Path = field(default_factory=default_file)
    _known: dict[str, Cost] = field(default_factory=dict)

    def __post_init__(self) -> None:
        with suppress(OSError):
            for line in self.file.read_text(encoding="utf-8", errors="replace").splitlines():
                with suppress(ValueError, TypeError, KeyError, AttributeError):
                    entry = json.loads(line)
                    key = entry.pop("key")
                    if plausible(entry):
                        self._known[key] = Cost(**entry)

    def __getitem__(self, call: Call) -> Cost:
        if (cost := self._known.get(call.key)) is None:
            cost = replay(call.function, call.arguments)
            self.add(call.key, cost)
        return cost

    def __contains__(self, call: Call) -> bool:
        return call.key in self._known

    def add(self, key: str, cost: Cost) -> None:
        """Add a cost to the cache."""
        self._known[key] = cost
        self._append({"key": key, **asdict(cost)})

    def _append(self, entry: dict[str, Any]) -> None:
        with suppress(OSError):  # a read-only cache costs time, not correctness
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with self.file.open("ab", buffering=0) as stream:
                stream.write((json.dumps(entry) + "\n").encode())
