"""Checkpoints: one file holds all state that the next training step depends on.

Tensors are stored as safetensors and the rest as JSON in the same file's header, so that one rename publishes both.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.errors import BadInput
from common.files import atomic_file

if TYPE_CHECKING:
    import torch
    from torch import Tensor

LAST = "last.safetensors"
NETWORK, OPTIMIZER, RANDOM, MORE = "network.", "optimizer.", "random.torch", "more."
"""Names of a checkpoint's tensors, or their beginnings."""


def save(
    path: Path,
    *,
    network: "torch.nn.Module",
    optimizer: "torch.optim.Optimizer",
    state: Mapping[str, Any],
    more: "Mapping[str, Tensor] | None" = None,
) -> None:
    """Write a checkpoint atomically.

    Parameters
    ----------
    state
        Everything else, serialisable as JSON: the step reached, the run's settings, the metrics so far.
    more
        Further tensors, which ``more_of`` returns.
    """
    import torch
    from safetensors.torch import save_file

    tensors: dict[str, Tensor] = {NETWORK + name: tensor for name, tensor in distinct(network).items()}
    tensors |= {
        f"{OPTIMIZER}{index}.{key}": value
        for index, values in optimizer.state_dict()["state"].items()
        for key, value in values.items()
    }
    tensors |= {MORE + name: tensor for name, tensor in (more or {}).items()}
    tensors[RANDOM] = torch.get_rng_state()
    seen: set[int] = set()
    for name, tensor in tensors.items():
        tensors[name] = tensor.clone() if tensor.data_ptr() in seen else tensor.contiguous()
        seen.add(tensor.data_ptr())
    with atomic_file(path) as temporary:
        save_file(tensors, temporary, {"state": json.dumps(state)})


def distinct(network: "torch.nn.Module") -> "dict[str, Tensor]":
    """Return a network's parameters and buffers, each under the first of its names.

    A module that is registered twice has two (DynUNet's blocks), or four (nnU-Net's encoders).
    """
    first = _first_names(network)
    return {name: tensor for name, tensor in network.state_dict().items() if first[name] == name}


def _first_names(network: "torch.nn.Module") -> dict[str, str]:
    """By each name of a parameter or buffer, the first one."""
    first: dict[int, str] = {}
    return {name: first.setdefault(id(own), name) for name, own in network.state_dict(keep_vars=True).items()}


def read_state(path: Path) -> dict[str, Any]:
    """Read the JSON part of a checkpoint without its tensors.

    Raises
    ------
    BadInput
        The file is not a checkpoint.
    """
    from safetensors import safe_open

    try:
        with safe_open(path, framework="np") as stream:
            state: dict[str, Any] = json.loads(stream.metadata()["state"])
    except Exception as error:  # safetensors has its own exception type
        raise BadInput(f"{path}: not a checkpoint ({error}); remove it to start again") from None
    return state


def restore(path: Path, *, network: "torch.nn.Module", optimizer: "torch.optim.Optimizer") -> None:
    """Load a checkpoint into a network and an optimiser of the same construction, and restore PyTorch's RNG.

    Raises
    ------
    BadInput
        Names or shapes are not those of this network.
    """
    apply(read_tensors(path), path, network=network, optimizer=optimizer)


def read_tensors(path: Path) -> "dict[str, Tensor]":
    """Read all tensors of a checkpoint."""
    from safetensors.torch import load_file

    return load_file(path)


def apply(
    tensors: "Mapping[str, Tensor]", path: Path, *, network: "torch.nn.Module", optimizer: "torch.optim.Optimizer"
) -> None:
    """``restore`` with tensors that have been read from ``path``, perhaps by another rank."""
    import torch

    weights = {key.removeprefix(NETWORK): value for key, value in tensors.items() if key.startswith(NETWORK)}
    states: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith(OPTIMIZER):
            index, _, name = key.removeprefix(OPTIMIZER).partition(".")
            states.setdefault(int(index), {})[name] = value
    weights |= {name: weights[first] for name, first in _first_names(network).items() if first in weights}
    try:
        network.load_state_dict(weights)
        optimizer.load_state_dict({**optimizer.state_dict(), "state": states})
    except (RuntimeError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0]
        raise BadInput(f"{path}: a checkpoint of another network ({reason}); remove it to start again") from None
    torch.set_rng_state(tensors[RANDOM])


def more_of(tensors: "Mapping[str, Tensor]") -> "dict[str, Tensor]":
    """Return the further tensors of a checkpoint that was read by ``read_tensors``."""
    return {name.removeprefix(MORE): tensor for name, tensor in tensors.items() if name.startswith(MORE)}


def save_weights(path: Path, weights: "Mapping[str, Tensor]") -> None:
    """Write a network's weights atomically."""
    from safetensors.torch import save_file

    with atomic_file(path) as temporary:
        save_file({name: tensor.contiguous() for name, tensor in weights.items()}, temporary)


def read_weights(path: Path) -> "dict[str, Tensor]":
    """Read what ``save_weights`` wrote."""
    from safetensors.torch import load_file

    return load_file(path)


def bytes_needed(tensors: int) -> int:
    """Return the bytes that ``save`` needs in addition to the training.

    safetensors serialises all tensors before it writes; 0.7 of this was measured.

    Parameters
    ----------
    tensors
        Bytes of all tensors in the checkpoint.
    """
    return tensors
