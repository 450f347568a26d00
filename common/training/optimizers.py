"""Optimisers by name. This module does not import torch; ``build`` does.

Their memory is traced with the training step (``common.memory.costs.trace``); ``docs/training.md`` has a table.
"""

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from common.errors import UsageError

if TYPE_CHECKING:
    import torch

NAMES = ("adamw", "adamw8bit", "adafactor", "rowwise_adagrad", "sgd")
DEFAULT = "adamw"
"""Other optimisers change the result, so the planner never chooses one."""


def check(name: str) -> None:
    """Check an optimiser's name.

    Raises
    ------
    UsageError
        The name is unknown; the message lists the names.
    """
    if name not in NAMES:
        raise UsageError(f"no optimizer {name!r}; there are {', '.join(NAMES)}")


def build(
    name: str, parameters: "Iterable[torch.nn.Parameter]", *, learning_rate: float, weight_decay: float = 0.0
) -> "torch.optim.Optimizer":
    """Make an optimiser with one parameter group. Its step can be called again after a failed allocation.

    Raises
    ------
    UsageError
        The name is unknown.
    """
    check(name)
    import torch

    from common.training.update_rules import adamw8bit, retryable, rowwise_adagrad

    types: dict[str, Callable[..., torch.optim.Optimizer]] = {
        "adamw": retryable.AdamW,
        "adamw8bit": adamw8bit.AdamW8bit,
        "adafactor": retryable.Adafactor,
        "rowwise_adagrad": rowwise_adagrad.RowwiseAdagrad,
        "sgd": retryable.SGD,
    }
    return types[name](parameters, lr=learning_rate, weight_decay=weight_decay)


def step_in_backward(optimizer: "torch.optim.Optimizer", stepped: Callable[[], None]) -> None:
    """Update each parameter during the backward pass as soon as its gradient is complete, and drop the gradient.

    No other gradient is alive then, so the optimiser's own step updates exactly this parameter.

    Parameters
    ----------
    stepped
        Called after each update.
    """

    def update(parameter: "torch.Tensor") -> None:
        optimizer.step()
        parameter.grad = None
        stepped()

    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.register_post_accumulate_grad_hook(update)
