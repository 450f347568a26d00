"""Train a small CNN on CIFAR-10 under a ceiling.

``python -m common.bench.cifar.train --network small --memory 400MiB``. It has the parts of ``imaging train`` and
``recsys train`` without their file formats: a workload with a footprint, a training step, a run in named phases.
"""

import argparse
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from common.bench.cifar import dataset
from common.cli import main
from common.cli.session import CommandSession
from common.memory.costs import baseline, trace
from common.memory.costs.probes import Costs, Probe
from common.memory.footprint import Footprint, Term
from common.memory.plan.plan import Setting
from common.memory.process import glibc
from common.memory.process.bounded_heap import BoundedHeap
from common.memory.process.budget import MIB, MemoryBudget

if TYPE_CHECKING:
    from torch import nn

    from common.training.step import TrainingStep

WARM_UP = "common.bench.cifar.train:warm_up"
LIBRARIES = ("torch", "numpy", "pillow")
LOAD, TRAIN = "load", "train"
SHIFT = 2
"""Largest shift of an image in pixels."""
WARM_UP_SHARE = 0.2
WHITENING_IMAGES = 5000
HEAP_SLACK = 32 * MIB
"""Free bytes that the bounded heap may keep. With none a step of ``small`` takes twice as long."""
MAPPED = 1.8
"""Time of a step that maps its tensors at each use, relative to one that reuses them in the heap."""
LEAST_MICRO_BATCH = 16
"""The step then takes 3 MiB. Smaller ones would save less than the baseline varies from start to start."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """Training options of one network, in addition to its optimiser."""

    amp: str = "off"
    smoothing: float = 0.0
    augment: bool = False
    """Random shifts and flips while training; both reflections are averaged when testing."""
    splits: bool = True
    """True if micro-batches give the whole batch's gradient. With BatchNorm's statistics they do not."""
    falls: bool = False
    """Raise and lower the learning rate instead of keeping it constant."""

    def rate(self, progress: float) -> float:
        """Return the learning rate, relative to the highest, at a share of the training in [0, 1]."""
        if not self.falls:
            return 1.0
        if progress < WARM_UP_SHARE:
            return 0.2 + 0.8 * progress / WARM_UP_SHARE
        return (1 - progress) / (1 - WARM_UP_SHARE)


RECIPES = {
    "small": Recipe(),
    "large": Recipe(amp="bf16", smoothing=0.2, augment=True, splits=False, falls=True),
}


def make_step(network: str, *, micro_batch: int) -> tuple["nn.Sequential", "TrainingStep"]:
    """Make the network and its training step. The run and the probe that traces the step both call this."""
    from common.bench.cifar import networks
    from common.training.step import TrainingStep

    recipe = RECIPES[network]
    module = networks.build(network)
    optimizer = networks.optimizer(network, module)
    loss = networks.CrossEntropy(recipe.smoothing)
    return module, TrainingStep(module, optimizer, loss, micro_batch, recipe.amp)


def warm_up() -> None:
    """Import the libraries and run one tiny step of each network."""
    import PIL.Image
    import torch
    import tqdm

    from common.bench.cifar.networks import whiten

    noise = np.random.default_rng(0).integers(256, size=(64, *dataset.SHAPE)).astype(np.uint8)
    for name in RECIPES:
        module, step = make_step(name, micro_batch=2)
        step([torch.from_numpy(noise[:2]), torch.zeros(2, dtype=torch.uint8)])
    whiten(module, noise)
    PIL.Image.init()
    del tqdm


def prepare(*, network: str, micro_batch: int, parts: int) -> trace.Prepared:
    """Make the step that a probe's child traces.

    Parameters
    ----------
    parts
        Number of micro-batches; from the second on they take the same memory.
    """
    import torch

    module, step = make_step(network, micro_batch=micro_batch)
    images = torch.zeros(micro_batch * parts, *dataset.SHAPE, dtype=torch.uint8)
    labels = torch.zeros(micro_batch * parts, dtype=torch.uint8)
    return module, step.optimizer, lambda: step([images, labels])


@dataclass(frozen=True, slots=True)
class CifarWorkload:
    """Train one of the two networks."""

    network: str
    batch: int
    files: Mapping[str, tuple[int, int]]
    """``"train"`` and ``"test"`` -> number of images used, and bytes of all JPEG files."""
    threads: int
    name: str = "bench cifar"
    monotone_knobs: tuple[str, ...] = ("micro_batch", "accumulate")

    def settings(self) -> Iterator[Setting]:
        """Yield micro-batch sizes, images decoded once or at each use, and the allocators."""
        sizes = [self.batch]
        while RECIPES[self.network].splits and sizes[-1] > LEAST_MICRO_BATCH:
            sizes.append(-(-sizes[-1] // 2))
        for micro_batch in sizes:
            split = {"micro_batch": micro_batch, "accumulate": -(-self.batch // micro_batch)}
            for images in ("pixels", "jpeg"):
                for allocator in ("heap", "mapped"):
                    yield {**split, "images": images, "allocator": allocator}

    def probes(self, setting: Setting) -> Sequence[Probe]:
        """Return the probes of the baseline and of the step."""
        step = trace.probe(
            "common.bench.cifar.train:prepare",
            warm_up=WARM_UP,
            libraries=LIBRARIES,
            threads=self.threads,
            network=self.network,
            micro_batch=setting["micro_batch"],
            parts=min(2, int(setting["accumulate"])),
        )
        return [baseline.probe(WARM_UP, libraries=LIBRARIES, threads=self.threads), step]

    def footprint(self, setting: Setting, costs: Costs) -> Footprint:
        """Return baseline, images and step."""
        base, step = self.probes(setting)
        cost = {name: int(value) for name, value in costs[step].items()}
        files = sum(size for _, size in self.files.values())
        largest = max(size for _, size in self.files.values())
        pixels = sum(count for count, _ in self.files.values()) * dataset.IMAGE_BYTES
        decoded = setting["images"] == "pixels"
        traced = int(setting["micro_batch"]) * min(2, int(setting["accumulate"]))
        padded = (1 + 2 * SHIFT / dataset.SHAPE[1]) ** 2
        copies = 2 + padded if RECIPES[self.network].augment else 1
        terms = [
            Term("JPEG files", largest if decoded else files, "analytic", (LOAD,) if decoded else (LOAD, TRAIN)),
            Term("pixels", pixels if decoded else 0, "analytic"),
            Term("parameters", cost["parameters"], "analytic", (TRAIN,)),
            Term("gradients", cost["gradients"], "analytic", (TRAIN,)),
            Term("optimizer states", cost["optimizer"], "analytic", (TRAIN,)),
            Term("activations", cost["activations"], "replayed", (TRAIN,)),
            Term("operator workspace", cost["workspace"], "replayed", (TRAIN,)),
            Term("heap's free pages", HEAP_SLACK if setting["allocator"] == "heap" else 0, "analytic", (TRAIN,)),
            Term("compiled kernels", cost["kernels"], "replayed", (TRAIN,)),
            Term("small blocks", cost["unseen"], "measured", (TRAIN,)),
            Term("batch", int(copies * max(0, self.batch - traced)) * dataset.IMAGE_BYTES, "analytic", (TRAIN,)),
        ]
        return Footprint.of([*baseline.terms(costs, base), *terms])

    def seconds(self, setting: Setting) -> float:
        """Return relative time: decoding doubles a step, each further micro-batch adds a little."""
        decoding = 0.0 if setting["images"] == "pixels" else 1.0
        return decoding + (MAPPED if setting["allocator"] == "mapped" else 1.0) * (
            1 + 0.02 * int(setting["accumulate"])
        )


def augmented(pixels: dataset.Pixels, random: np.random.Generator) -> dataset.Pixels:
    """Return a copy with each image shifted by up to ``SHIFT`` pixels (edges reflected) and half of them mirrored."""
    count, _, height, width = pixels.shape
    padded = np.pad(pixels, ((0, 0), (0, 0), (SHIFT, SHIFT), (SHIFT, SHIFT)), "reflect")
    windows = np.lib.stride_tricks.sliding_window_view(padded, (height, width), axis=(2, 3))
    down, right = random.integers(2 * SHIFT + 1, size=(2, count))
    moved = windows[np.arange(count), :, down, right]
    mirrored = random.random(count) < 0.5
    moved[mirrored] = moved[mirrored][..., ::-1]
    return moved


def accuracy(module: "nn.Module", images: dataset.Images, *, batch: int, recipe: Recipe) -> float:
    """Return the share of ``images`` that are classified correctly."""
    import torch

    module.eval()
    correct = 0
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=recipe.amp == "bf16"):
        for start in range(0, len(images), batch):
            chosen = np.arange(start, min(start + batch, len(images)))
            pixels = torch.from_numpy(images[chosen])
            scores = module(pixels).float().softmax(1)
            if recipe.augment:
                scores += module(pixels.flip(3)).float().softmax(1)
            correct += int((scores.argmax(1).numpy() == images.labels[chosen]).sum())
    module.train()
    return correct / len(images)


def _execute(session: CommandSession[argparse.Namespace, CifarWorkload]) -> Mapping[str, Any]:
    args = session.request
    import torch

    from common.bench.cifar.networks import whiten

    recipe, plan = RECIPES[args.network], session.plan
    torch.set_num_threads(session.threads)
    torch.manual_seed(session.seed)
    with session.phase(LOAD):
        decode = plan["images"] == "pixels"
        train, test = (dataset.Images(part, decode=decode, limit=args.limit) for part in ("train", "test"))
        glibc.trim()
    curve: dict[str, list[float]] = {"losses": [], "accuracies": [], "seconds": [], "cpu_seconds": []}
    module, step = make_step(args.network, micro_batch=plan["micro_batch"])
    highest = [group["lr"] for group in step.optimizer.param_groups]
    heap = BoundedHeap(module, slack=HEAP_SLACK) if plan["allocator"] == "heap" else nullcontext()
    with session.phase(TRAIN), heap:
        if recipe.augment:
            whiten(module, train[np.linspace(0, len(train) - 1, min(WHITENING_IMAGES, len(train)), dtype=np.int64)])
        for epoch in range(args.epochs):
            began, busy = time.perf_counter(), time.process_time()
            order = dataset.order(len(train), seed=session.seed, epoch=epoch)
            random = np.random.default_rng((session.seed, epoch, 1))
            total = 0.0
            for start in range(0, len(train), args.batch):
                chosen = order[start : start + args.batch]
                share = recipe.rate((epoch + start / len(train)) / args.epochs)
                for group, rate in zip(step.optimizer.param_groups, highest, strict=True):
                    group["lr"] = share * rate
                pixels = augmented(train[chosen], random) if recipe.augment else train[chosen]
                loss = step([torch.from_numpy(pixels), torch.from_numpy(train.labels[chosen])])
                total += float(loss) * len(chosen)
            curve["losses"].append(total / len(train))
            curve["accuracies"].append(accuracy(module, test, batch=plan["micro_batch"], recipe=recipe))
            curve["seconds"].append(time.perf_counter() - began)
            curve["cpu_seconds"].append(time.process_time() - busy)
            session.say(
                f"{epoch + 1}: loss {curve['losses'][-1]:.4f}, accuracy {curve['accuracies'][-1]:.4f},"
                f" {curve['seconds'][-1]:.1f} s"
            )
    return report(curve, peak=session.meter.peak_bytes, baseline=session.meter.floor_bytes)


def report(curve: Mapping[str, Sequence[float]], *, peak: int, baseline: int) -> dict[str, Any]:
    """Return the results of a plain or a controlled run; ``peak`` and ``baseline`` in bytes."""
    return {
        **curve,
        "accuracy": curve["accuracies"][-1],
        "epoch_seconds": float(np.median(curve["seconds"])),
        "epoch_cpu_seconds": float(np.median(curve["cpu_seconds"])),
        "floor_bytes": baseline,
        "above_floor_bytes": peak - baseline,
    }


def _workload(args: argparse.Namespace, budget: MemoryBudget) -> CifarWorkload:
    files = {part: dataset.stored(part, limit=args.limit) for part in ("train", "test")}
    return CifarWorkload(args.network, args.batch, files, args.threads)


def parser() -> argparse.ArgumentParser:
    """Return this module's command line."""
    top = argparse.ArgumentParser(prog="python -m common.bench.cifar.train", description=__doc__)
    top.add_argument("--network", choices=list(RECIPES), default="small", help="default small")
    top.add_argument("--epochs", type=main.positive, default=10, metavar="N", help="default 10")
    top.add_argument("--batch", type=main.positive, default=256, metavar="N", help="images per step (default 256)")
    top.add_argument("--limit", type=main.positive, metavar="N", help="use only this many images of each part")
    top.add_argument("--output", type=Path, help="where the record goes")
    main.add_common_options(top)
    top.set_defaults(
        command=main.Command(
            "bench cifar",
            main.options,
            _workload,
            lambda args: WARM_UP,
            _execute,
            lambda args: args.output,
            huge_pages=True,
            merge=True,
        )
    )
    return top


if __name__ == "__main__":
    sys.exit(main.main(parser(), "common.bench.cifar.train"))
