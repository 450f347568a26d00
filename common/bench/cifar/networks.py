"""Two networks for CIFAR-10, with their optimisers and loss.

``small`` is a textbook CNN. ``large`` fits in the memory that the plain training of ``small`` takes. It has the layout
of airbench94 (Jordan, "94% on CIFAR-10 in 3.29 seconds on a single GPU", arXiv 2404.00498): a fixed whitening layer,
three blocks of two convolutions with BatchNorm, SGD with Nesterov momentum. It is narrower, because its time is bounded
too.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from common.bench.cifar import dataset

WIDTHS = (32, 64, 128)
RATE, DECAY, MOMENTUM = 0.375, 1.3e-3, 0.85
BIAS_RATE = 64
"""Factor on the learning rate of BatchNorm's biases (airbench94)."""
LOGIT_SCALE = 1 / 9
WHITENING_BLOCK = 64
"""Images whose patches exist at a time (6 MiB), less than a training step takes."""
WHITENING_EPSILON = 5e-4
"""Added to the patches' eigenvalues, so that directions of almost no variance are not amplified."""


class Normalise(nn.Module):
    """Normalise uint8 images inside the network: a batch stays at a quarter of its float32 size until it is used.

    Parameters
    ----------
    channels_last
        Use PyTorch's channels-last layout, in which bfloat16 convolutions are fastest. Later layers keep it.
    """

    def __init__(self, *, channels_last: bool) -> None:
        super().__init__()
        self.layout = torch.channels_last if channels_last else torch.contiguous_format

    def forward(self, pixels: Tensor) -> Tensor:
        """Map uint8 (N, 3, 32, 32) to float32 of the same shape."""
        return dataset.normalise(pixels.contiguous(memory_format=self.layout))


class Scale(nn.Module):
    """Multiplies by a constant."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, values: Tensor) -> Tensor:
        """Return ``values * factor``, of the same shape."""
        return values * self.factor


def build(name: str) -> nn.Sequential:
    """Build a network for uint8 images; its first layer normalises them."""
    layers = {"small": small, "large": large}[name]()
    return nn.Sequential(Normalise(channels_last=name == "large"), *layers)


def small() -> nn.Sequential:
    """Build three 3x3 convolutions of 16 filters with pooling, a dense layer of 16, and ten classes."""
    layers: list[nn.Module] = []
    for channels in (3, 16, 16):
        layers += [nn.Conv2d(channels, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(16 * 4 * 4, 16), nn.ReLU(), nn.Linear(16, dataset.CLASSES))


def large() -> nn.Sequential:
    """Build a whitening layer, three blocks and a linear layer; 31x31, 15x15, 7x7 and 3x3 pixels."""
    first = nn.Conv2d(3, 24, 2)
    layers: list[nn.Module] = [first, nn.ReLU()]
    channels = first.out_channels
    for width in WIDTHS:
        layers += [_convolution(channels, width), nn.MaxPool2d(2), _norm(width), nn.ReLU()]
        layers += [_convolution(width, width), _norm(width), nn.ReLU()]
        channels = width
    layers += [nn.MaxPool2d(3), nn.Flatten(), nn.Linear(channels, dataset.CLASSES, bias=False), Scale(LOGIT_SCALE)]
    return nn.Sequential(*layers)


def _convolution(inputs: int, outputs: int) -> nn.Conv2d:
    """Make a convolution that starts as the identity on its first channels, so that depth does no harm at first."""
    layer = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
    with torch.no_grad():
        nn.init.dirac_(layer.weight[:inputs])
    return layer


def _norm(channels: int) -> nn.BatchNorm2d:
    """Make a BatchNorm without a scale; the next convolution can scale."""
    layer = nn.BatchNorm2d(channels, momentum=0.4)
    layer.weight.requires_grad_(False)
    return layer


def whiten(network: nn.Sequential, pixels: dataset.Pixels) -> None:
    """Fix the first convolution to the eigenvectors of 2x2 patches, scaled to unit variance, and their negatives.

    Parameters
    ----------
    pixels : uint8 array, (N, 3, 32, 32)
        A sample of the training images.
    """
    weight = network[1].weight
    assert isinstance(weight, Tensor)
    covariance = torch.zeros(12, 12)
    for block in torch.split(torch.from_numpy(pixels), WHITENING_BLOCK):
        patches = dataset.normalise(block).unfold(2, 2, 1).unfold(3, 2, 1).movedim(1, 3).reshape(-1, 12)
        covariance += patches.T @ patches / (len(patches) * len(pixels) / len(block))
    variances, directions = torch.linalg.eigh(covariance)
    filters = (directions / torch.sqrt(variances + WHITENING_EPSILON)).T.reshape(12, 3, 2, 2)
    with torch.no_grad():
        weight.copy_(torch.cat([filters, -filters]))
    weight.requires_grad_(False)


def optimizer(name: str, network: nn.Module) -> torch.optim.Optimizer:
    """Make the optimiser: the plain run's Adam for ``small``, SGD with Nesterov momentum for ``large``."""
    if name == "small":
        return torch.optim.Adam(network.parameters(), lr=1e-3)
    norms = [module.bias for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    biases = {id(bias) for bias in norms}
    others = [p for p in network.parameters() if id(p) not in biases]
    groups = [
        {"params": others, "lr": RATE, "weight_decay": DECAY},
        {"params": norms, "lr": BIAS_RATE * RATE, "weight_decay": DECAY / BIAS_RATE},
    ]
    return torch.optim.SGD(groups, momentum=MOMENTUM, nesterov=True)


@dataclass(frozen=True, slots=True)
class CrossEntropy:
    """Mean cross-entropy over samples (``common.training.step.Loss``)."""

    smoothing: float = 0.0

    def counts(self, batch: Sequence[Tensor], /) -> tuple[Tensor, ...]:
        """Return the number of samples, the denominator."""
        return (torch.tensor(len(batch[0])),)

    def sums(self, outputs: Tensor, batch: Sequence[Tensor], /) -> tuple[Tensor, ...]:
        """Return the cross-entropy summed over samples; labels are uint8."""
        labels = batch[1].long()
        return (functional.cross_entropy(outputs, labels, reduction="sum", label_smoothing=self.smoothing),)
