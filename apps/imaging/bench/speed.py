"""Cases of end-to-end speed on the CPU: ``imaging infer`` against a MONAI script in eager float32, from file to file.

The volume is a real CT tiled to 256x256x256 with noise; 14 classes, tiles of 96x96x96, overlap 0.25: 64 tiles. The
networks have random weights; only time and equality of labels are measured.
"""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from apps.imaging.bench.headline_infer import make_volume
from common.bench.harness import Bound, Suite

CLASSES, TILE, OVERLAP = 14, 96, 0.25
SHAPE = (256, 256, 256)
NETWORKS: Mapping[str, Mapping[str, Any]] = {
    "segresnet": {"init_filters": 16, "blocks_down": [1, 2, 2, 4], "blocks_up": [1, 1, 1]},
    "unet": {"channels": [16, 32, 64, 128, 256], "strides": [2, 2, 2, 2], "num_res_units": 2},
}
CLOCKS: Mapping[str, str] = {"working_seconds": "read to written", "process_seconds": "the whole process"}
"""The first clock starts when the libraries are loaded and before the image is read, the second with the process."""
BOUNDS = {"segresnet": 1 / 2, "unet": 1 / 3}
"""Largest share of MONAI's time that ``imaging infer`` may take with OpenVINO."""
TORCH = 1.0
"""The same with PyTorch as the engine, where only reading, blending and writing differ."""
EQUAL = Bound("result.share", at_most=1e-5)
REPEATS = 3


def make_model(directory: Path, name: str) -> Path:
    """Write a model folder with random weights; an existing one is kept."""
    import torch

    from apps.imaging.models.model_folder import labels_from_names, write_model
    from apps.imaging.models.networks import registry
    from apps.imaging.models.onnx_export import export_onnx

    if (directory / "model.json").is_file():
        return directory
    directory.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    complete = registry.arguments(name, NETWORKS[name], in_channels=1, out_channels=CLASSES)
    network, step = registry.build(name, complete), registry.divisor(name, complete)
    export_onnx(name, network, directory / "network.onnx", tile=(2 * step,) * 3)
    head = registry.NETWORKS[name].head
    write_model(
        directory,
        network=name,
        arguments=complete,
        state={key: tensor.numpy() for key, tensor in network.state_dict().items()},
        channels=["CT"],
        spacing=(1.0, 1.0, 1.0),
        orientation="RAS",
        intensity=[{"op": "zscore"}],
        patch=(TILE,) * 3,
        head={"weight": f"{head}.weight", "bias": f"{head}.bias"} if head else None,
        labels=labels_from_names(["background", *(f"class {number}" for number in range(1, CLASSES))]),
        card="# Random weights, for measuring time only\n",
    )
    return directory


def add_cases(suite: Suite, work: Path, source: Path | None) -> None:
    """Make the cases' inputs and declare them."""
    work.mkdir(parents=True, exist_ok=True)
    volume = make_volume(work / "speed.nii.gz", SHAPE, source)
    for name, bound in BOUNDS.items():
        model, theirs, group = make_model(work / f"speed-{name}", name), work / f"monai-{name}.nii.gz", f"speed-{name}"
        for engine, case in (("openvino", group), ("torch", f"speed-torch-{name}")):
            out = work / f"out-{case}"
            options = f"--overlap {OVERLAP} --memory 3GiB --engine {engine} --json".split()
            ours = ["-m", "apps.imaging", "infer", volume, "-m", model, "-o", out, *options]
            suite.case(case, ours, group=group, repeats=REPEATS, fresh=out)
        peer = ["-m", "apps.imaging.bench.peers.monai", volume, model, theirs, "--tile", TILE, "--overlap", OVERLAP]
        suite.case(f"speed-monai-{name}", peer, group=group, repeats=REPEATS)
        for clock, title in CLOCKS.items():
            for engine, case, most in (("openvino", group, bound), ("torch", f"speed-torch-{name}", TORCH)):
                title_of_both = f"{name} with {engine}, {title}: against MONAI's sliding_window_inference"
                suite.ratio(title_of_both, case, f"speed-monai-{name}", Bound(clock, at_most=most))
        compared = ["-m", "apps.imaging.bench.speed", work / f"out-{group}" / "speed.nii.gz", theirs]
        suite.case(f"speed-equal-{name}", compared, bounds=(EQUAL,))


def differing(ours: Path, theirs: Path) -> dict[str, float]:
    """Return the number of voxels whose labels differ, and their share."""
    from apps.imaging.bench.volumes import read_whole

    unequal = read_whole(ours)[0] != read_whole(theirs)[0]
    return {"different": int(unequal.sum()), "share": float(unequal.mean())}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(differing(*map(Path, sys.argv[1:]))) + "\n")
