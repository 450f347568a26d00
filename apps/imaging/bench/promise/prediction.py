"""Compare predicted with measured peaks of ``imaging train``'s step, over networks, patches, batches and optimisers.

``python -m apps.imaging.bench.promise.prediction`` runs the suite's case, ``... grid`` the grid itself.
"""

import random
import sys
from collections.abc import Iterator, Mapping
from itertools import product
from math import prod
from typing import Any

from apps.imaging.models.networks import registry
from apps.imaging.planning import baselines
from apps.imaging.training import traced_step
from common.bench import prediction
from common.bench.harness import Bound, Suite
from common.bench.prediction import Configuration, Grid

NETWORKS: Mapping[str, Mapping[str, Any]] = {
    "unet": {"channels": [16, 32, 64, 128], "strides": [2, 2, 2], "num_res_units": 1},
    "segresnet": {"init_filters": 16, "blocks_down": [1, 2, 2], "blocks_up": [1, 1]},
    "dynunet": {"filters": [16, 32, 64], "strides": [1, 2, 2]},
    "basicunet": {"features": [16, 16, 32, 64, 128, 16]},
}
PRECISIONS = ("off", "bf16")
CHECKPOINTS = ("none", "2/8", "5/8", "8/8", "blocks")
OPTIMIZERS = ("adamw", "adamw8bit", "adafactor", "sgd")
BATCHES = ((1, 1), (2, 1), (1, 2))
"""Samples per micro-batch, and number of micro-batches."""
PATCHES: Mapping[str, tuple[int, int, int]] = {"unet": (96, 96, 64)}
"""Patches of networks for which 64x64x64 is too small to be judged."""
LEAST, MOST = 64**3 * 16, 96**3 * 16
"""Voxels times filters of a drawn step: large enough to be judged, small enough for a run of hours."""


def configuration(
    network: str,
    patch: tuple[int, int, int],
    *,
    batch: tuple[int, int] = (1, 1),
    amp: str = "off",
    optimizer: str = "adamw",
    checkpoint: str = "none",
    dice: str = "sample",
    step_in_backward: str = "off",
    changes: Mapping[str, Any] | None = None,
    classes: int = 3,
    channels: int = 1,
    drawn: bool = False,
) -> Configuration:
    """Describe one step of ``apps.imaging.training.recipe.make_step``.

    Parameters
    ----------
    patch
        Voxels (x, y, z).
    batch
        Samples per micro-batch, and number of micro-batches.
    """
    arguments = registry.arguments(
        network, {**NETWORKS[network], **(changes or {})}, in_channels=channels, out_channels=classes
    )
    recipe = {
        "network": network,
        "arguments": arguments,
        "patch": patch,
        "batch": batch[0] * batch[1],
        "steps": 1,
        "seconds": None,
        "learning_rate": 1e-3,
        "weight_decay": 1e-5,
        "clip": 0.0 if step_in_backward == "on" else 1.0,
        "mirror": "",
        "validation_cases": 0,
        "fold": None,
        "seed": 0,
        "optimizer": optimizer,
        "dice": dice,
    }
    labels = {
        "network": network,
        "patch": "x".join(map(str, patch)),
        "batch": f"{batch[0]}x{batch[1]}",
        "precision": "float32" if amp == "off" else amp,
        "optimizer": optimizer,
        "checkpoint": checkpoint,
        "dice": f"dice-{dice}",
        "step": "step-in-backward" if step_in_backward == "on" else "step-after",
        "width": _width(arguments),
        "channels": f"{channels}to{classes}",
    }
    step = {
        "recipe": recipe,
        "micro_batch": batch[0],
        "parts": batch[1],
        "amp": amp,
        "checkpoint": checkpoint,
        "step_in_backward": step_in_backward,
    }
    return Configuration.of(labels, traced_step.STEP, step, drawn)


def _width(arguments: Mapping[str, Any]) -> str:
    first = next(arguments[key] for key in ("init_filters", "filters", "features", "channels") if key in arguments)
    return f"w{first if isinstance(first, int) else '-'.join(map(str, first))}"


def listed() -> Iterator[Configuration]:
    """Yield every network with every value of every other axis."""
    for network, amp in product(NETWORKS, PRECISIONS):
        usual = PATCHES.get(network, (64, 64, 64))
        for batch in BATCHES:
            yield configuration(network, usual, amp=amp, batch=batch)
        for patch in ((48, 96, 80), (80, 80, 80), (96, 96, 48)):
            yield configuration(network, patch, amp=amp)
        for checkpoint in CHECKPOINTS[1:]:
            yield configuration(network, (96, 64, 80), amp=amp, checkpoint=checkpoint)
        yield configuration(network, usual, amp=amp, batch=(1, 2), dice="batch")
        yield configuration(network, (48, 48, 48), amp=amp, batch=(4, 1), channels=4, classes=5)
    for network in NETWORKS:
        usual = PATCHES.get(network, (64, 64, 64))
        for optimizer in OPTIMIZERS[1:]:
            yield configuration(network, usual, optimizer=optimizer, changes=_scaled(network, 32))
        yield configuration(network, usual, step_in_backward="on", changes=_scaled(network, 32))
        yield configuration(network, (96, 96, 96), amp="bf16", checkpoint="blocks")
    yield configuration("unet", (128, 128, 128), amp="bf16")
    yield configuration("segresnet", (128, 128, 128), amp="bf16", checkpoint="blocks")


def draw(source: random.Random) -> Configuration:
    """Draw a configuration at random."""
    while True:
        network = source.choice(list(NETWORKS))
        factor = registry.divisor(network, NETWORKS[network])
        patch = tuple(factor * source.randint(-(-48 // factor), 128 // factor) for _ in range(3))
        batch, width = source.choice(BATCHES), source.choice((8, 12, 16, 24, 32))
        if network == "segresnet" and width % 8:  # its normalisation has 8 groups
            continue
        if not LEAST <= prod(patch) * prod(batch) * width <= MOST:
            continue
        return configuration(
            network,
            (patch[0], patch[1], patch[2]),
            batch=batch,
            amp=source.choice(PRECISIONS),
            optimizer=source.choice(OPTIMIZERS),
            checkpoint=source.choice(CHECKPOINTS),
            dice=source.choice(("sample", "batch")),
            changes=_scaled(network, width),
            classes=source.randint(2, 8),
            channels=source.randint(1, 4),
            drawn=True,
        )


def _scaled(network: str, width: int) -> dict[str, Any]:
    """Return the network's widths scaled so that 16 filters become ``width``."""
    scaled: dict[str, Any] = {}
    for key in {"init_filters", "filters", "features", "channels"} & NETWORKS[network].keys():
        value = NETWORKS[network][key]
        scaled[key] = width if isinstance(value, int) else [size * width // 16 for size in value]
    return scaled


def grid() -> Grid:
    """Return the whole grid."""
    unique = {each.name: each for each in listed()}
    return Grid(
        "imaging", list(unique.values()), draw, warm_up=baselines.TRAIN, libraries=("torch", "monai"), huge_pages=True
    )


def suite() -> Suite:
    """Declare the case that runs the grid."""
    promise = Suite("promise")
    promise.case(
        "prediction-imaging",
        ["-m", "apps.imaging.bench.promise.prediction", "grid"],
        bounds=(*prediction.BOUNDS, Bound("result.judged", at_least=120)),
    )
    return promise


if __name__ == "__main__":
    if sys.argv[1:2] == ["grid"]:
        sys.exit(prediction.main(grid, sys.argv[2:]))
    sys.exit(suite().main())
