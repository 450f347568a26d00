"""Optimisers whose step can be repeated after a failed allocation: no parameter is updated twice or only in part.

PyTorch's fused optimisers create all states, then update everything without allocating. The class here also deletes
states whose update did not happen. The others update one parameter after the other and drop each gradient once it is
applied, so that a second call of ``step`` continues where the first stopped.
"""

from abc import abstractmethod
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor


def _delete_new_states(optimizer: torch.optim.Optimizer, before: set[Tensor]) -> None:
    for parameter in set(optimizer.state) - before:
        del optimizer.state[parameter]


class AdamW(torch.optim.AdamW):
    """``torch.optim.AdamW(fused=True)`` for one parameter group: one pass over each tensor, no copies."""

    def __init__(self, parameters: Any, **arguments: Any) -> None:
        super().__init__(parameters, fused=True, **arguments)

    def step(self, closure: Any = None) -> Any:
        """Step as PyTorch's AdamW; a failed call leaves no trace."""
        before = set(self.state)
        try:
            return super().step(closure)
        except (RuntimeError, MemoryError):
            _delete_new_states(self, before)
            raise


class OneByOne(torch.optim.Optimizer):
    """An optimiser that updates one parameter after the other and drops each gradient once it is applied."""

    @abstractmethod
    def update(self, parameter: Tensor, group: dict[str, Any]) -> None:
        """Update one parameter; all allocations must come before the first change."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update all parameters that have a gradient; after a failure a second call continues."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    before = set(self.state)
                    try:
                        self.update(parameter, group)
                    except (RuntimeError, MemoryError):
                        _delete_new_states(self, before)
                        raise
                    parameter.grad = None


class SGD(OneByOne):
    """Plain stochastic gradient descent in place, without state; a sparse gradient updates only its rows."""

    def __init__(self, parameters: Any, *, lr: float, weight_decay: float = 0.0) -> None:
        super().__init__(parameters, {"lr": lr, "weight_decay": weight_decay})

    def update(self, parameter: Tensor, group: dict[str, Any]) -> None:
        """Apply ``p -= lr * (g + weight_decay * p)``."""
        assert parameter.grad is not None
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.add_(parameter.grad, alpha=-group["lr"])


class Adafactor(torch.optim.Adafactor):
    """``torch.optim.Adafactor`` for one parameter at a time, with a copy to restore after a failure."""

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update all parameters that have a gradient; after a failure a second call continues."""
        pending = [(parameter, parameter.grad) for parameter in _with_gradient(self)]
        for parameter, _ in pending:
            parameter.grad = None
        try:
            while pending:
                parameter, parameter.grad = pending[0]
                self._step_one(parameter)
                parameter.grad = None
                pending.pop(0)
        finally:
            for parameter, gradient in pending:
                parameter.grad = gradient

    def _step_one(self, parameter: Tensor) -> None:
        before = set(self.state)
        values = parameter.detach().clone()
        states = {name: state.clone() for name, state in self.state.get(parameter, {}).items() if state is not None}
        try:
            super().step()  # type: ignore[no-untyped-call]
        except (RuntimeError, MemoryError):
            _delete_new_states(self, before)
            with torch.no_grad():
                parameter.copy_(values)
            for name, state in states.items():
                self.state[parameter][name].copy_(state)
            raise


def _with_gradient(optimizer: torch.optim.Optimizer) -> Iterator[Tensor]:
    for group in optimizer.param_groups:
        yield from (parameter for parameter in group["params"] if parameter.grad is not None)
