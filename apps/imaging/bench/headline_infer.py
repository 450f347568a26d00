"""Cases of ``imaging infer`` and ``imaging evaluate`` for the headline suite.

Volumes are synthetic: a real CT (if ``PEAKLINE_DATA`` has one, else smooth noise) is tiled to size and noise is added.
The network has seeded random weights; only memory, time and equality with MONAI are measured on it.
"""

import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from common import datasets
from common.bench.harness import Bound, Suite
from common.memory.process.budget import GIB, MIB

CLASSES = 14
TILE = 96
OVERLAP = 0.25
SHORT, LONG = (256, 256, 128), (256, 256, 512)
MARGIN = 1e-4
"""Rounding may choose either label where MONAI's two best logits are closer than this."""

FLAT = Bound("peak", at_most=1.05)
FASTER = Bound("seconds", at_most=0.6)
NEVER_UNDER = Bound("predicted_over_measured", 1.0, 1.15)
ABOVE_BASELINE = Bound("above_baseline", 1.0, 1.25)


def make_model(directory: Path, *, classes: int = CLASSES, spacing: float = 1.0, seed: int = 0) -> Path:
    """Write a model folder of a SegResNet of MONAI's default depth with random weights.

    Parameters
    ----------
    spacing
        Voxel size of the model in mm.
    """
    return random_segresnet(
        directory,
        {"init_filters": 16, "blocks_down": [1, 2, 2, 4], "blocks_up": [1, 1, 1]},
        classes=classes,
        tile=TILE,
        spacing=spacing,
        orientation="RAS",
        intensity=[{"op": "zscore"}],
        seed=seed,
    )


def random_segresnet(
    directory: Path,
    arguments: Mapping[str, Any],
    *,
    classes: int,
    tile: int,
    spacing: float,
    orientation: str,
    intensity: Sequence[Mapping[str, Any]],
    seed: int,
) -> Path:
    """Write a model folder of a SegResNet with random weights; an existing one is kept."""
    import torch

    from apps.imaging.models.model_folder import labels_from_names, write_model
    from apps.imaging.models.networks import registry
    from apps.imaging.models.onnx_export import export_onnx

    if (directory / "model.json").is_file():
        return directory
    directory.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    complete = registry.arguments("segresnet", arguments, in_channels=1, out_channels=classes)
    network = registry.build("segresnet", complete)
    export_onnx("segresnet", network, directory / "network.onnx", tile=(16, 16, 16))
    head = registry.NETWORKS["segresnet"].head
    write_model(
        directory,
        network="segresnet",
        arguments=complete,
        state={name: tensor.numpy() for name, tensor in network.state_dict().items()},
        channels=["CT"],
        spacing=(spacing,) * 3,
        orientation=orientation,
        intensity=intensity,
        patch=(tile,) * 3,
        head={"weight": f"{head}.weight", "bias": f"{head}.bias"},
        labels=labels_from_names(["background", *(f"class {number}" for number in range(1, classes))]),
        card="# Random weights, for measuring memory and time only\n",
    )
    return directory


def make_volume(
    path: Path, shape: tuple[int, int, int], source: Path | None, *, seed: int = 0, spacing: float = 1.0
) -> Path:
    """Write an int16 volume plane by plane: a real one (or smooth noise) tiled to ``shape``, with noise added.

    Parameters
    ----------
    spacing
        Size of a voxel in mm.
    """
    from apps.imaging.bench.volumes import read_whole
    from apps.imaging.volumes import nifti

    if path.is_file():
        return path
    random = np.random.default_rng(seed)
    if source is not None:
        base = read_whole(source)[0]
    else:
        coarse = random.normal(0, 300, (16, 16, 16)).astype(np.float32)
        base = coarse.repeat(8, 0).repeat(8, 1).repeat(8, 2)
    x, y = (np.arange(size) % have for size, have in zip(shape[:2], base.shape[:2], strict=True))
    with nifti.write_labels(
        path, nifti.label_header(np.diag([spacing] * 3 + [1.0]), np.dtype(np.int16), shape)
    ) as writer:
        for z in range(shape[2]):
            plane = base[..., z % base.shape[2]][np.ix_(x, y)]
            writer.write((plane + random.normal(0, 20, shape[:2])).astype(np.int16)[..., None])
    return path


def prepare(work: Path, data: Path | None) -> None:
    """Make models, volumes and labels below ``work``; existing models and volumes are kept."""
    work.mkdir(parents=True, exist_ok=True)
    source = data / "ct-sample" / "example_ct.nii.gz" if data is not None else None
    source = source if source is not None and source.is_file() else None
    make_model(work / "model")
    for name, shape in (("short", SHORT), ("long", LONG)):
        make_volume(work / f"{name}.nii.gz", shape, source)
    if source is not None:
        shutil.copyfile(source.with_name("example_seg_fast_force_split.nii.gz"), work / "labels.nii.gz")


def add_cases(suite: Suite, work: Path) -> None:
    """Declare the cases; call ``prepare`` first."""
    for name in ("short", "long"):
        suite.case(
            f"infer-{name}",
            _infer(work, name),
            ceiling=1 * GIB,
            group="infer-256",
            bounds=(NEVER_UNDER, ABOVE_BASELINE),
        )
    suite.ratio("infer: peak does not grow with the slices", "infer-long", "infer-short", FLAT)
    peer = ["-m", "apps.imaging.bench.peers.monai", work / "long.nii.gz", work / "model", work / "monai.nii.gz"]
    options = ["--tile", TILE, "--overlap", OVERLAP, "--margin", work / "margin.npy"]
    suite.case("monai-long", [*peer, *options], group="infer-256")
    suite.ratio("infer: time against MONAI's sliding_window_inference", "infer-long", "monai-long", FASTER)
    equal = ["-m", "apps.imaging.bench.headline_infer", "compare", work]
    suite.case("infer-equals-monai", equal, group="infer-equal", bounds=(Bound("result.different", at_most=0),))
    for tile, ceiling in ((64, 640 * MIB), (128, 2 * GIB)):
        command = _infer(work, "short", tile=tile, memory=ceiling)
        suite.case(f"infer-short-tile-{tile}", command, ceiling=ceiling, bounds=(NEVER_UNDER, ABOVE_BASELINE))
    if (ct := datasets.find("ct-sample")) is not None:
        labels = ct / "example_seg_fast_force_split.nii.gz"
        evaluate = ["-m", "apps.imaging", "evaluate", work / "labels.nii.gz", labels, "--memory", "256MiB", "--json"]
        suite.case("evaluate-61-classes", evaluate, ceiling=256 * MIB, bounds=(NEVER_UNDER, ABOVE_BASELINE))


def _infer(work: Path, name: str, *, tile: int = TILE, memory: int = GIB) -> list[object]:
    out = work / (f"out-{name}" if tile == TILE else f"out-{name}-{tile}")
    # The folder is removed each time: a finished study would be skipped.
    command = (
        f"rm -rf '{out}' && exec '{sys.executable}' -m apps.imaging infer '{work / name}.nii.gz' -m '{work / 'model'}'"
    )
    options = f"-o '{out}' --overlap {OVERLAP} --tile {tile} --memory {memory} --json"
    return ["sh", "-c", f"{command} {options}"]


def compare(work: Path) -> dict[str, int]:
    """Compare the labels of ``infer-long`` and ``monai-long``."""
    return differences(work / "out-long" / "long.nii.gz", work / "monai.nii.gz", work / "margin.npy")


def differences(ours: Path, theirs: Path, margin: Path) -> dict[str, int]:
    """Count differing labels: those that rounding may explain, and those beyond ``MARGIN``."""
    from apps.imaging.bench.volumes import read_whole

    margins: npt.NDArray[np.float32] = np.load(margin)
    unequal = read_whole(ours)[0] != read_whole(theirs)[0]
    return {
        "voxels": int(unequal.size),
        "within_margin": int((unequal & (margins <= MARGIN)).sum()),
        "different": int((unequal & (margins > MARGIN)).sum()),
    }


if __name__ == "__main__":
    sys.stdout.write(json.dumps(compare(Path(sys.argv[2]))) + "\n")
