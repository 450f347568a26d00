"""An exponential moving average of a network's weights, which is validated and written in their place."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


class WeightAverage:
    """The average of a network's weights over the steps of a training.

    The decay begins low and rises to its full value, ``(1 + n) / (10 + n)`` after n steps, so that random weights are
    soon forgotten (TensorFlow's ``ExponentialMovingAverage`` with ``num_updates``).

    Parameters
    ----------
    weights
        The network's own parameters and buffers by name; their present values are the first average.
    decay
        Share of the average that a step leaves, in (0, 1).

    Examples
    --------
    >>> import torch
    >>> network = torch.nn.Linear(1, 1, bias=False)
    >>> _ = torch.nn.init.constant_(network.weight, 0.0)
    >>> average = WeightAverage(dict(network.named_parameters()), decay=0.9)
    >>> _ = torch.nn.init.constant_(network.weight, 1.0)
    >>> average.update()
    >>> with average.applied():
    ...     round(float(network.weight), 4)
    0.8182
    """

    def __init__(self, weights: "Mapping[str, torch.Tensor]", decay: float) -> None:
        self.weights, self.decay, self.steps = weights, decay, 0
        self.tensors = {name: tensor.detach().clone() for name, tensor in weights.items()}
        """The average, by the same names."""

    def update(self) -> None:
        """Move the average towards the present weights, after a step."""
        import torch

        self.steps += 1
        share = 1 - min(self.decay, (1 + self.steps) / (10 + self.steps))
        with torch.no_grad():
            for name, tensor in self.weights.items():
                if tensor.is_floating_point():
                    self.tensors[name].lerp_(tensor, share)
                else:
                    self.tensors[name].copy_(tensor)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Context in which the network has the average as its weights."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def load(self, tensors: "dict[str, torch.Tensor]", steps: int) -> None:
        """Continue from ``tensors`` after ``steps`` steps."""
        self.tensors, self.steps = tensors, steps

    def _swap(self) -> None:
        for name, tensor in self.weights.items():
            tensor.data, self.tensors[name] = self.tensors[name], tensor.data
