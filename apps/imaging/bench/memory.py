"""Cases of memory against the peers: 25 classes on 512 x 512 x 400, with the same small nnU-Net network and tiles.

Each program's peak above its own baseline (interpreter and libraries) is compared. The network is as small as possible,
because the comparison is about the memory around it. All peers run to the end. A peer that is not installed in
``.venv-peers``, or does not fit, makes its case fail.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from apps.imaging.bench.headline_infer import make_volume
from apps.imaging.bench.peers import nnunet_folder
from common.bench.harness import Bound, Suite
from common.memory.process.budget import GIB, MIB

PEER_PYTHON = Path(".venv-peers/bin/python")
SHAPE, CLASSES, TILE, OVERLAP = (512, 512, 400), 25, 96, 0.25
ARCHITECTURE = {
    **nnunet_folder.ARCHITECTURE,
    "n_stages": 2,
    "features_per_stage": [8, 8],
    "kernel_sizes": [[1, 1, 1], [3, 3, 3]],
    "strides": [[1, 1, 1], [2, 2, 2]],
    "n_conv_per_stage": [1, 1],
    "n_conv_per_stage_decoder": [1],
}
"""Little to compute: each peer takes minutes instead of an hour."""
SHORTER = (50, 100, 200)
"""Slices of the volumes on which MONAI's peak is compared, too: it grows with the volume."""
SMALLER = (192, 192, 160)
"""Volume for comparing times."""
PEER_CEILING = min(24 * GIB, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") * 7 // 8)
"""A peer that needs more than 24 GiB, or 7/8 of this machine's memory, is killed."""
PEERS: Mapping[str, float] = {"monai": 1 / 8, "nnunet": 1 / 6, "konfai": 1 / 2}
"""Largest share of each peer's memory that ``imaging infer`` may take."""


def make_model(directory: Path) -> Path:
    """Write an nnU-Net model folder at 1 mm; an existing one is kept."""
    if not (directory / "plans.json").is_file():
        nnunet_folder.write(
            directory, architecture=ARCHITECTURE, classes=CLASSES, spacing=[1.0] * 3, patch_size=[TILE] * 3
        )
    return directory


def add_cases(suite: Suite, work: Path, source: Path | None) -> None:
    """Make the cases' inputs and declare them."""
    work = work / "memory"
    work.mkdir(parents=True, exist_ok=True)
    image = make_volume(work / "image.nii.gz", SHAPE, source)
    model = make_model(work / "nnUNetTrainer__nnUNetPlans__3d_fullres")
    group = "memory"
    ours = ["-m", "apps.imaging.bench.memory", image, model, work / "out"]
    suite.case("memory-peakline", ours, group=group)
    for name, share in PEERS.items():
        peer = [PEER_PYTHON, "-m", "apps.imaging.bench.peers.memory", name, image, model, work, "--tile", TILE]
        suite.case(f"memory-{name}", peer, ceiling=PEER_CEILING, group=group)
        title = f"memory above the baseline, 25 classes: against {name}"
        suite.ratio(title, "memory-peakline", f"memory-{name}", Bound("result.above_mib", at_most=share))
    _add_shorter(suite, work, source, model)
    _add_speed(suite, work, source, model)


def _add_shorter(suite: Suite, work: Path, source: Path | None, model: Path) -> None:
    """Declare the peaks of ``imaging infer`` and of MONAI on shorter volumes; ``peak_chart`` draws them."""
    for slices in SHORTER:
        image = make_volume(work / f"image-{slices}.nii.gz", (*SHAPE[:2], slices), source)
        ours = ["-m", "apps.imaging.bench.memory", image, model, work / f"out-{slices}"]
        suite.case(f"memory-peakline-{slices}", ours)
        peer = [PEER_PYTHON, "-m", "apps.imaging.bench.peers.memory", "monai", image, model, work, "--tile", TILE]
        suite.case(f"memory-monai-{slices}", peer, ceiling=PEER_CEILING)


def _add_speed(suite: Suite, work: Path, source: Path | None, model: Path) -> None:
    """Compare times with KonfAI on a smaller volume; KonfAI's imports and its conversion are not counted."""
    image = make_volume(work / "smaller.nii.gz", SMALLER, source)
    ours = ["-m", "apps.imaging.bench.memory", image, model, work / "out-smaller"]
    suite.case("konfai-speed-peakline", ours, group="konfai-speed", repeats=2)
    threads = len(os.sched_getaffinity(0))
    peer = [PEER_PYTHON, "-m", "apps.imaging.bench.peers.memory", "konfai", image, model, work / "smaller"]
    options = ["--tile", TILE, "--threads", threads]
    suite.case("konfai-speed", [*peer, *options], group="konfai-speed", repeats=2)
    bound = Bound("seconds", at_most=1 / 1.5)
    suite.ratio("an nnU-Net model: time against KonfAI", "konfai-speed-peakline", "konfai-speed", bound)


def measure(image: Path, model: Path, out: Path) -> dict[str, Any]:
    """Run ``imaging infer`` and return its peak and baseline in MiB from its record."""
    shutil.rmtree(out, ignore_errors=True)
    options = ["--overlap", str(OVERLAP), "--memory", "1GiB", "--json"]
    command = [sys.executable, "-m", "apps.imaging", "infer", str(image), "-m", str(model), "-o", str(out), *options]
    record = json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)
    working = [phase["peak_bytes"] for phase in record["measured"]["phases"] if phase["name"] not in ("plan", "probe")]
    peak, baseline = max(working) / MIB, record["measured"]["floor_bytes"] / MIB
    sizes = {"elapsed": record["seconds"], "baseline_mib": baseline, "peak_mib": peak, "above_mib": peak - baseline}
    return {name: round(value, 1) for name, value in sizes.items()} | {"knobs": record["plan"]["knobs"]}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(measure(*map(Path, sys.argv[1:]))) + "\n")
