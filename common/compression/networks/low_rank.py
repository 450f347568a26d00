"""Convolutions of low rank: Tucker's decomposition along the input and output channels (Tucker-2), or CP's.

A kernel of shape (O, I, x, y, z) becomes a 1x1x1 convolution to r channels, a convolution of the same size from r to s
channels, and a 1x1x1 convolution to O channels (Kim et al., ICLR 2016, arXiv 1511.06530). The factors are found by
higher-order orthogonal iteration (De Lathauwer et al., SIAM J. Matrix Anal. Appl. 21, 1324 (2000)), whose error is at
most the squared singular values that are left out of both unfoldings.

CP's decomposition is a sum of products of one vector for the inputs, one for the outputs and one for the kernel's
voxels: a 1x1x1 convolution to R channels, a convolution of each of them alone, and a 1x1x1 convolution (Lebedev et al.,
ICLR 2015, arXiv 1412.6553, without the division of the kernel along its axes). Alternating least squares find it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

from common.compression.networks.reshaping import LARGEST
from common.errors import BadInput

if TYPE_CHECKING:
    from torch import Tensor, nn

SWEEPS = 3
"""Iterations after the first factors; more lower the error by less than a thousandth of the kernel's norm."""
CP_SWEEPS = 60
"""Alternations of CP's least squares; twice as many lower the error of the shipped model's kernels by a hundredth."""
RIDGE = 1e-6
"""Share of the mean diagonal that is added to it, because terms of CP's decomposition become alike."""
FINEST = 40
"""Halvings of the energy's interval when ranks are chosen by size."""


@dataclass(frozen=True, slots=True)
class Ranks:
    """Channels between the three convolutions."""

    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Spectrum:
    """What is needed of a kernel to choose its ranks."""

    shape: tuple[int, ...]
    """Outputs, inputs, then the kernel's sides."""
    outputs: "Tensor"
    """Squared singular values of the unfolding along the outputs, falling."""
    inputs: "Tensor"

    def ranks(self, energy: float) -> Ranks:
        """The smallest ranks with which at most ``1 - energy`` of the kernel's squared norm is lost."""
        return Ranks(_count(self.inputs, energy), _count(self.outputs, energy))

    def parameters(self, ranks: Ranks) -> int:
        """Numbers in the three kernels; an outer one that would not lower the channels is left out."""
        outputs, inputs, *kernel = self.shape
        first = ranks.first * inputs if ranks.first < inputs else 0
        last = ranks.last * outputs if ranks.last < outputs else 0
        return first + ranks.first * ranks.last * prod(kernel) + last

    def smaller(self, energy: float) -> Ranks | None:
        """The ranks of ``ranks``, if there are fewer parameters with them."""
        ranks = self.ranks(energy)
        return ranks if self.parameters(ranks) < prod(self.shape) else None


def _count(squares: "Tensor", energy: float) -> int:
    """Rank that loses at most half of what both axes may lose together."""
    lost = (1 - energy) / 2 * float(squares.sum())
    tail = squares.flip(0).cumsum(0)
    return max(1, len(squares) - int((tail <= lost).sum()))


def kernel_of(layer: "nn.Module", weight: "Tensor") -> "Tensor":
    """A convolution's weight with the outputs first, in float64."""
    from torch.nn import ConvTranspose3d

    weight = weight.detach().double()
    return weight.transpose(0, 1) if isinstance(layer, ConvTranspose3d) else weight


def spectra(layers: "Mapping[str, nn.Module]", weights: "Mapping[str, Tensor]") -> dict[str, Spectrum]:
    """Spectra of all convolutions with a kernel of more than one voxel.

    Parameters
    ----------
    layers, weights
        Modules, and parameters, by name.
    """
    import torch
    from torch import nn

    found = {}
    for name, layer in layers.items():
        if not isinstance(layer, nn.Conv3d | nn.ConvTranspose3d) or prod(layer.kernel_size) == 1 or layer.groups != 1:
            continue
        if f"{name}.weight" not in weights:
            continue  # registered under another name as well
        kernel = kernel_of(layer, weights[f"{name}.weight"])
        squares = [torch.linalg.eigvalsh(_gram(kernel, axis)).flip(0).clamp(min=0) for axis in (0, 1)]
        found[name] = Spectrum(tuple(kernel.shape), *squares)
    return found


def choose(kernels: Mapping[str, Spectrum], *, energy: float | None, most: int | None, others: int) -> dict[str, Ranks]:
    """Ranks of the convolutions that get smaller.

    Parameters
    ----------
    energy
        Share of each kernel's squared norm that is kept.
    most
        Instead of it: the largest number of parameters of the network, which the largest energy reaches that can.
    others
        Parameters that are in no kernel.

    Raises
    ------
    BadInput
        If none gets smaller, or no energy is low enough.
    """

    def at(share: float) -> dict[str, Ranks]:
        return {name: ranks for name, one in kernels.items() if (ranks := one.smaller(share)) is not None}

    def size(chosen: Mapping[str, Ranks]) -> int:
        kept = (one.parameters(chosen[name]) if name in chosen else prod(one.shape) for name, one in kernels.items())
        return others + sum(kept)

    if most is not None:
        low, high = 0.0, 1.0
        if size(at(low)) > most:
            raise BadInput(f"--low-rank: {most} parameters are too few; ranks of 1 leave {size(at(low))}")
        for _ in range(FINEST):
            middle = (low + high) / 2
            low, high = (middle, high) if size(at(middle)) <= most else (low, middle)
        energy = low
    assert energy is not None
    chosen = at(energy)
    if not chosen and most is not None:
        raise BadInput(f"--low-rank: the weights are as small already ({size(chosen)} parameters); give a smaller size")
    if not chosen:
        raise BadInput(f"--low-rank: no convolution gets smaller with {energy:g} of its energy; give a smaller share")
    return chosen


def tucker(kernel: "Tensor", ranks: Ranks) -> tuple["Tensor", "Tensor", "Tensor"]:
    """Decompose a kernel.

    Parameters
    ----------
    kernel
        Shape (O, I, ...).
    ranks
        At most (I, O).

    Returns
    -------
    tuple
        Orthonormal inputs (I, first), core (last, first, ...), orthonormal outputs (O, last).
    """
    inputs = _leading(kernel, 1, ranks.first)
    for _ in range(1 + SWEEPS):
        outputs = _leading(_along(kernel, 1, inputs), 0, ranks.last)
        inputs = _leading(_along(kernel, 0, outputs), 1, ranks.first)
    return inputs, _along(_along(kernel, 1, inputs), 0, outputs), outputs


def _along(tensor: "Tensor", axis: int, matrix: "Tensor") -> "Tensor":
    """The tensor times a matrix (size, rank) along one of its axes."""
    import torch

    product: Tensor = torch.tensordot(tensor, matrix, dims=([axis], [0])).movedim(-1, axis)
    return product


def _gram(tensor: "Tensor", axis: int) -> "Tensor":
    unfolded = tensor.movedim(axis, 0).flatten(1)
    return unfolded @ unfolded.T


def _leading(tensor: "Tensor", axis: int, rank: int) -> "Tensor":
    """The leading left singular vectors of an unfolding, shape (size, rank)."""
    import torch

    vectors: Tensor = torch.linalg.eigh(_gram(tensor, axis))[1]
    return vectors.flip(1)[:, :rank]


def cp_rank(kernel: Spectrum, ranks: Ranks) -> int:
    """The rank of CP's decomposition with about as many numbers as Tucker's has at its ranks; at least 1."""
    outputs, inputs, *sides = kernel.shape
    return min(LARGEST, max(1, kernel.parameters(ranks) // (outputs + inputs + prod(sides))))


def cp(kernel: "Tensor", rank: int, *, sweeps: int = CP_SWEEPS) -> tuple["Tensor", "Tensor", "Tensor"]:
    """Decompose a kernel into a sum of ``rank`` products, by alternating least squares from random vectors.

    Parameters
    ----------
    kernel
        Shape (O, I, voxels).

    Returns
    -------
    tuple
        Outputs (O, rank), inputs (I, rank), voxels (V, rank); the vectors of a term are of equal length.
    """
    import torch

    noise = torch.Generator().manual_seed(0)
    parts = [torch.randn(size, rank, generator=noise, dtype=kernel.dtype) for size in kernel.shape]
    for _ in range(sweeps):
        for axis, letters in enumerate(("oiv,ir,vr->or", "oiv,or,vr->ir", "oiv,or,ir->vr")):
            others = [part for place, part in enumerate(parts) if place != axis]
            gram = (others[0].T @ others[0]) * (others[1].T @ others[1])
            gram.diagonal().add_(RIDGE * gram.diagonal().mean())
            parts[axis] = torch.linalg.solve(gram, torch.einsum(letters, kernel, *others).T).T
    lengths = torch.stack([part.norm(dim=0).clamp(min=1e-30) for part in parts])
    whole = lengths.prod(0) ** (1 / 3)
    outputs, inputs, voxels = (part / length * whole for part, length in zip(parts, lengths, strict=True))
    return outputs, inputs, voxels


def separated(layer: "nn.Module", name: str, weights: "Mapping[str, Tensor]", rank: int) -> "dict[str, Tensor]":
    """Weights of the three convolutions that ``reshaping.separated`` makes of a layer; otherwise as ``factors``."""
    weight = weights[f"{name}.weight"]
    kernel = kernel_of(layer, weight)
    outputs, inputs, voxels = cp(kernel.flatten(2), rank)
    parts = {
        f"{name}.first.weight": inputs.T[:, :, None, None, None],
        f"{name}.core.weight": voxels.T.reshape(rank, 1, *kernel.shape[2:]),
        f"{name}.last.weight": outputs[:, :, None, None, None],
    }
    made = {key: tensor.to(weight.dtype).contiguous() for key, tensor in parts.items()}
    if f"{name}.bias" in weights:
        made[f"{name}.last.bias"] = weights[f"{name}.bias"]
    return made


def factors(layer: "nn.Module", name: str, weights: "Mapping[str, Tensor]", ranks: Ranks) -> "dict[str, Tensor]":
    """Weights of the three convolutions that ``reshaping.factors`` makes of a layer.

    Parameters
    ----------
    layer, name
        The convolution.
    weights
        The network's parameters by name.
    """
    from torch.nn import ConvTranspose3d

    weight = weights[f"{name}.weight"]
    kernel = kernel_of(layer, weight)
    inputs, core, outputs = tucker(kernel, ranks)
    if ranks.first == kernel.shape[1]:  # an orthonormal square matrix: no layer of its own
        core = _along(core, 1, inputs.T)
    if ranks.last == kernel.shape[0]:
        core = _along(core, 0, outputs.T)
    if isinstance(layer, ConvTranspose3d):
        core = core.transpose(0, 1)
    parts = {f"{name}.core.weight": core}
    if ranks.first < kernel.shape[1]:
        parts[f"{name}.first.weight"] = inputs.T[:, :, None, None, None]
    if ranks.last < kernel.shape[0]:
        parts[f"{name}.last.weight"] = outputs[:, :, None, None, None]
    made = {key: tensor.to(weight.dtype).contiguous() for key, tensor in parts.items()}
    if f"{name}.bias" in weights:
        place = "last" if ranks.last < kernel.shape[0] else "core"
        made[f"{name}.{place}.bias"] = weights[f"{name}.bias"]
    return made
