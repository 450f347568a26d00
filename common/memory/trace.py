"""What a training step will hold, without running it.

The step runs once on fake tensors, which have shapes and storages but no bytes, while a dispatch mode adds up the
storages that are alive. That misses what an operator allocates inside itself (63 of 169 MiB for a small 3D U-Net), so
each distinct operator is also replayed once, alone, on real tensors, and the kernel's high-water mark is read. The
peak is the largest sum of live storages and the running operator's workspace.

Measuring costs the memory of the largest single operator, never that of the step.
"""

import logging
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from common.memory import allocator, guard
from common.memory.budget import MIB
from common.memory.meter import lifetime_peak, reset_peak, resident

if TYPE_CHECKING:
    import torch

log = logging.getLogger("peakline.trace")

REPLAY_FROM = 1 * MIB
"""Operators that touch no storage of this size are not replayed: their workspaces are smaller still."""

SMALL_BLOCKS = 6 * MIB
"""Blocks below the mmap threshold and code of small operators, which no trace or replay sees (measured 1 to 4)."""

Prepared = tuple["torch.nn.Module", "torch.optim.Optimizer", Callable[[], object]]
"""A network, its optimiser, and a function that does one whole step with them."""


@dataclass(frozen=True, slots=True)
class _Like:
    """Enough of a tensor to make another one that runs the same kernel."""

    size: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: "torch.dtype"

    def real(self) -> "torch.Tensor":
        import torch

        extent = 1 + sum((n - 1) * s for n, s in zip(self.size, self.stride, strict=True)) if all(self.size) else 0
        storage = torch.zeros(extent, dtype=self.dtype)
        if self.dtype.is_floating_point:
            storage.normal_()  # zeros would be as large, but not as slow
        return storage.as_strided(self.size, self.stride)


@dataclass(frozen=True, slots=True)
class _Call:
    """One operator with its arguments; equal calls allocate the same."""

    function: Any
    leaves: tuple[Any, ...]
    layout: Any

    def arguments(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        from torch.utils._pytree import tree_unflatten

        real = [leaf.real() if isinstance(leaf, _Like) else leaf for leaf in self.leaves]
        args, kwargs = tree_unflatten(real, self.layout)
        return args, kwargs


@dataclass(slots=True)
class _Live:
    """Bytes of live storages, and after each operator how much that was and which call it had been."""

    bytes: int = 0
    history: list[tuple[int, _Call | None]] = field(default_factory=list)
    _storages: dict[int, Any] = field(default_factory=dict)

    def record(self, function: Any, leaves: list[Any], layout: Any, results: list[Any]) -> None:
        """Note one operator that has just run."""
        made = [tensor for tensor in _tensors(results) if self._is_new(tensor)]
        if made:
            heavy = any(t.untyped_storage().nbytes() >= REPLAY_FROM for t in (*_tensors(leaves), *made))
            self.history.append((self.bytes, _call(function, leaves, layout) if heavy else None))

    def _is_new(self, tensor: "torch.Tensor") -> bool:
        storage = tensor.untyped_storage()
        key, size = id(storage), storage.nbytes()
        if key in self._storages:
            return False

        def freed(_: object) -> None:
            self.bytes -= size
            self._storages.pop(key, None)

        self._storages[key] = weakref.ref(storage, freed)
        self.bytes += size
        return True


def _watch(live: _Live) -> Any:
    """A context in which every operator is recorded, and a value that is read (``item``) is 1: a fake one has none."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_flatten

    class Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func is torch.ops.aten._local_scalar_dense.default:
                return 1.0
            result = func(*args, **(kwargs or {}))
            live.record(func, *tree_flatten((args, kwargs or {})), tree_flatten(result)[0])
            return result

    return Watch()  # type: ignore[no-untyped-call]


def _tensors(values: Any) -> list["torch.Tensor"]:
    import torch

    return [value for value in values if isinstance(value, torch.Tensor)]


def _call(function: Any, leaves: list[Any], layout: Any) -> _Call | None:
    import torch

    described = tuple(
        _Like(tuple(x.shape), tuple(x.stride()), x.dtype) if isinstance(x, torch.Tensor) else x for x in leaves
    )
    try:
        hash(described)
    except TypeError:
        return None
    return _Call(function, described, layout)


def _bytes_of(tensors: Any) -> int:
    return sum(tensor.untyped_storage().nbytes() for tensor in _tensors(tensors))


def _replay(call: _Call) -> tuple[int, float]:
    """Bytes that the operator allocates beyond its result, and its seconds."""
    import torch
    from torch.utils._pytree import tree_flatten

    args, kwargs = call.arguments()
    with torch.no_grad():
        try:
            call.function(*args, **kwargs)  # the first run compiles the kernel
        except RuntimeError as error:
            if guard.is_out_of_memory(error):
                raise
            log.debug("not replayed: %s: %s", call.function, error)
            return 0, 0.0
        allocator.trim()
        before = resident()
        reset_peak()
        began = time.perf_counter()
        result = call.function(*args, **kwargs)
        seconds = time.perf_counter() - began
    kept = _bytes_of(tree_flatten(result)[0])
    return max(0, lifetime_peak() - before - kept), seconds


def price(prepare: Callable[[], Prepared]) -> dict[str, float]:
    """Price one training step in its steady state.

    Parameters
    ----------
    prepare
        Makes network, optimiser and step; called under fake tensors, of which every value that is read is 1.

    Returns
    -------
    dict
        Bytes of ``parameters``, ``gradients``, ``optimizer``, ``activations`` (with the batch) and ``workspace``, which
        add up to the step's peak; ``kernels``, code and caches that stay after first use; ``seconds``, the sum
        of the replayed operators' times.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    live = _Live()
    with FakeTensorMode(), _watch(live):
        network, optimizer, step = prepare()
        step()  # makes the optimiser's state
        live.history.clear()
        step()
    parameters = _bytes_of([*network.parameters(), *network.buffers()])
    gradients = _bytes_of(p for p in network.parameters() if p.requires_grad)
    states = _bytes_of(value for state in optimizer.state.values() for value in state.values())
    history = live.history
    del network, optimizer, step

    allocator.trim()
    loaded = resident()
    replayed: dict[_Call, tuple[int, float]] = {}
    for _, call in history:
        if call is not None and call not in replayed:
            replayed[call] = _replay(call)
    allocator.trim()
    kernels = SMALL_BLOCKS + max(0, resident() - loaded)

    def workspace(call: _Call | None) -> int:
        return replayed[call][0] if call is not None else 0

    held, last = max(history, key=lambda entry: entry[0] + workspace(entry[1]))
    return {
        "parameters": parameters,
        "gradients": gradients,
        "optimizer": states,
        "activations": max(0, held - parameters - gradients - states),
        "workspace": workspace(last),
        "kernels": kernels,
        "seconds": sum(replayed[call][1] for _, call in history if call is not None),
    }
