"""Every kind of model that nnU-Net v2 trains, with random weights, predicted by nnU-Net and by ``imaging infer``.

``python -m apps.imaging.bench.peers.nnunet_kinds KIND WORK`` prints the share of equal voxels, nnU-Net's sums in single
precision. It needs ``.venv-peers`` (``make peers``). Weights are scaled so that every class occurs.
"""

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from apps.imaging.bench.peers import nnunet_folder
from common.bench.harness import Bound, Suite

EQUAL = Bound("result.equal", at_least=0.9999)
PEER_PYTHON = Path(".venv-peers/bin/python")
PREDICT = Path(__file__).with_name("nnunet_single.py")
ISOTROPIC = {"patch_size": [16, 24, 24], "spacing": [1.0, 1.0, 1.0]}
DEEP = {"kernel_sizes": [[3, 3, 3]] * 3, "strides": [[1, 1, 1], [2, 2, 2], [2, 2, 2]]}
RESIDUAL = {"n_blocks_per_stage": [1, 2, 2], "n_conv_per_stage_decoder": [1, 1]}
FLAT = {"patch_size": [24, 32], "spacing": [0.9, 0.9]}


@dataclass(frozen=True, slots=True)
class Kind:
    """A model folder and the images that it is tried on."""

    folder: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of ``nnunet_folder.write``."""
    configuration: str = "3d_fullres"
    trainer: str = "nnUNetTrainer"
    spacing: tuple[float, float, float] = (1.0, 1.0, 1.0)
    """Of the images, along x, y, z."""
    shape: tuple[int, int, int] = (40, 37, 30)
    options: Sequence[str] = ()
    """Of both programs: ``--folds``, ``--checkpoint``."""
    tta: bool = False
    first: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of ``nnunet_folder.write`` for the first stage of a cascade."""


def _resampling(function: str, **options: Any) -> dict[str, Any]:
    order = {"data": {"order": 3}, "seg": {"order": 1}, "probabilities": {"order": 1}}
    fields: dict[str, Any] = {}
    for key, more in order.items():
        more = more if function == "resample_data_or_seg_to_shape" else {}
        fields[f"resampling_fn_{key}"] = function
        fields[f"resampling_fn_{key}_kwargs"] = (
            {} if function == "no_resampling_hack" else {"is_seg": key == "seg", **more, **options}
        )
    return fields


REGIONS = {
    "labels": {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": 3},
    "regions_class_order": [1, 2, 3],
}
OTHER = (1.2, 0.9, 1.3)
THICK = {"spacing": [3.6, 1.6, 1.6], "seeds": (7,)}
STAGE = {"previous_stage": "3d_lowres", "masks": 2}
COARSE = {**ISOTROPIC, "spacing": [2.0, 2.0, 2.0], "seeds": (7,)}
KINDS: Mapping[str, Kind] = {
    "plain": Kind({**ISOTROPIC, "architecture": DEEP}, tta=True),
    "resampled": Kind({**ISOTROPIC, "architecture": DEEP}, spacing=OTHER),
    "old": Kind({**ISOTROPIC, "architecture": DEEP, "old": True}, spacing=OTHER),
    "old-residual": Kind(
        {**ISOTROPIC, "architecture": {**DEEP, **RESIDUAL}, "network": "ResidualEncoderUNet", "old": True}
    ),
    "residual": Kind({**ISOTROPIC, "architecture": {**DEEP, **RESIDUAL}, "network": "ResidualEncoderUNet"}),
    "batch": Kind({**ISOTROPIC, "architecture": DEEP, "norm": "BatchNorm3d"}, trainer="nnUNetTrainerBN"),
    "regions": Kind({**ISOTROPIC, "architecture": DEEP, "dataset": REGIONS, "channels": 2}, spacing=OTHER),
    "ignored": Kind({**ISOTROPIC, "dataset": {"labels": {"background": 0, "one": 1, "two": 2, "ignore": 3}}}),
    "ct": Kind({**ISOTROPIC, "normalization_schemes": ["CTNormalization"]}),
    "rescaled": Kind({**ISOTROPIC, "normalization_schemes": ["RescaleTo01Normalization"]}, spacing=OTHER),
    "rgb": Kind({**ISOTROPIC, "normalization_schemes": ["RGBTo01Normalization"]}),
    "unscaled": Kind({**ISOTROPIC, "normalization_schemes": ["NoNormalization"]}),
    "masked": Kind({**ISOTROPIC, "use_mask_for_norm": [True, True], "channels": 2}, spacing=OTHER),
    "planes": Kind(spacing=(0.7, 0.9, 4.0), shape=(50, 44, 12)),
    "transposed": Kind({"transpose": [2, 0, 1]}, spacing=(4.0, 0.9, 0.7), shape=(12, 44, 50)),
    "transposed-y": Kind({"transpose": [1, 0, 2]}, spacing=(0.9, 4.0, 0.7), shape=(44, 12, 50)),
    "torch": Kind({**ISOTROPIC, **_resampling("resample_torch_fornnunet", force_separate_z=False)}, spacing=OTHER),
    "torch-planes": Kind(_resampling("resample_torch_fornnunet", force_separate_z=None), spacing=(0.7, 0.9, 4.0)),
    "grid": Kind({**ISOTROPIC, **_resampling("no_resampling_hack")}, spacing=OTHER),
    "2d": Kind({**FLAT, "flat": True}, "2d", spacing=(0.8, 1.1, 3.0), shape=(45, 40, 9), tta=True),
    "2d-old": Kind({**FLAT, "flat": True, "old": True}, "2d", spacing=(0.9, 0.9, 5.0), shape=(45, 40, 9)),
    "lowres": Kind({**ISOTROPIC, "spacing": [2.0, 2.0, 2.0]}, "3d_lowres", shape=(60, 54, 48)),
    "cascade": Kind(
        {**ISOTROPIC, "architecture": DEEP, **STAGE}, "3d_cascade_fullres", spacing=OTHER, tta=True, first=COARSE
    ),
    "cascade-planes": Kind(STAGE, "3d_cascade_fullres", spacing=(0.7, 0.9, 4.0), shape=(50, 44, 12), first=THICK),
    "folds": Kind({**ISOTROPIC, "seeds": (0, 1, 2)}, options=("--folds", "0,2")),
    "best": Kind({**ISOTROPIC, "checkpoint": "checkpoint_best.pth"}, options=("--checkpoint", "checkpoint_best.pth")),
}


def make(kind: Kind, work: Path) -> tuple[Path, Path]:
    """Write the model folder and two images; returns both folders."""
    model, images = work / f"{kind.trainer}__nnUNetPlans__{kind.configuration}", work / "images"
    images.mkdir(parents=True, exist_ok=True)
    nnunet_folder.write(model, configuration=kind.configuration, trainer=kind.trainer, scaled=True, **kind.folder)
    if kind.first:
        before = work / f"{kind.trainer}__nnUNetPlans__3d_lowres"
        nnunet_folder.write(before, configuration="3d_lowres", trainer=kind.trainer, scaled=True, **kind.first)
    rgb = "RGB" in str(kind.folder.get("normalization_schemes"))
    for number in range(2):
        for channel in range(int(kind.folder.get("channels", 1))):
            write_image(
                images / f"case{number}_{channel:04d}.nii.gz",
                kind,
                seed=10 * number + channel,
                most=255 if rgb else 900,
            )
    return model, images


def write_image(path: Path, kind: Kind, *, seed: int, most: int) -> None:
    """Write blobs of sharp edges in a body with holes, air around it."""
    import nibabel as nib

    random = np.random.default_rng(seed)
    coarse = random.integers(most // 10, most, [size // 5 + 2 for size in kind.shape])
    values = coarse.repeat(5, 0).repeat(5, 1).repeat(5, 2)[tuple(slice(size) for size in kind.shape)]
    values = values + random.integers(0, most // 20 + 1, kind.shape)
    values[random.random(kind.shape) < 0.02] = 0
    values[:2] = values[:, -3:] = 0
    affine = np.diag([*kind.spacing, 1.0])
    nib.save(nib.Nifti1Image(values.clip(0, most).astype(np.int16), affine), path)


def compare(name: str, work: Path, *, peer: Path = PEER_PYTHON, memory: str = "2GiB") -> dict[str, Any]:
    """Run both on a kind's images and count the voxels that differ."""
    from apps.imaging.bench.volumes import read_whole

    kind = KINDS[name]
    shutil.rmtree(work, ignore_errors=True)
    model, images = make(kind, work)
    theirs, ours = work / "nnunet", work / "peakline"
    options = [word for option in kind.options for word in option.split(",")]
    tta = ["--tta"] if kind.tta else []
    predict = [str(peer), "-P", str(PREDICT)]
    if kind.first:
        before, coarse = model.with_name(f"{kind.trainer}__nnUNetPlans__3d_lowres"), work / "first"
        subprocess.run([*predict, str(before), str(images), str(coarse), *tta], check=True, stdout=subprocess.DEVNULL)
        tta = [*tta, "--previous", str(coarse)]
    subprocess.run(
        [*predict, str(model), str(images), str(theirs), *options, *tta], check=True, stdout=subprocess.DEVNULL
    )
    infer = [sys.executable, "-m", "apps.imaging", "infer", str(images), "-m", str(model), "-o", str(ours), "-q"]
    subprocess.run([*infer, "--memory", memory, *kind.options, *(["--tta", "mirror"] if kind.tta else [])], check=True)
    found = {"voxels": 0, "unequal": 0, "classes": 0}
    for number in range(2):
        expected = read_whole(theirs / f"case{number}.nii.gz")[0]
        produced = next(path for path in ours.glob(f"case{number}*.nii.gz"))
        found["voxels"] += expected.size
        found["unequal"] += int(np.count_nonzero(expected != read_whole(produced)[0]))
        found["classes"] = max(found["classes"], len(np.unique(expected)))
    return {**found, "equal": 1 - found["unequal"] / found["voxels"]}


def add_cases(suite: Suite, work: Path) -> None:
    """Declare a case for each kind."""
    for name in KINDS:
        command = ["-m", "apps.imaging.bench.peers.nnunet_kinds", name, work / "kinds" / name]
        suite.case(f"nnunet-{name}", command, bounds=(EQUAL,))


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=[*KINDS])
    parser.add_argument("work", type=Path)
    parser.add_argument("--peer", type=Path, default=PEER_PYTHON, help="Python that has nnunetv2")
    args = parser.parse_args()
    print(json.dumps(compare(args.kind, args.work, peer=args.peer)))


if __name__ == "__main__":
    main()
