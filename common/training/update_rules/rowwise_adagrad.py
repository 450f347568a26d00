"""Row-wise Adagrad: one float of state per row of a table, and only the rows in a batch are updated.

This is the optimiser of FBGEMM's and TorchRec's embedding tables (``EXACT_ROWWISE_ADAGRAD``). A row's state is the sum
over steps of its gradient's mean square. The gradients of a row that occurs several times in a batch are added first.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from common.training.update_rules.retryable import OneByOne


class RowwiseAdagrad(OneByOne):
    """Adagrad with one learning rate per row, for sparse and dense gradients.

    ``s += mean(g * g)`` over the row, then ``row -= lr * g / (sqrt(s) + eps)``. Each value of a vector is a row, so
    biases and scales are updated by plain Adagrad.

    Parameters
    ----------
    weight_decay
        Decoupled, as in AdamW: rows in the batch shrink by ``lr * weight_decay`` before they are updated.
    """

    def __init__(
        self, parameters: Iterable[Tensor], *, lr: float = 1e-2, eps: float = 1e-8, weight_decay: float = 0.0
    ) -> None:
        super().__init__(parameters, {"lr": lr, "eps": eps, "weight_decay": weight_decay})

    def update(self, parameter: Tensor, group: dict[str, Any]) -> None:
        """Update one table, or the rows in its sparse gradient."""
        assert parameter.grad is not None
        state = self.state[parameter]
        if not state:
            state["sum"] = parameter.new_zeros(len(parameter) if parameter.dim() else 1)
        sums, table = state["sum"], parameter.view(len(state["sum"]), -1)
        decay = 1 - group["lr"] * group["weight_decay"]
        if parameter.grad.is_sparse:
            gradient = parameter.grad.coalesce()
            (rows,), values = gradient.indices(), gradient.values().view(gradient._nnz(), -1)
            after = sums[rows] + _mean_square(values)
            change = values * (after.sqrt() + group["eps"]).reciprocal_().mul_(-group["lr"])[:, None]
            if decay != 1:
                change.add_(table[rows], alpha=decay - 1)
            sums.index_copy_(0, rows, after)
            table.index_add_(0, rows, change)
            return
        values = parameter.grad.view(len(sums), -1)
        after = sums + _mean_square(values)
        factor = (after.sqrt() + group["eps"]).reciprocal_().mul_(-group["lr"])[:, None]
        sums.copy_(after)
        table.mul_(decay).addcmul_(values, factor)


def _mean_square(values: Tensor) -> Tensor:
    """Return the mean square of each row, (rows,), without squaring the whole matrix."""
    norm: Tensor = torch.linalg.vector_norm(values, dim=1)
    return norm.square_().div_(values.shape[1])
