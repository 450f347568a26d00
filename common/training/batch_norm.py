"""Find BatchNorm, replace it, and freeze its running averages; it is not compatible with gradient accumulation.

BatchNorm's statistics are those of the micro-batch, so accumulation cannot give the full batch's gradients. Its running
averages are updated in every forward pass, also in recomputed ones (pytorch#96136).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

GROUPS = 8
"""Channels are normalised in this many groups, or in the largest smaller number that divides them."""


def _modules(network: "torch.nn.Module") -> "Iterator[tuple[str, torch.nn.modules.batchnorm._BatchNorm]]":
    from torch.nn.modules.batchnorm import _BatchNorm
    from torch.nn.modules.instancenorm import _InstanceNorm

    for name, module in network.named_modules():
        if isinstance(module, _BatchNorm) and not isinstance(module, _InstanceNorm):
            yield name, module


def active(network: "torch.nn.Module") -> list[str]:
    """Return the names of modules that normalise over the batch's samples in their present mode (train or eval)."""
    return [name for name, module in _modules(network) if module.training or module.running_mean is None]


def replace(network: "torch.nn.Module") -> list[str]:
    """Replace each BatchNorm by a ``GroupNorm`` with the same scale and shift; returns the modules' names.

    Each sample is then normalised by itself and accumulation is exact. Trained weights need some further training.
    """
    import math

    import torch

    names = []
    for name, old in list(_modules(network)):
        channels = old.num_features
        new = torch.nn.GroupNorm(math.gcd(GROUPS, channels), channels, eps=old.eps, affine=old.affine)
        if old.affine:
            new.load_state_dict({"weight": old.weight, "bias": old.bias})
            new.to(old.weight)
        parent, _, last = name.rpartition(".")
        setattr(network.get_submodule(parent), last, new.train(old.training))
        names.append(name)
    return names


@contextmanager
def frozen_statistics(network: "torch.nn.Module") -> Iterator[None]:
    """Do not update running averages inside the block; batch statistics are used as before.

    For a forward pass that is repeated.
    """
    kept: list[tuple[Any, float | None, Any]] = []
    for _, module in _modules(network):
        if module.training and module.track_running_stats:
            kept.append((module, module.momentum, module.num_batches_tracked))
            module.momentum, module.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for module, momentum, tracked in kept:
            module.momentum, module.num_batches_tracked = momentum, tracked
