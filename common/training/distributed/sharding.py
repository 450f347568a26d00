"""Model states shared out over ranks by PyTorch's FSDP2: each has a part of every parameter, gradient and state.

A layer's parameters are gathered when it computes and given back after it; its gradients are added up over the ranks,
each of which keeps its part. So all ranks must run the same number of forward and backward passes.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.memory.process import libraries
from common.memory.process.budget import MIB
from common.training import checkpoint
from common.training.distributed import row_files
from common.training.distributed.group import Group, watched
from common.training.distributed.row_files import SharedRows

if TYPE_CHECKING:
    import torch
    from torch import Tensor

CODE_BYTES = 46 * MIB
"""Memory of ``torch.distributed.fsdp`` and of what it imports (PSS of a process before and after: 44 MiB)."""
UNIT = 1 << 15
"""Numbers from which a layer is gathered by itself. Smaller ones stay together, and are there for the whole step."""
OPTIMIZERS = ("adamw", "sgd")
"""Optimisers that update each number by itself, or a parameter's numbers alike, so that a part can be updated."""
GATHERED = 6
"""Copies of the largest layer at a time: its parameters and those of the next one, each as received and as they are
used, its gradients, and these as they are sent."""


def share_out(network: "torch.nn.Module", group: Group, *, half: bool = False) -> None:
    """Leave each rank its part of the parameters; make the optimiser afterwards.

    Parameters
    ----------
    network
        The same on all ranks.
    group
        The ranks.
    half
        True to send and use parameters in bfloat16, under autocast; gradients are added up in float32.
    """
    libraries.priced("torch", "sympy", "mpmath")
    import torch
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

    mesh = init_device_mesh("cpu", (group.world.size,))
    kind = torch.bfloat16 if half else None
    policy = MixedPrecisionPolicy(kind, torch.float32 if half else None, cast_forward_inputs=False)
    for module in list(network.modules()):
        own = sum(parameter.numel() for parameter in module.parameters(recurse=False))
        if module is not network and own >= UNIT:
            fully_shard(module, mesh=mesh, mp_policy=policy)
    fully_shard(network, mesh=mesh, mp_policy=policy)
    for module in network.modules():
        if isinstance(module, FSDPModule):
            # The training step divides by the whole batch's denominators; gloo cannot multiply while it adds.
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)


def whole(tensors: "Mapping[str, Tensor]") -> "dict[str, Tensor]":
    """Gather tensors on every rank; those that are not shared out are returned as they are."""
    with watched():
        return {name: _full(tensor) for name, tensor in tensors.items()}


def _full(tensor: "Tensor") -> "Tensor":
    gather = getattr(tensor, "full_tensor", None)
    full: Tensor = tensor if gather is None else gather()
    return full.detach()


def save(
    path: Path,
    *,
    network: "torch.nn.Module",
    optimizer: "torch.optim.Optimizer",
    state: Mapping[str, Any],
    more: "Mapping[str, Tensor]",
    group: Group,
) -> None:
    """Write the checkpoint that ``common.training.checkpoint`` would write in one process; all ranks call it.

    Raises
    ------
    LostRank
        A rank has ended.
    """
    import torch

    tensors: dict[str, Tensor] = {checkpoint.NETWORK + name: one for name, one in checkpoint.distinct(network).items()}
    for number, parameter in enumerate(_parameters(optimizer)):
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"{checkpoint.OPTIMIZER}{number}.{key}"] = value
    tensors |= {checkpoint.MORE + name: tensor for name, tensor in more.items()}
    tensors[checkpoint.RANDOM] = torch.get_rng_state()
    row_files.save(path, {name: _rows(tensor, group) for name, tensor in tensors.items()}, state, group)


def load(
    path: Path,
    *,
    network: "torch.nn.Module",
    optimizer: "torch.optim.Optimizer",
    more: "Mapping[str, Tensor]",
    group: Group,
) -> None:
    """Load a checkpoint of any number of ranks into a network, its optimiser and ``more``; all ranks call it.

    Raises
    ------
    BadInput
        The checkpoint is damaged, or of another network.
    LostRank
        A rank has ended.
    """
    import torch

    tensors = {checkpoint.NETWORK + name: tensor for name, tensor in checkpoint.distinct(network).items()}
    tensors |= {checkpoint.MORE + name: tensor for name, tensor in more.items()}
    parameters = _parameters(optimizer)
    for name, shape in group.of_leader(row_files.shapes(path) if group.leads else None).items():
        if name.startswith(checkpoint.OPTIMIZER):
            number, _, key = name.removeprefix(checkpoint.OPTIMIZER).partition(".")
            parameter = parameters[int(number)]
            value = torch.zeros_like(parameter) if shape == list(parameter.shape) else torch.zeros(shape)
            optimizer.state[parameter][key] = value.detach()
            tensors[name] = value.detach()
    tensors[checkpoint.RANDOM] = random = torch.get_rng_state()
    row_files.load(path, {name: _rows(tensor, group) for name, tensor in tensors.items()}, group)
    torch.set_rng_state(random)


def _parameters(optimizer: "torch.optim.Optimizer") -> "list[Tensor]":
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _rows(tensor: "Tensor", group: Group) -> "Tensor | SharedRows":
    """A tensor's part on this rank: ``fully_shard`` cuts axis 0 as ``torch.chunk`` does."""
    local = getattr(tensor, "to_local", None)
    if local is None:
        return tensor
    size, rows = group.world.size, tensor.shape[0]
    step = -(-rows // size)
    ranges = tuple(range(min(rank * step, rows), min((rank + 1) * step, rows)) for rank in range(size))
    return SharedRows(local().detach(), ranges, group)
