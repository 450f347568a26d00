"""What prepared cases take in memory, in a file and as compressed chunks, and what drawing a batch of them costs.

``python -m apps.imaging.bench.codecs.stores DATASET``: side by side in one process, processor time on one thread, the
least of three rounds, beside a step of SegResNet; and a batch with each augmentation.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from apps.imaging.bench.one_step import one_step
from apps.imaging.models.networks.registry import arguments
from apps.imaging.training.data import chunks
from apps.imaging.training.data.augmentation import KINDS, NONE
from apps.imaging.training.data.dataset import read_dataset
from apps.imaging.training.data.facts import intensity_operations
from apps.imaging.training.data.patch_sampling import STORES, Sampler, Volumes
from apps.imaging.training.data.prepared import load_case
from apps.imaging.training.recipe import default_patch, make_step
from common.memory.process import glibc

ROUNDS, BATCHES, BATCH = 3, 30, 2


def main() -> None:
    """Measure on the first cases of a data set."""
    import torch

    parser = argparse.ArgumentParser(prog="python -m apps.imaging.bench.codecs.stores", description=__doc__)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--cases", type=int, default=60)
    args = parser.parse_args()
    glibc.pin_thresholds()
    torch.set_num_threads(1)
    dataset = read_dataset(args.dataset)
    operations = intensity_operations(dataset, dataset.cases)
    cases = [load_case(case, dataset, operations) for case in dataset.cases[: args.cases]]
    voxels, patch = sum(classes.size for _, classes in cases), default_patch(dataset, (8, 8, 8))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        stores = {"memory": Volumes()}
        for numbers in STORES:
            stores[f"disk {numbers}"] = Volumes(folder / numbers, numbers)
            stores[f"compressed {numbers}"] = Volumes(None, numbers, folder / f"chunks-{numbers}")
        for volumes in stores.values():
            if volumes.folder is not None:
                volumes.folder.mkdir()
            for number, case in enumerate(cases):
                volumes.add(*case, key=str(number))
        step = _step_seconds(stores["memory"], patch, len(dataset.labels))
        print(f"{len(cases)} cases, patch {patch}, a step of SegResNet: {step:.3f} s")
        samplers = {name: (volumes, NONE) for name, volumes in stores.items()}
        samplers |= {f"memory, augment={kind}": (stores["memory"], kind) for kind in KINDS}
        for name, seconds in _draw_seconds(samplers, patch).items():
            size = _bytes(samplers[name][0]) / voxels
            print(
                f"{name:24} {size:5.2f} bytes a voxel, {seconds * 1e3:6.2f} ms a batch, {seconds / step:.2%} of a step"
            )


def _bytes(volumes: Volumes) -> int:
    """Bytes on disk."""
    if volumes.folder is not None:
        return chunks.disk_bytes(volumes.folder)
    return volumes.file.stat().st_size if volumes.file is not None else 0


def _draw_seconds(samplers: dict[str, tuple[Volumes, str]], patch: Any) -> dict[str, float]:
    least: dict[str, float] = {}
    for seed in range(ROUNDS):
        for name, (volumes, augment) in samplers.items():
            sampler = Sampler(volumes, patch, BATCH, seed, "x", augment=augment)
            seconds = _seconds(partial(_draw, sampler)) / BATCHES
            least[name] = min(seconds, least.get(name, seconds))
    return least


def _draw(sampler: Sampler) -> None:
    for step in range(BATCHES):
        sampler(step)


def _step_seconds(volumes: Volumes, patch: Any, classes: int) -> float:
    sizes = {"in_channels": volumes.channels, "out_channels": classes}
    recipe = replace(
        one_step("segresnet", {}, side=1, batch=BATCH),
        arguments=arguments("segresnet", {}, **sizes),
        patch=patch,
        clip=1.0,
    )
    _, _, step = make_step(recipe, micro_batch=BATCH, amp="off", checkpoint="none")
    batch = Sampler(volumes, patch, BATCH, 0, "x", augment=NONE)(0)
    step(batch)
    return min(_seconds(lambda: step(batch)) for _ in range(ROUNDS))


def _seconds(work: Callable[[], object]) -> float:
    """Processor seconds of this process."""
    began = time.process_time()
    work()
    return time.process_time() - began


if __name__ == "__main__":
    main()
