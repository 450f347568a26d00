"""The optimisers that training knows, by name. This module imports no torch; ``build`` does.

What each holds is traced with the step (``common.memory.costs.trace``); ``docs/training.md`` has a table.
"""

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from common.errors import UsageError

if TYPE_CHECKING:
    import torch

NAMES = ("adamw", "adamw8bit", "adafactor", "rowwise_adagrad", "sgd")
DEFAULT = "adamw"
"""Any other changes what is learned, and is never chosen for the user."""


def check(name: str) -> None:
    """Raise where there is none of this name.

    Raises
    ------
    UsageError
        Then; it names those that there are.
    """
    if name not in NAMES:
        raise UsageError(f"no optimizer {name!r}; there are {', '.join(NAMES)}")


def build(
    name: str, parameters: "Iterable[torch.nn.Parameter]", *, learning_rate: float, weight_decay: float = 0.0
) -> "torch.optim.Optimizer":
    """The optimiser, in one parameter group; its step can be called again after a failed allocation.

    Raises
    ------
    UsageError
        If there is none of this name.
    """
    check(name)
    import torch

    from common.training import adamw8bit, retryable, rowwise_adagrad

    types: dict[str, Callable[..., torch.optim.Optimizer]] = {
        "adamw": retryable.AdamW,
        "adamw8bit": adamw8bit.AdamW8bit,
        "adafactor": retryable.Adafactor,
        "rowwise_adagrad": rowwise_adagrad.RowwiseAdagrad,
        "sgd": retryable.SGD,
    }
    return types[name](parameters, lr=learning_rate, weight_decay=weight_decay)


def step_in_backward(optimizer: "torch.optim.Optimizer", stepped: Callable[[], None]) -> None:
    """Update each parameter when backward has its gradient, and drop that; ``stepped`` is told.

    No other gradient is alive then, so the optimiser's own step does exactly this one.
    """

    def update(parameter: "torch.Tensor") -> None:
        optimizer.step()
        parameter.grad = None
        stepped()

    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.register_post_accumulate_grad_hook(update)
