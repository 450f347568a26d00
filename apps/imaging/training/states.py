"""Weights and optimiser states of a training, whole on every rank or shared out: saved, loaded, validated, finished."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apps.imaging.models.networks import registry
from apps.imaging.training.recipe import Recipe
from common.training import checkpoint
from common.training.averaging import WeightAverage
from common.training.distributed import sharding
from common.training.distributed.group import Group

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class States:
    """All of them are on this rank, and the same on all others.

    Parameters
    ----------
    network, optimizer
        What is trained.
    recipe
        The training.
    group
        The ranks.
    """

    def __init__(
        self, network: "torch.nn.Module", optimizer: "torch.optim.Optimizer", recipe: Recipe, group: Group
    ) -> None:
        self.network, self.optimizer, self.recipe, self.group = network, optimizer, recipe, group
        self.average: WeightAverage | None = None

    survive = True
    """True if a rank that is left alone has all that a checkpoint needs."""

    def begin_average(self) -> None:
        """Begin the average of the weights, if the recipe has one."""
        if self.recipe.ema:
            self.average = WeightAverage(registry.weights(self.network), self.recipe.ema)

    def read(self, path: Path) -> "dict[str, Tensor]":
        """Read what ``load`` needs of a checkpoint, on the leader."""
        return checkpoint.read_tensors(path)

    def load(self, path: Path, found: "Mapping[str, Tensor]", steps: int) -> None:
        """Load the checkpoint that the leader has ``read``, of a training after so many steps."""
        tensors = self.group.tensors_of_leader(found)
        checkpoint.apply(tensors, path, network=self.network, optimizer=self.optimizer)
        self.begin_average()
        if self.average is not None:
            self.average.load(checkpoint.more_of(tensors), steps)

    def save(self, path: Path, state: Mapping[str, Any], *, left_alone: bool = False) -> None:
        """Write a checkpoint. The first rank does, unless it is the one that has ended."""
        if self.group.leads or (left_alone and self.group.world.beside_leader):
            more = self.average.tensors if self.average is not None else {}
            checkpoint.save(path, network=self.network, optimizer=self.optimizer, state=state, more=more)

    @contextmanager
    def judged(self) -> "Iterator[torch.nn.Module]":
        """Context in which a network has the weights that are validated: their average, if there is one."""
        with self.average.applied() if self.average is not None else nullcontext():
            yield self.network

    def final(self, best: Path | None) -> "torch.nn.Module":
        """Return a network with the weights that the model folder gets: the last, the average, or those in a file."""
        if best is not None:
            weights = checkpoint.read_weights(best) if self.group.leads else {}
            registry.load_weights(self.network, self.group.tensors_of_leader(weights))
        elif self.average is not None:
            registry.load_weights(self.network, self.average.tensors)
        return self.network


class SharedStates(States):
    """Each rank has a part; what is validated and written is a network with all weights, beside it."""

    survive = False

    def read(self, path: Path) -> "dict[str, Tensor]":
        """Read nothing: ``load`` takes each rank's part from the file."""
        return {}

    def load(self, path: Path, found: "Mapping[str, Tensor]", steps: int) -> None:
        """Load a checkpoint of any number of ranks."""
        self.begin_average()
        more = self.average.tensors if self.average is not None else {}
        sharding.load(path, network=self.network, optimizer=self.optimizer, more=more, group=self.group)
        if self.average is not None:
            self.average.steps = steps

    def save(self, path: Path, state: Mapping[str, Any], *, left_alone: bool = False) -> None:
        """Write a checkpoint, which needs all ranks."""
        if not left_alone:
            more = self.average.tensors if self.average is not None else {}
            sharding.save(
                path, network=self.network, optimizer=self.optimizer, state=state, more=more, group=self.group
            )

    @contextmanager
    def judged(self) -> "Iterator[torch.nn.Module]":
        """Gather the weights, or their average, in a network that ends with the context."""
        yield self._gathered()

    def final(self, best: Path | None) -> "torch.nn.Module":
        """Return a network with the final weights, as ``States.final``."""
        if best is None:
            return self._gathered()
        network = registry.build(self.recipe.network, self.recipe.arguments)
        weights = checkpoint.read_weights(best) if self.group.leads else {}
        registry.load_weights(network, self.group.tensors_of_leader(weights))
        return network

    def _gathered(self) -> "torch.nn.Module":
        weights = registry.weights(self.network) if self.average is None else self.average.tensors
        network = registry.build(self.recipe.network, self.recipe.arguments)
        registry.load_weights(network, sharding.whole(weights))
        return network
