"""Predict the peak memory of a training step without running it.

The step runs on fake tensors, which have shapes and storages but no memory, and a dispatch mode sums up the live
storages. Each distinct operator is replayed once by itself (``common.memory.costs.operators``) to measure its
workspace. The peak is the largest sum of live storages and the workspace of the operator that runs.
"""

import os
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from common.memory.costs.operators import Call, OperatorCosts, tensors
from common.memory.costs.probes import IN_CHILD, DeferredProbe, Probe, resolve
from common.memory.process import glibc, no_compiler
from common.memory.process.budget import MIB, page_size
from common.memory.process.glibc import MMAP_THRESHOLD

if TYPE_CHECKING:
    import torch

REPLAY_FROM = 1 * MIB
"""An operator is replayed if one of its storages has at least this size; workspaces of others are smaller."""
COMPILED = "convolution"
"""Part of the names of operators that are replayed at any size, because code is compiled for each shape and stays
(BasicUNet's small convolutions in bfloat16: 10 MiB)."""

BLOCK_OVERHEAD = 64 + 16
"""Bytes of alignment that torch requests, and of malloc's header."""

SMALL_BLOCKS = 4 * MIB
"""Allowance for blocks below the mmap threshold and for code of small operators, which neither trace nor replay
measures (0 to 2 MiB measured)."""

UNSHARED = (4, 2)
"""Reference counts of a gradient and its storage, read in a dispatch mode, if only autograd refers to it. A test
compares the outcome with torch's real allocations."""

Prepared = tuple["torch.nn.Module", "torch.optim.Optimizer", Callable[[], object]]
"""A network, its optimiser, and a function that runs one whole step with them."""


@dataclass(slots=True)
class _Live:
    """Bytes of live storages, with a history: their size after each operator, and the call."""

    bytes: int = 0
    history: list[tuple[int, Call | None]] = field(default_factory=list)
    _storages: dict[int, Any] = field(default_factory=dict)

    def record(self, function: Any, leaves: list[Any], layout: Any, results: list[Any], *, in_place: bool) -> None:
        """Record an operator (see ``Ledger.record``)."""
        made = [tensor for tensor in tensors(results) if self._is_new(tensor)]
        if made and not in_place:
            self.history.append((self.bytes, replayed_call(function, leaves, layout, made)))

    def _is_new(self, tensor: "torch.Tensor") -> bool:
        storage = tensor.untyped_storage()
        key, size = id(storage), resident_bytes(storage.nbytes())
        if key in self._storages:
            return False

        def freed(_: object) -> None:
            self.bytes -= size
            self._storages.pop(key, None)

        self._storages[key] = weakref.ref(storage, freed)
        self.bytes += size
        return True


def replayed_call(function: Any, leaves: list[Any], layout: Any, made: "Sequence[torch.Tensor]") -> Call | None:
    """Return the call to replay for its workspace; ``None`` if the operator is too small."""
    large = any(t.untyped_storage().nbytes() >= REPLAY_FROM for t in (*tensors(leaves), *made))
    return Call.of(function, leaves, layout) if large or COMPILED in function.__name__ else None


def resident_bytes(size: int) -> int:
    """Return the resident bytes of a block of ``size`` bytes: whole pages from the mmap threshold on."""
    size += BLOCK_OVERHEAD
    return size if size < MMAP_THRESHOLD else -(-size // page_size()) * page_size()


def unseen() -> int:
    """Return the allowance in bytes for what neither trace nor replay measures, with this process's tunables."""
    return SMALL_BLOCKS + (glibc.HUGE_PAGE if glibc.huge_pages() else 0)


class Ledger(Protocol):
    """Receives each operator that runs under ``watching``."""

    def record(self, function: Any, leaves: list[Any], layout: Any, results: list[Any], *, in_place: bool) -> None:
        """Record an operator that has just run.

        Parameters
        ----------
        leaves, layout
            Its arguments, flattened by ``tree_flatten``.
        results
            Its results, flattened.
        in_place
            True if a real step writes the result over the first operand.
        """
        ...


def watching(ledger: Ledger, convert: Callable[[Any], Any] = lambda leaf: leaf) -> Any:
    """Return a context that records every operator; ``item()`` of a tensor is 1, because fake tensors have no values.

    Parameters
    ----------
    convert
        Applied to each argument of each operator before it runs.
    """
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_flatten, tree_unflatten

    class Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func is torch.ops.aten._local_scalar_dense.default:
                return 1.0
            in_place = _accumulates_in_place(func, args)
            flat, layout = tree_flatten((args, kwargs or {}))
            leaves = [convert(leaf) for leaf in flat]
            args, kwargs = tree_unflatten(leaves, layout)
            result = func(*args, **kwargs)
            ledger.record(func, leaves, layout, tree_flatten(result)[0], in_place=in_place)
            return result

    return Watch()  # type: ignore[no-untyped-call]


def _accumulates_in_place(func: Any, args: Any) -> bool:
    """Tell whether autograd is adding two gradients that a real step would add in place.

    Autograd reuses the first gradient's memory if nothing else refers to it, but never under a dispatch mode
    (``InputBuffer::accumulate`` in torch/csrc/autograd/input_buffer.cpp).
    """
    import torch

    if func is not torch.ops.aten.add.Tensor or torch._C._current_graph_task_id() < 0 or torch.is_grad_enabled():
        return False
    storage = args[0].untyped_storage()
    return (args[0]._use_count(), torch._C._storage_Use_Count(storage._cdata)) == UNSHARED


def _bytes_of(values: Any) -> int:
    return sum(tensor.untyped_storage().nbytes() for tensor in tensors(values))


def price(prepare: Callable[[], Prepared], *, costs: OperatorCosts | None = None) -> dict[str, float]:
    """Predict the memory of one training step, once the optimiser's state exists.

    Parameters
    ----------
    prepare
        Makes network, optimiser and step; called under fake tensors, where ``item()`` is 1.
    costs
        Costs of operators; ``None`` for the user's cache.

    Returns
    -------
    dict
        Bytes of ``parameters``, ``gradients``, ``optimizer``, ``activations`` (with the batch) and ``workspace``, whose
        sum is the step's peak; of ``kernels``, code and caches that stay after first use; and ``unseen``, the allowance
        for the rest.

    Raises
    ------
    DeferredProbe
        In a probe's child, if operators have to be replayed; other children do that, and ``finish`` combines them.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    no_compiler.let_in()
    live = _Live()
    with FakeTensorMode(), watching(live):
        network, optimizer, step = prepare()
        step()  # makes the optimiser's state
        live.history.clear()
        step()
    parameters = _bytes_of([*network.parameters(), *network.buffers()])
    gradients = _bytes_of(p for p in network.parameters() if p.requires_grad)
    largest = max(_bytes_of(module.parameters(recurse=False)) for module in network.modules())
    states = _bytes_of(value for state in optimizer.state.values() for value in state.values())
    history = live.history
    del network, optimizer, step

    costs = costs if costs is not None else OperatorCosts()
    calls = list(dict.fromkeys(call for _, call in history if call is not None))
    index = {call: number for number, call in enumerate(calls)}
    state = {
        "parameters": parameters,
        "gradients": gradients,
        "optimizer": states,
        "largest": largest,
        "history": [(size, index.get(call) if call is not None else None) for size, call in history],
    }
    apart = {call: probe for call in calls if call not in costs and (probe := call.probe) is not None}
    if apart and os.environ.get(IN_CHILD):
        state["costs"] = [None if call in apart else asdict(costs[call]) for call in calls]
        raise DeferredProbe(list(apart.values()), "common.memory.costs.trace:finish", state)
    return finish(state | {"costs": [asdict(costs[call]) for call in calls]}, [])


def finish(state: Mapping[str, Any], replayed: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Combine a trace with the costs of its operators; the result is that of ``price``.

    Parameters
    ----------
    state
        ``parameters``, ``gradients`` and ``optimizer``: bytes; ``largest``: those of one module's own parameters;
        ``costs``: those of the distinct operators, or ``None`` for those in ``replayed``; ``history``: after each
        operator the live bytes and its index in ``costs``.
    replayed
        Costs of the other operators, in order.
    """
    missing = iter(replayed)
    costs = [cost if cost is not None else next(missing) for cost in state["costs"]]

    def workspace(number: int | None) -> float:
        return costs[number]["workspace"] if number is not None else 0

    size, last = max(state["history"], key=lambda entry: entry[0] + workspace(entry[1]))
    lasting = {name: state[name] for name in ("parameters", "gradients", "optimizer")}
    return {
        **lasting,
        "largest": state["largest"],
        "activations": max(0, size - sum(lasting.values())),
        "workspace": workspace(last),
        "kernels": sum(cost["kept"] for cost in costs),
        "unseen": unseen(),
    }


def measure(*, prepare: str, arguments: Mapping[str, Any], warm_up: str) -> dict[str, float]:
    """Predict the memory of the step that ``prepare`` (``"module:function"``) makes; runs in a probe's child."""
    function = resolve(prepare)
    return price(lambda: function(**arguments))


def probe(prepare: str, *, warm_up: str, libraries: Sequence[str], threads: int, **arguments: Any) -> Probe:
    """Return the probe of the step that ``prepare(**arguments)`` makes, after the command's warm-up."""
    return Probe.of(
        "common.memory.costs.trace:measure",
        libraries=libraries,
        threads=threads,
        prepare=prepare,
        arguments=arguments,
        warm_up=warm_up,
    )
