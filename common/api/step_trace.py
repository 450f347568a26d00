"""Memory of a PyTorch step over time, without running it: the caller's own step on tensors without data.

Every operator's real arguments are replaced by fake tensors of the same layout, so nothing of the caller's is written
to or copied. A ledger adds up the storages that are alive, by what they are for.
"""

import weakref
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from common.errors import UsageError
from common.memory.costs.operators import Call, tensors
from common.memory.costs.trace import replayed_call, resident_bytes, watching

if TYPE_CHECKING:
    import torch

PARAMETERS, BUFFERS, GRADIENTS, STATES = "parameters", "buffers", "gradients", "optimizer states"
BATCH, ACTIVATIONS, OTHERS = "batch", "activations", "other tensors"
KINDS = (PARAMETERS, BUFFERS, GRADIENTS, STATES, BATCH, ACTIVATIONS, OTHERS)
"""Purposes of storages. Everything that a step makes is an activation, until it is seen to be something else."""

Moment = tuple[Counter[str], Call | None]
"""Bytes alive by kind after an operator, and the call to replay for its workspace."""


@dataclass(slots=True)
class StepLedger:
    """Bytes of live storages by kind, now and after each operator."""

    history: list[Moment] = field(default_factory=list)
    _bytes: Counter[str] = field(default_factory=Counter)
    _kinds: dict[int, str] = field(default_factory=dict)
    _since: dict[int, int] = field(default_factory=dict)
    """Place in the history from which on a storage is counted."""
    _watched: dict[int, Any] = field(default_factory=dict)

    def record(self, function: Any, leaves: list[Any], layout: Any, results: list[Any], *, in_place: bool) -> None:
        """Note one operator that has just run."""
        made = [tensor for tensor in tensors(results) if self.add(tensor, ACTIVATIONS)]
        if made and not in_place:
            self.history.append((self._bytes.copy(), replayed_call(function, leaves, layout, made)))

    def add(self, tensor: "torch.Tensor", kind: str) -> bool:
        """Count a tensor's storage; ``False`` if it is counted already."""
        storage = tensor.untyped_storage()
        key, size = id(storage), resident_bytes(storage.nbytes())
        if key in self._kinds:
            return False

        def freed(_: object) -> None:
            self._bytes[self._kinds.pop(key)] -= size
            del self._watched[key], self._since[key]

        self._watched[key] = weakref.ref(storage, freed)
        self._kinds[key], self._since[key] = kind, len(self.history)
        self._bytes[kind] += size
        return True

    def move(self, tensor: "torch.Tensor", kind: str) -> None:
        """Count a tensor's storage as another kind, from when it was made."""
        if not self.add(tensor, kind):
            storage = tensor.untyped_storage()
            key, size = id(storage), resident_bytes(storage.nbytes())
            for counted in (self._bytes, *(kinds for kinds, _ in self.history[self._since[key] :])):
                counted[self._kinds[key]] -= size
                counted[kind] += size
            self._kinds[key] = kind

    def restart(self) -> None:
        """Forget the history; what is alive stays."""
        self.history.clear()
        self._since = dict.fromkeys(self._since, 0)


class _Subjects:
    """The caller's objects that a step touches: parameters, modules and optimisers, found when they are used.

    Parameters
    ----------
    mode
        PyTorch's ``FakeTensorMode`` in which the step runs.
    """

    def __init__(self, mode: Any, ledger: StepLedger) -> None:
        self.mode, self.ledger = mode, ledger
        self.optimizers: list[torch.optim.Optimizer] = []
        self._fakes: dict[int, torch.Tensor] = {}
        """Fake tensors in place of the caller's, by the ids of those."""
        self._leaves: set[int] = set()
        """Ids of tensors whose gradients are known when they are made."""
        self._living: dict[int, Any] = {}
        """Weak references to all these: an id may be used again afterwards."""
        self._modules: dict[int, torch.nn.Module] = {}
        self._undo: list[Callable[[], None]] = []

    def convert(self, leaf: Any) -> Any:
        """An operator's argument: a fake tensor in place of a real one."""
        import torch

        if not isinstance(leaf, torch.Tensor):
            return leaf
        if leaf.requires_grad and leaf.is_leaf:
            self._parameter(leaf)
        if self.mode.is_our_fake(leaf):
            return leaf
        return self.fake(leaf, PARAMETERS if leaf.requires_grad and leaf.is_leaf else OTHERS)

    def fake(self, real: "torch.Tensor", kind: str) -> "torch.Tensor":
        """The fake tensor that stands for a real one, the same each time."""
        if id(real) not in self._fakes:
            if real.device.type != "cpu":
                where = "has no data (meta)" if real.device.type == "meta" else f"is on {real.device}"
                raise UsageError(f"step: a tensor {where}; it must be on the CPU")
            self._fakes[id(real)] = self.mode.fake_tensor_converter.from_real_tensor(self.mode, real)
            self._forget_later(real)
            self.ledger.add(self._fakes[id(real)], kind)
        return self._fakes[id(real)]

    def _parameter(self, parameter: "torch.Tensor") -> None:
        """Know its gradient when there is one, and leave the caller's as it was before."""
        from torch.utils._mode_utils import no_dispatch

        if id(parameter) in self._leaves:
            return
        self._leaves.add(id(parameter))
        self._forget_later(parameter)

        def made(one: "torch.Tensor") -> None:
            if one.grad is not None:
                self.ledger.move(one.grad, GRADIENTS)

        hook = parameter.register_post_accumulate_grad_hook(made)  # type: ignore[no-untyped-call]
        if self.mode.is_our_fake(parameter):
            return
        with no_dispatch():
            gradient, data = parameter.grad, parameter.data

        def undo() -> None:
            hook.remove()
            parameter.data = data  # a step may have assigned to it
            parameter.grad = gradient

        self._undo.append(undo)

    def _forget_later(self, tensor: "torch.Tensor") -> None:
        """Forget a tensor when it is freed; the step may have made it."""
        key = id(tensor)

        def forget(_: object) -> None:
            self._leaves.discard(key)
            self._fakes.pop(key, None)
            self._living.pop(key, None)

        self._living[key] = weakref.ref(tensor, forget)

    def module(self, module: "torch.nn.Module", inputs: object = None) -> None:
        """A module that is about to run: all its tensors count, and its attributes will be as they were."""
        for each in module.modules():
            if id(each) not in self._modules:
                self._modules[id(each)] = each
                self._keep(each)
                self._count(vars(each)["_parameters"], PARAMETERS)
                self._count(vars(each)["_buffers"], BUFFERS)

    def _count(self, table: "dict[str, torch.Tensor | None]", kind: str) -> None:
        """Count the tensors of a module's table, with stand-ins for those on ``meta``."""
        for name, tensor in table.items():
            if tensor is None:
                continue
            if tensor.device.type == "meta":
                table[name] = self._materialised(tensor, kind)
            else:
                self.fake(tensor, kind)

    def _materialised(self, tensor: "torch.Tensor", kind: str) -> "torch.Tensor":
        """The tensor on the CPU that stands for one on ``meta``, the same each time."""
        import torch

        if id(tensor) in self._fakes:
            return self._fakes[id(tensor)]
        made = torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype, device="cpu")
        if isinstance(tensor, torch.nn.Parameter):
            made = torch.nn.Parameter(made, requires_grad=tensor.requires_grad)
        self.ledger.move(made, kind)
        self._fakes[id(tensor)] = made
        self._forget_later(tensor)
        return made

    def _keep(self, module: "torch.nn.Module") -> None:
        attributes = vars(module).copy()
        tables = [(table, table.copy()) for name in ("_parameters", "_buffers") for table in [vars(module)[name]]]

        def undo() -> None:
            vars(module).clear()
            vars(module).update(attributes)
            for table, before in tables:
                table.clear()
                table.update(before)

        self._undo.append(undo)

    def optimizer(self, optimizer: "torch.optim.Optimizer", *arguments: object) -> None:
        """An optimiser that is about to step: it works on copies of its state and settings."""
        if any(optimizer is each for each in self.optimizers):
            return
        self.optimizers.append(optimizer)
        state, groups = optimizer.state, [group.copy() for group in optimizer.param_groups]
        optimizer.state = defaultdict(dict, {key: dict(value) for key, value in state.items()})
        for group in optimizer.param_groups:
            group["params"] = [
                self._materialised(parameter, PARAMETERS) if parameter.device.type == "meta" else parameter
                for parameter in group["params"]
            ]

        def undo() -> None:
            optimizer.state = state
            for group, before in zip(optimizer.param_groups, groups, strict=True):
                group.clear()
                group.update(before)

        self._undo.append(undo)

    def count_states(self) -> None:
        """Count tensors that the optimisers keep between steps as their state."""
        for optimizer in self.optimizers:
            for values in optimizer.state.values():
                for tensor in tensors(values.values()):
                    self.ledger.move(self.convert(tensor), STATES)

    @contextmanager
    def found(self) -> Iterator[None]:
        """A block in which modules and optimisers are found as they are used, and left afterwards as they were."""
        from torch.nn.modules.module import register_module_forward_pre_hook
        from torch.optim.optimizer import register_optimizer_step_pre_hook

        hooks = [register_module_forward_pre_hook(self.module), register_optimizer_step_pre_hook(self.optimizer)]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
            for undo in reversed(self._undo):
                undo()


def trace(step: Callable[[Any], object], batch: Any) -> tuple[list[Moment], bool]:
    """Run a step twice on tensors without data.

    Returns
    -------
    list
        Live bytes by kind after each operator of the second run.
    bool
        True if an optimiser stepped.

    Parameters
    ----------
    batch
        Tensors in any nesting of tuples, lists and dictionaries; only their layout is read.

    Raises
    ------
    UsageError
        If the step cannot run without data, or not on the CPU.
    """
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.utils._pytree import tree_map

    ledger = StepLedger()
    mode = FakeTensorMode()
    subjects = _Subjects(mode, ledger)

    def fake(leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor):
            return leaf
        with mode:  # which makes no operator of it: the batch may be on ``meta``
            made = torch.empty_strided(leaf.size(), leaf.stride(), dtype=leaf.dtype)
        ledger.add(made, BATCH)
        return made.requires_grad_(leaf.requires_grad)

    inputs = tree_map(fake, batch)
    try:
        with subjects.found(), mode, watching(ledger, subjects.convert):
            step(inputs)  # makes gradients' and optimisers' states
            subjects.count_states()
            ledger.restart()
            step(inputs)
    except UsageError:
        raise
    except Exception as error:
        reason = (str(error).splitlines() or [""])[0]
        raise UsageError(
            f"step: cannot be followed on tensors without data ({type(error).__name__}: {reason}); it must run on the"
            " CPU, uncompiled, and take no shape or decision from a tensor's values"
        ) from error
    return ledger.history, bool(subjects.optimizers)
