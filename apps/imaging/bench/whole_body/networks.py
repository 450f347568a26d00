"""Networks of TotalSegmentator's shapes with random weights, in a results folder of nnU-Net.

Its plans are not published outside its weights. The shapes are nnU-Net's defaults (widths 32 doubling to 320, two
convolutions a stage) for the published patches: 128x128x128 at 1.5 mm, and 112x112x128 at 3 mm.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from apps.imaging.bench.peers import nnunet_folder
from apps.imaging.models.label_map import shipped_map

FAST, FULL = "total-fast", "total"
PATCHES: Mapping[str, Sequence[int]] = MappingProxyType({FAST: (112, 112, 128), FULL: (128, 128, 128)})
SPACINGS: Mapping[str, float] = MappingProxyType({FAST: 3.0, FULL: 1.5})
LAST_STRIDES: Mapping[str, Sequence[int]] = MappingProxyType({FAST: (1, 1, 2), FULL: (2, 2, 2)})
FEATURES = (32, 64, 128, 256, 320, 320)
SCALED_ON = (32, 32, 64)
"""Shape of the noise by which the last layers are scaled so that every class occurs."""
SMOOTH = MappingProxyType({FAST: 4, FULL: 3})
"""Levels by which labels are smooth: parts are 16 voxels wide, 48 mm at 3 mm, and a sixth of the voxels lies between
several. With weights that are random everywhere, each voxel would have another label than its neighbours. At 1.5 mm
60 slices have too few parts of 16 voxels for 117 classes."""
BACKGROUND = MappingProxyType({FAST: 0.0, FULL: 7.0})
"""How much more the background has than other classes, three times their deviation: if each of five networks filled the
body, the last one alone would be seen."""
INTENSITIES = {"mean": 0.0, "std": 400.0, "percentile_00_5": -1000.0, "percentile_99_5": 1000.0}


def architecture(task: str) -> dict[str, Any]:
    """What differs from the default network of ``nnunet_folder``."""
    return {
        "n_stages": len(FEATURES),
        "features_per_stage": list(FEATURES),
        "kernel_sizes": [[3, 3, 3]] * len(FEATURES),
        "strides": [[1, 1, 1], *[[2, 2, 2]] * 4, list(LAST_STRIDES[task])],
        "n_conv_per_stage": [2] * len(FEATURES),
        "n_conv_per_stage_decoder": [2] * (len(FEATURES) - 1),
    }


def data_sets(task: str) -> dict[str, int]:
    """Number of classes of each data set of a task, without the background."""
    content = json.loads(shipped_map(task).read_text())
    return dict(Counter(entry["from"]["model"] for entry in content["classes"]))


def make_results(folder: Path, task: str) -> Path:
    """Write the results folder; data sets that are there already are kept."""
    for seed, (name, classes) in enumerate(data_sets(task).items()):
        model = folder / f"{name}_random" / "nnUNetTrainerNoMirroring__nnUNetPlans__3d_fullres"
        if (model / "fold_0" / "checkpoint_final.pth").is_file():
            continue
        nnunet_folder.write(
            model,
            seeds=(seed,),
            classes=classes + 1,
            architecture=architecture(task),
            trainer="nnUNetTrainerNoMirroring",
            old=True,
            scaled=SCALED_ON,
            smooth=SMOOTH[task],
            background=BACKGROUND[task],
            patch_size=list(PATCHES[task]),
            spacing=[SPACINGS[task]] * 3,
            normalization_schemes=["CTNormalization"],
        )
        plans = json.loads((model / "plans.json").read_text())
        plans["foreground_intensity_properties_per_channel"] = {"0": INTENSITIES}
        (model / "plans.json").write_text(json.dumps(plans))
    return folder


def multiplications(task: str, shape: Sequence[int]) -> int:
    """Count the multiplications and additions of a task's first network on a tile, of convolutions alone."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    classes = next(iter(data_sets(task).values())) + 1
    described = {**nnunet_folder.ARCHITECTURE, **architecture(task)}
    with torch.device("meta"):
        network = nnunet_folder.build(0, described, classes=classes)
        with FlopCounterMode(display=False) as counter:
            network.eval()(torch.empty(1, 1, *shape))
    return int(counter.get_total_flops()) // 2
