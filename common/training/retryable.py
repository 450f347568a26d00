"""Optimisers whose step can be repeated after a failed allocation: no parameter is ever updated twice or by half.

PyTorch's fused optimisers make all states, then update everything without allocating; here they also forget states
that were made in vain. The others go parameter by parameter, and let go of each gradient once it is applied, so that
calling ``step`` again goes on where it stopped.
"""

from abc import abstractmethod
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor


def _forget(optimizer: torch.optim.Optimizer, known: set[Tensor]) -> None:
    for parameter in set(optimizer.state) - known:
        del optimizer.state[parameter]


class AdamW(torch.optim.AdamW):
    """``torch.optim.AdamW(fused=True)`` of one parameter group: one pass over each tensor, no copies."""

    def __init__(self, parameters: Any, **arguments: Any) -> None:
        super().__init__(parameters, fused=True, **arguments)

    def step(self, closure: Any = None) -> Any:
        """As PyTorch's; after a failure, as if it had not been called."""
        known = set(self.state)
        try:
            return super().step(closure)
        except (RuntimeError, MemoryError):
            _forget(self, known)
            raise


class OneByOne(torch.optim.Optimizer):
    """An optimiser that updates each parameter by itself, and then drops its gradient."""

    @abstractmethod
    def update(self, parameter: Tensor, group: dict[str, Any]) -> None:
        """Update one parameter; everything it allocates, it allocates before its first change."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update all parameters that have a gradient; after a failure, call again to go on."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    known = set(self.state)
                    try:
                        self.update(parameter, group)
                    except (RuntimeError, MemoryError):
                        _forget(self, known)
                        raise
                    parameter.grad = None


class SGD(OneByOne):
    """Plain stochastic gradient descent: no state, and everything in place; with sparse gradients, only their rows."""

    def __init__(self, parameters: Any, *, lr: float, weight_decay: float = 0.0) -> None:
        super().__init__(parameters, {"lr": lr, "weight_decay": weight_decay})

    def update(self, parameter: Tensor, group: dict[str, Any]) -> None:
        """``p -= lr * (g + weight_decay * p)``."""
        assert parameter.grad is not None
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.add_(parameter.grad, alpha=-group["lr"])


class Adafactor(torch.optim.Adafactor):
    """``torch.optim.Adafactor``, one parameter at a time, each with a copy to go back to."""

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update all parameters that have a gradient; after a failure, call again to go on."""
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
        known = set(self.state)
        values = parameter.detach().clone()
        states = {name: state.clone() for name, state in self.state.get(parameter, {}).items() if state is not None}
        try:
            super().step()  # type: ignore[no-untyped-call]
        except (RuntimeError, MemoryError):
            _forget(self, known)
            with torch.no_grad():
                parameter.copy_(values)
            for name, state in states.items():
                self.state[parameter][name].copy_(state)
            raise


def _with_gradient(optimizer: torch.optim.Optimizer) -> Iterator[Tensor]:
    for group in optimizer.param_groups:
        yield from (parameter for parameter in group["params"] if parameter.grad is not None)
