"""``imaging compress`` without ``--int8``: fewer blocks and channels, kernels of low rank, weights in half precision.

The network is made smaller in that order, in the folder's own precision, and written with a recipe of its sizes.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apps.imaging.compression.calibration import Tiles, gathered, read_grids, read_source
from apps.imaging.compression.options import CompressOptions
from apps.imaging.inference.network_grid import NetworkGrid
from apps.imaging.models.model_folder import CARD, ImagingModel, read_manifest, write_model
from apps.imaging.models.networks import registry
from apps.imaging.models.stored_weights import header
from common import model_folder
from common.cli.session import Session
from common.compression.networks import low_rank, pruning, reshaping
from common.engines.base import INT8, NETWORK, PLAIN_INT8, WEIGHTS
from common.errors import BadInput, UsageError
from common.files import scratch_directory

if TYPE_CHECKING:
    import torch

    from common.compression.networks.channels import Layout

    Tensors = dict[str, "torch.Tensor"]

SHRINK, EXPORT = "shrink", "export"
"""Phases after the reading of images, if there are any."""
HALF = "F16"
"""safetensors' name of half precision."""
WRITTEN = frozenset(
    {"format", "application", "kind", "made_by", "files", "network", "channels", "spacing", "orientation", "intensity"}
    | {"patch", "head", "combine", "labels", "training", "compressed", "measured"}
)
"""Fields of ``model.json`` that are written anew, or are not true any more."""


@dataclass(frozen=True, slots=True)
class ShrinkRequest:
    """The request of ``imaging compress`` for a smaller network."""

    options: CompressOptions
    model: ImagingModel
    grids: tuple[NetworkGrid, ...]
    """Headers of the volumes that decide what goes; empty if none do."""

    @classmethod
    def of(cls, options: CompressOptions, directory: Path) -> "ShrinkRequest":
        """Read the model, and the headers of volumes.

        Parameters
        ----------
        directory
            The model folder, converted if need be.

        Raises
        ------
        BadInput
            A model or volumes that cannot be used.
        UsageError
            An output that is not possible, or a technique that the model has had already.
        """
        model = read_source(options, directory)
        again = model.arguments.get(registry.RESHAPED, {})
        low = {reshaping.RANKS, reshaping.RANK}
        if any(low & entry.keys() for entry in again.values()) and (options.prune or options.low_rank):
            raise UsageError(f"{options.model}: has kernels of low rank already; prune before --low-rank, and once")
        if registry.is_static(model.network) and (options.prune or options.drop_blocks or options.low_rank):
            raise BadInput(f"{options.model}: {model.network} is no network of convolutions alone, which can be cut")
        return cls(options, model, read_grids(options, model) if options.needs_images else ())

    @property
    def backward(self) -> bool:
        """True if gradients decide what goes."""
        return self.options.importance == "taylor"


@dataclass(slots=True)
class _Shrinking:
    """A network on its way to fewer weights: its arguments, and its weights in float32."""

    name: str
    arguments: dict[str, Any]
    weights: "Tensors"

    def network(self) -> "torch.nn.Module":
        """The network with its present weights, in evaluation mode."""
        network = registry.build(self.name, self.arguments).eval()
        registry.load_weights(network, self.weights)
        return network

    def image(self) -> "torch.Tensor":
        """Two small samples of noise, to run the network on."""
        import torch

        x, *others = registry.divisors(self.name, self.arguments)
        sides = (2 * x, *others)  # some normalisations want more than one voxel on the coarsest grid
        noise = torch.Generator().manual_seed(0)
        return torch.randn(2, self.arguments["in_channels"], *sides, generator=noise)

    def add(self, recipe: Mapping[str, Mapping[str, Any]]) -> None:
        """Write changes of layers into the recipe of the network's sizes."""
        before = self.arguments.get(registry.RESHAPED, {})
        self.arguments[registry.RESHAPED] = before | {
            name: {**before.get(name, {}), **entry} for name, entry in recipe.items()
        }


def run(request: ShrinkRequest, session: Session) -> dict[str, object]:
    """Make the network smaller and write the model folder; what was there before stays until it is complete.

    Returns
    -------
    dict
        The record's ``results``: bytes of the weights and parameters, before and after.
    """
    import torch
    from safetensors.torch import load_file

    options, model, out = request.options, request.model, request.options.output
    torch.set_num_threads(session.threads)
    out.mkdir(parents=True, exist_ok=True)
    with scratch_directory(out.parent, out.name) as draft, _images(request, session) as images:
        with session.phase(SHRINK):
            stored = load_file(model.directory / WEIGHTS)
            half = options.half or all(entry["dtype"] == HALF for entry in header(model.directory).values())
            weights = {name: tensor.float() for name, tensor in stored.items()}
            shrinking = _Shrinking(model.network, dict(model.arguments), weights)
            before = sum(tensor.numel() for tensor in weights.values())
            del stored, weights
            if options.drop_blocks:
                _drop(shrinking, options.drop_blocks, images)
            if options.prune is not None:
                _prune(shrinking, options, images)
            if options.low_rank is not None:
                _lower_ranks(shrinking, options, bytes_each=2 if half else 4)
        with session.phase(EXPORT):
            _write(request, shrinking, draft, half=half)
    after = sum(tensor.numel() for tensor in shrinking.weights.values())
    results = {
        "bytes_before": model.weights_bytes,
        "bytes_after": (out / WEIGHTS).stat().st_size,
        "network_bytes_before": (model.directory / NETWORK).stat().st_size,
        "network_bytes_after": (out / NETWORK).stat().st_size,
        "parameters_before": before,
        "parameters_after": after,
        "metrics": {},
    }
    session.say(
        f"{before:,} parameters before, {after:,} after ({1 - after / before:.1%} less);"
        f" {WEIGHTS}: {results['bytes_before']:,} bytes before, {results['bytes_after']:,} after"
    )
    kinds = ("bytes", "network_bytes")
    if all(results[f"{kind}_after"] >= results[f"{kind}_before"] for kind in kinds):  # type: ignore[operator]
        session.say(f"no file is smaller than before: {described(options)} has nothing to save here")
    if options.prune is not None or options.drop_blocks:
        trained_here = model.network in registry.NETWORKS and model.convention == "monai"
        how = "; fine-tune it (imaging train --init, or compress --finetune DATASET_DIR)" if trained_here else ""
        session.say(f"its labels have changed{how}")
    return results


@contextmanager
def _images(request: ShrinkRequest, session: Session) -> Iterator[Tiles | None]:
    """The tiles that decide what goes; ``None`` if none do."""
    if not request.grids:
        yield None
        return
    with gathered(request.options, request.model, request.grids, session) as (tiles, _):
        yield tiles


def _tensors(tiles: Tiles | None, other: "torch.Tensor") -> "Iterable[torch.Tensor]":
    import torch

    return [other] if tiles is None else map(torch.from_numpy, tiles())


def _drop(shrinking: _Shrinking, count: int, tiles: Tiles | None) -> None:
    """Leave out the residual blocks that change their input least, on images or on noise.

    Raises
    ------
    BadInput
        If the network has not more of them.
    """
    from common.compression.networks.importance import block_effects

    network = shrinking.network()
    effects = block_effects(network, lambda: _tensors(tiles, shrinking.image()))
    if len(effects) <= count:
        has = f"{len(effects)} residual blocks that can be left out, and one stays" if effects else "no such block"
        raise BadInput(f"--drop-blocks {count}: {shrinking.name} has {has}")
    gone = sorted(effects, key=lambda name: effects[name])[:count]
    shrinking.add({name: {reshaping.SKIP: True} for name in gone})
    inside = tuple(f"{name}." for name in gone)
    shrinking.weights = {name: tensor for name, tensor in shrinking.weights.items() if not name.startswith(inside)}
    recipe = shrinking.arguments[registry.RESHAPED]
    shrinking.arguments[registry.RESHAPED] = {
        name: entry for name, entry in recipe.items() if not name.startswith(inside)
    }


def _prune(shrinking: _Shrinking, options: CompressOptions, tiles: Tiles | None) -> None:
    """Remove channels."""
    from common.compression.networks.channels import channels_of

    assert options.prune is not None
    network = shrinking.network()
    layout = channels_of(network, shrinking.image())
    found = pruning.Channels(layout, shrinking.weights, dict(network.named_modules()))
    importance = found.norms()
    if tiles is not None and options.importance != "norm":
        importance |= _measured(network, found, layout, options.importance, tiles)
    pruned = pruning.prune(found, importance, options.prune)
    shrinking.add(pruned.recipe)
    shrinking.weights = pruned.weights


def _measured(
    network: "torch.nn.Module", found: pruning.Channels, layout: "Layout", importance: str, tiles: Tiles
) -> dict[int, float]:
    """Importance of units on images; without labels, the loss is that of the network's own."""
    from common.compression.networks.importance import positive_shares, taylor

    def images() -> "Iterable[torch.Tensor]":
        return _tensors(tiles, next(iter(found.weights.values())))

    if importance == "zeros":
        return positive_shares(network, layout, images)
    return taylor(network, found, images, own_loss)


def own_loss(logits: "torch.Tensor") -> "torch.Tensor":
    """Dice and cross-entropy of logits (B, C, x, y, z) with the labels that they make themselves."""
    import torch

    from apps.imaging.training.losses.labels import DiceCrossEntropy

    loss, batch = DiceCrossEntropy(), [logits, logits.detach().argmax(1).to(torch.uint8)]
    pairs = zip(loss.sums(logits, batch), loss.counts(batch), strict=True)
    return torch.stack([total / count for total, count in pairs]).sum()


def _lower_ranks(shrinking: _Shrinking, options: CompressOptions, *, bytes_each: int) -> None:
    """Replace kernels by Tucker's decomposition, or by CP's of as many numbers."""
    target = options.low_rank
    assert target is not None
    layers = dict(shrinking.network().named_modules())
    kernels = low_rank.spectra(layers, shrinking.weights)
    others = sum(tensor.numel() for tensor in shrinking.weights.values()) - sum(
        prod(one.shape) for one in kernels.values()
    )
    most = target // bytes_each if isinstance(target, int) else None
    chosen = low_rank.choose(kernels, energy=None if most else float(target), most=most, others=others)
    weights = dict(shrinking.weights)
    for name, ranks in chosen.items():
        entry: dict[str, Any]
        if options.decomposition == "cp":
            rank = low_rank.cp_rank(kernels[name], ranks)
            made, entry = low_rank.separated(layers[name], name, weights, rank), {reshaping.RANK: rank}
        else:
            made = low_rank.factors(layers[name], name, weights, ranks)
            entry = {reshaping.RANKS: [ranks.first, ranks.last]}
        shrinking.add({name: entry})
        for kind in ("weight", "bias"):
            weights.pop(f"{name}.{kind}", None)
        weights |= made
    shrinking.weights = weights


def _write(request: ShrinkRequest, shrinking: _Shrinking, draft: Path, *, half: bool) -> None:
    """Write the folder: the smaller network, and all else that the model had."""
    import torch

    from apps.imaging.models.onnx_export import export_onnx, halve_constants

    options, model = request.options, request.model
    kind = torch.float16 if half else torch.float32
    state = {name: tensor.detach().to(kind) for name, tensor in shrinking.weights.items()}
    shrinking.weights = {name: tensor.float() for name, tensor in state.items()}
    network = shrinking.network()
    export_onnx(model.network, network, draft / NETWORK, tile=exported_tile(model))
    if options.half:
        halve_constants(draft / NETWORK)
    manifest = read_manifest(model.directory)
    extra = {key: value for key, value in manifest.items() if key not in WRITTEN}
    out = options.output
    model_folder.unseal(out)
    for name in {*INT8, *PLAIN_INT8}:
        (out / name).unlink(missing_ok=True)
    (draft / NETWORK).replace(out / NETWORK)
    write_model(
        out,
        network=model.network,
        arguments=shrinking.arguments,
        state={name: tensor.numpy() for name, tensor in state.items()},
        channels=model.channels,
        spacing=model.spacing,
        orientation=model.orientation,
        intensity=model.intensity,
        patch=model.patch,
        head=model.head,
        labels=model.labels,
        card=(model.directory / CARD).read_text("utf-8") + f"\nMade smaller afterwards: {described(options)}.\n",
        extra={
            **extra,
            "compressed": {
                "by": described(options),
                "weights": model.weights_sha256,
                "training": manifest.get("training", {}),  # its Dice is that of the network before
            },
        },
    )


def exported_tile(model: ImagingModel) -> tuple[int, int, int]:
    """Voxels of the tile with which the network is exported: few, unless its windows depend on the tile."""
    if registry.is_static(model.network):
        return model.patch
    x, y, z = (max(2 * step, 8) for step in registry.divisors(model.network, model.arguments))
    return x, y, z


def described(options: CompressOptions) -> str:
    """What is done to the network, as options."""
    done = [
        f"--drop-blocks {options.drop_blocks}" if options.drop_blocks else "",
        f"--prune {options.prune:g} --importance {options.importance}" if options.prune is not None else "",
        f"--low-rank {options.low_rank}" if options.low_rank is not None else "",
        f"--decomposition {options.decomposition}" if options.decomposition != "tucker" else "",
        "--fp16" if options.half else "",
    ]
    return " ".join(filter(None, done))
