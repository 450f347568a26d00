"""What a training step will hold, without running it.

The step runs on fake tensors, which have shapes and storages but no bytes, while a dispatch mode adds up the storages
that are alive. Each distinct operator is also replayed once, alone (``common.memory.costs.operators``), for what its
kernel allocates inside itself. The peak is the largest sum of live storages and the running operator's workspace.
"""

import os
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from common.memory.costs.operators import Call, OperatorCosts, tensors
from common.memory.costs.probes import IN_CHILD, DeferredProbe, Probe, resolve
from common.memory.process import glibc
from common.memory.process.budget import MIB, page_size
from common.memory.process.glibc import MMAP_THRESHOLD

if TYPE_CHECKING:
    import torch

REPLAY_FROM = 1 * MIB
"""Operators that touch no storage of this size are not replayed: their workspaces are smaller still."""
COMPILED = "convolution"
"""In the names of operators that are replayed at any size: each shape has code of its own, which stays (BasicUNet's
small ones in bfloat16: 10 MiB)."""

BLOCK_OVERHEAD = 64 + 16
"""Alignment that torch asks for, and malloc's own header."""

SMALL_BLOCKS = 4 * MIB
"""Blocks below the mmap threshold and code of small operators, which no trace or replay sees (measured 0 to 2)."""
HUGE_PAGE = 2 * MIB
"""By which the heap grows where it asks for huge pages."""

UNSHARED = (4, 2)
"""References to a gradient and to its storage, seen from a dispatch mode, when autograd is the only holder; a test
compares the outcome with what torch really allocates."""

Prepared = tuple["torch.nn.Module", "torch.optim.Optimizer", Callable[[], object]]
"""A network, its optimiser, and a function that does one whole step with them."""


@dataclass(slots=True)
class _Live:
    """Bytes of live storages, and after each operator how much that was and which call it had been."""

    bytes: int = 0
    history: list[tuple[int, Call | None]] = field(default_factory=list)
    _storages: dict[int, Any] = field(default_factory=dict)

    def record(self, function: Any, leaves: list[Any], layout: Any, results: list[Any], *, in_place: bool) -> None:
        """Note one operator that has just run; ``in_place``: a real step reuses its first operand for the result."""
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
    """The call to replay for its workspace; ``None`` if the operator is too small to have one that matters."""
    large = any(t.untyped_storage().nbytes() >= REPLAY_FROM for t in (*tensors(leaves), *made))
    return Call.of(function, leaves, layout) if large or COMPILED in function.__name__ else None


def resident_bytes(size: int) -> int:
    """What a block of ``size`` bytes takes of memory: from the mmap threshold on, whole pages of its own."""
    size += BLOCK_OVERHEAD
    return size if size < MMAP_THRESHOLD else -(-size // page_size()) * page_size()


def unseen() -> int:
    """What no trace or replay sees of a step, in bytes, with this process's tunables."""
    return SMALL_BLOCKS + (HUGE_PAGE if glibc.huge_pages() else 0)


class Ledger(Protocol):
    """What ``watching`` tells about each operator."""

    def record(self, function: Any, leaves: list[Any], layout: Any, results: list[Any], *, in_place: bool) -> None:
        """Note an operator that has just run, with its flattened arguments and results.

        ``in_place``: a real step would have reused its first operand for the result.
        """
        ...


def watching(ledger: Ledger, convert: Callable[[Any], Any] = lambda leaf: leaf) -> Any:
    """A context in which every operator is recorded, and a value that is read (``item``) is 1: a fake one has none.

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
    """Whether this is autograd adding two gradients, and a real step would add into the first.

    Autograd reuses the first gradient's memory if nobody else holds it, but never under a dispatch mode
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
    """Price one training step in its steady state.

    Parameters
    ----------
    prepare
        Makes network, optimiser and step; called under fake tensors, of which every value that is read is 1.
    costs
        Where operators' costs are looked up; the user's cache if not given.

    Returns
    -------
    dict
        Bytes of ``parameters``, ``gradients``, ``optimizer``, ``activations`` (with the batch) and ``workspace``, which
        add up to the step's peak; ``kernels``, code and caches that stay after first use; ``unseen``, the allowance
        for the rest.

    Raises
    ------
    DeferredProbe
        In a probe's child, where operators are to be replayed: another does that, and ``finish`` the rest.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    live = _Live()
    with FakeTensorMode(), watching(live):
        network, optimizer, step = prepare()
        step()  # makes the optimiser's state
        live.history.clear()
        step()
    parameters = _bytes_of([*network.parameters(), *network.buffers()])
    gradients = _bytes_of(p for p in network.parameters() if p.requires_grad)
    states = _bytes_of(value for state in optimizer.state.values() for value in state.values())
    history = live.history
    del network, optimizer, step

    costs = costs if costs is not None else OperatorCosts()
    calls = list(dict.fromkeys(call for _, call in history if call is not None))
    place = {call: number for number, call in enumerate(calls)}
    state = {
        "parameters": parameters,
        "gradients": gradients,
        "optimizer": states,
        "history": [(held, place.get(call) if call is not None else None) for held, call in history],
    }
    apart = {call: probe for call in calls if call not in costs and (probe := call.probe) is not None}
    if apart and os.environ.get(IN_CHILD):
        state["known"] = [None if call in apart else asdict(costs[call]) for call in calls]
        raise DeferredProbe(list(apart.values()), "common.memory.costs.trace:finish", state)
    return finish(state | {"known": [asdict(costs[call]) for call in calls]}, [])


def finish(state: Mapping[str, Any], replayed: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """The price of a step that has been traced, once all its operators' costs are known.

    Parameters
    ----------
    state
        ``parameters``, ``gradients`` and ``optimizer``: bytes; ``known``: the distinct operators' costs, ``None`` where
        they come from ``replayed``, in order; ``history``: live bytes and place in ``known`` after each operator.
    """
    missing = iter(replayed)
    costs = [cost if cost is not None else next(missing) for cost in state["known"]]

    def workspace(number: int | None) -> float:
        return costs[number]["workspace"] if number is not None else 0

    held, last = max(state["history"], key=lambda entry: entry[0] + workspace(entry[1]))
    lasting = {name: state[name] for name in ("parameters", "gradients", "optimizer")}
    return {
        **lasting,
        "activations": max(0, held - sum(lasting.values())),
        "workspace": workspace(last),
        "kernels": sum(cost["kept"] for cost in costs),
        "unseen": unseen(),
    }


def measure(*, prepare: str, arguments: Mapping[str, Any], warm_up: str) -> dict[str, float]:
    """Price the step that ``prepare`` (``"module:function"``) makes; a probe's child, which has run ``warm_up``."""
    function = resolve(prepare)
    return price(lambda: function(**arguments))


def probe(prepare: str, *, warm_up: str, libraries: Sequence[str], threads: int, **arguments: Any) -> Probe:
    """The probe that prices what ``prepare(**arguments)`` makes, in a process warmed up like the command's."""
    return Probe.of(
        "common.memory.costs.trace:measure",
        libraries=libraries,
        threads=threads,
        prepare=prepare,
        arguments=arguments,
        warm_up=warm_up,
    )
