"""The optimisers that training knows, by name, with what each holds: states, and what a step takes for a moment.

Prices are arithmetic on the parameters' shapes, and this module imports no torch; ``build`` makes the optimiser.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from types import MappingProxyType
from typing import TYPE_CHECKING

from common.errors import UsageError

if TYPE_CHECKING:
    import torch

Shape = Sequence[int]
FLOAT = 4
BLOCK = 256
"""Values of an 8-bit state that share a scale."""
CHUNK = 1 << 18
"""Values of an 8-bit state that are updated at a time; a multiple of ``BLOCK``."""
SMALLEST = 4096
"""Tensors with fewer values (biases, norms) keep float32 moments in ``adamw8bit``, as in bitsandbytes."""
SCRATCH = 5
"""Float32 buffers of a chunk's length that a step of ``adamw8bit`` holds, beside one of the rounding's turns."""


@dataclass(frozen=True, slots=True)
class Kind:
    """One optimiser, for float32 parameters."""

    state: Callable[[Shape], int]
    """Bytes of state for a parameter of this shape."""
    sparse: bool = False
    """Whether it takes sparse gradients, and then touches only their rows."""


def _factored(shape: Shape) -> int:
    """Adafactor's second moment: row and column means over the last two axes; whole for a vector."""
    if len(shape) < 2:
        return FLOAT * prod(shape) + FLOAT
    return FLOAT * (prod(shape[:-1]) + prod(shape[:-2]) * shape[-1]) + FLOAT


def _eight_bits(shape: Shape) -> int:
    if prod(shape) < SMALLEST:
        return 2 * FLOAT * prod(shape) + FLOAT
    blocks = -(-prod(shape) // BLOCK)
    return 2 * blocks * (BLOCK + FLOAT) + FLOAT


def _rows(shape: Shape) -> int:
    return FLOAT * (shape[0] if shape else 1)


def _nothing(shape: Shape) -> int:
    return 0


KINDS: Mapping[str, Kind] = MappingProxyType(
    {
        "adamw": Kind(lambda shape: 2 * FLOAT * prod(shape) + FLOAT),
        "adamw8bit": Kind(_eight_bits),
        "adafactor": Kind(_factored),
        "rowwise_adagrad": Kind(_rows, sparse=True),
        "sgd": Kind(_nothing, sparse=True),
    }
)
DEFAULT = "adamw"
"""Any other changes what is learned, and is never chosen for the user."""


def kind(name: str) -> Kind:
    """The table's row.

    Raises
    ------
    UsageError
        If there is none.
    """
    if name not in KINDS:
        raise UsageError(f"no optimizer {name!r}; there are {', '.join(KINDS)}")
    return KINDS[name]


def build(
    name: str, parameters: "Iterable[torch.nn.Parameter]", *, learning_rate: float, weight_decay: float = 0.0
) -> "torch.optim.Optimizer":
    """The optimiser, in one parameter group; its step can be called again after a failed allocation.

    Raises
    ------
    UsageError
        If there is none of this name.
    """
    kind(name)
    import torch

    from common.training import adamw8bit, rowwise_adagrad, updates

    types: dict[str, Callable[..., torch.optim.Optimizer]] = {
        "adamw": updates.AdamW,
        "adamw8bit": adamw8bit.AdamW8bit,
        "adafactor": updates.Adafactor,
        "rowwise_adagrad": rowwise_adagrad.RowwiseAdagrad,
        "sgd": updates.SGD,
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
