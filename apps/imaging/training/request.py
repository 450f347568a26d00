"""``imaging train``'s request: its options, the data set and the recipe, one immutable value for plan and run."""

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from apps.imaging.models.model_folder import ImagingModel
from apps.imaging.models.networks import nnunet, patches, registry
from apps.imaging.training import starting_model
from apps.imaging.training.data.dataset import Dataset, LabelledCase, Warn, read_dataset
from apps.imaging.training.data.facts import intensity_operations
from apps.imaging.training.data.label_maps import read_label_maps
from apps.imaging.training.data.label_table import read_table
from apps.imaging.training.data.prepared import Operations
from apps.imaging.training.losses import deep_supervision
from apps.imaging.training.options import STEPS, Levels, TrainOptions
from apps.imaging.training.proposal.proposal import Choice, Proposal, read_proposal
from apps.imaging.training.recipe import Recipe, default_patch
from apps.imaging.training.tuning.trial import hide
from apps.imaging.volumes.volume import Shape
from common.errors import UsageError
from common.training import amp


@dataclass(frozen=True, slots=True)
class TrainingData:
    """The data set, its headers read, and which cases are trained on."""

    dataset: Dataset
    training: Sequence[LabelledCase]
    held_out: Sequence[LabelledCase]
    operations: Sequence[Operations]
    """On the intensities of each channel."""


@dataclass(frozen=True, slots=True)
class TrainRequest:
    """The request of ``imaging train``."""

    options: TrainOptions
    data: TrainingData
    recipe: Recipe
    others: tuple[Choice, ...] = ()
    """Smaller patches of the file that ``options.recipe`` names, with the arguments of the network for each."""

    @classmethod
    def of(cls, options: TrainOptions) -> "TrainRequest":
        """Read the data set's headers and settle all but what the planner chooses.

        Raises
        ------
        BadInput
            A data set that cannot be used.
        UsageError
            A patch that the network cannot halve as often as it does.
        """

        def warn(message: str) -> None:
            if not options.quiet:
                sys.stderr.write(message + "\n")

        if options.amp is not None and (note := amp.require(options.amp, options.device)):
            warn(f"imaging train: {note}")
        start = starting_model.read_start(options.init, options.network) if options.init else None
        dataset = _dataset(options, warn)
        if start is not None:
            dataset = starting_model.on_grid_of(dataset, start)
        proposed = _proposal(options, dataset, start, warn)
        options, dataset = replace(options, batch=proposed.batch), replace(dataset, spacing=proposed.spacing)
        nnunet.check_installed(proposed.network)
        if options.deep_supervision == "on":
            for _, arguments in proposed.choices:
                deep_supervision.strides(proposed.network, arguments)
        training, held_out = dataset.split(options.fold)
        if options.trial is not None:
            training, held_out = hide(training)
        (patch, arguments), *others = proposed.choices
        epoch = -(-len(training) // options.batch)
        steps = options.steps or (options.epochs * epoch if options.epochs else STEPS)
        recipe = Recipe(
            network=proposed.network,
            arguments=arguments,
            patch=patch,
            batch=options.batch,
            steps=None if options.seconds else steps,
            seconds=options.seconds,
            learning_rate=options.learning_rate,
            weight_decay=options.weight_decay,
            clip=options.clip,
            mirror=options.mirror,
            validation_cases=options.validation_cases,
            fold=options.fold,
            seed=options.seed,
            optimizer=options.optimizer,
            dice=options.dice,
            balance=options.balance,
            schedule=options.schedule,
            ema=options.ema,
            keep=options.keep,
            patience=0 if options.trial else options.patience,  # it is stopped by comparison with the others
            store=options.store,
            init=start.weights_sha256 if start else "",
            synthesis=dataset.table.sha256 if dataset.table else "",
            spacing=proposed.spacing if options.recipe else options.spacing,
            normalisation=proposed.normalisation_sha256 if options.recipe else "",
            distillation=options.distillation,
            temperature=options.temperature,
            quantise=options.quantise,
            deep_supervision=options.deep_supervision,
            augment=options.augment,
        )
        operations = proposed.operations
        if options.distill is not None:
            teacher, dataset = starting_model.read_teacher(
                options.distill, dataset, operations, [one for one, _ in proposed.choices]
            )
            recipe = replace(recipe, teacher=teacher)
        if options.store == "float16" and not all(operations):
            raise UsageError("--set store=float16: a channel that is not normalised (noNorm) does not fit into it")
        data = TrainingData(dataset, training, held_out, operations)
        return cls(options, data, recipe, tuple(others))

    @property
    def settings(self) -> dict[str, Any]:
        """All that decides the result: a checkpoint with other settings is not continued."""
        return asdict(self.recipe)

    @property
    def samples(self) -> int:
        """Samples of a batch that one rank has at most."""
        return self.options.world.largest_share(self.recipe.batch)

    def with_patch(self, patch: Shape) -> "TrainRequest":
        """The same with another patch."""
        return replace(self, recipe=replace(self.recipe, patch=patch))

    @property
    def choices(self) -> "list[TrainRequest]":
        """A request for each patch of the recipe's file, in its order; this one alone if there is no other."""
        further = [replace(self.recipe, patch=patch, arguments=arguments) for patch, arguments in self.others]
        return [replace(self, recipe=recipe, others=()) for recipe in (self.recipe, *further)]


def _proposal(options: TrainOptions, dataset: Dataset, start: ImagingModel | None, warn: Warn) -> Proposal:
    """Network, patches and normalisation: of the recipe's file, of the model to start from, or of the options."""
    if options.recipe is not None:
        proposed = read_proposal(options.recipe, dataset, warn)
        if len(proposed.choices) > 1 and options.world.size > 1:
            raise UsageError(f"--recipe {options.recipe}: several choices; over several ranks it must have one")
        return proposed
    if start is None:
        network = options.network or ""
        sizes = {"in_channels": len(dataset.channels), "out_channels": len(dataset.labels)}
        layers = {name: _like_default(network, name, numbers) for name, numbers in options.layers.items()}
        arguments = registry.arguments(network, layers, **sizes)
    else:
        network, arguments = start.network, starting_model.arguments_of(start, dataset)
    patch = options.patch or default_patch(dataset, registry.divisors(network, arguments))
    patches.check_patch("--patch", patch, network, arguments)
    operations = start.intensities if start else intensity_operations(dataset, dataset.cases)
    return Proposal(network, dataset.spacing, options.batch, operations, ((patch, arguments),))


def _dataset(options: TrainOptions, warn: Warn) -> Dataset:
    """The headers of the data set, with images or of label maps alone, on the spacing that the user chose."""
    if options.synthesize is not None:
        table = read_table(options.synthesize)
        dataset = read_label_maps(options.dataset, table, skip_bad=options.skip_bad, warn=warn)
    else:
        dataset = read_dataset(options.dataset, skip_bad=options.skip_bad, warn=warn)
    return replace(dataset, spacing=options.spacing) if options.spacing else dataset


def _like_default(network: str, name: str, numbers: Levels) -> int | list[int] | Levels:
    """Numbers of ``--layers`` as the network's argument takes them: a list, or the one number."""
    default = registry.NETWORKS[network].defaults.get(name)
    return numbers if isinstance(default, list) or len(numbers) != 1 else numbers[0]
