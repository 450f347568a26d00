"""Parity with nnU-Net: the same model folder and images through ``nnUNetv2_predict`` and ``imaging infer``.

``python -m apps.imaging.bench.peer_nnunet MODEL IMAGES WORK [--tta]``: MODEL is a trained-model folder, IMAGES a folder
laid out as nnU-Net's ``imagesTs``. Needs ``.venv-peers`` (``make peers``); prints the share of voxels that are equal,
and the seconds that each took, imports included.
"""

import argparse
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

PREDICT = Path(".venv-peers/bin/nnUNetv2_predict_from_modelfolder")
SUFFIX = "_0000.nii.gz"
"""nnU-Net's names end in the number of the channel."""


def compare(model: Path, images: Path, work: Path, *, tta: bool, memory: str) -> dict[str, Any]:
    """Run both with the same folds, tiles and mirror axes, one after the other."""
    theirs, ours = work / "nnunet", work / "peakline"
    for place in (theirs, ours):
        shutil.rmtree(place, ignore_errors=True)
    files = sorted(images.glob(f"*{SUFFIX}"))
    folds = [place.parent.name.removeprefix("fold_") for place in sorted(model.glob("fold_*/checkpoint_final.pth"))]
    command = [PREDICT, "-i", images, "-o", theirs, "-m", model, "-f", *folds, "-device", "cpu", "-npp", 1, "-nps", 1]
    seconds = [_seconds([*command, *([] if tta else ["--disable_tta"]), "--disable_progress_bar"])]
    own = [sys.executable, "-m", "apps.imaging", "infer", *files, "-m", model, "-o", ours, "--memory", memory, "-q"]
    seconds.append(_seconds([*own, "--tta", "mirror" if tta else "none"]))
    different = [
        _different(theirs / f"{path.name.removesuffix(SUFFIX)}.nii.gz", ours / f"study-{number:04d}.nii.gz")
        for number, path in enumerate(files, start=1)
    ]
    voxels = sum(size for _, size in different)
    unequal = sum(count for count, _ in different)
    return {
        "voxels": voxels,
        "unequal": unequal,
        "equal": 1 - unequal / voxels,
        "seconds_nnunet": round(seconds[0], 2),
        "seconds_peakline": round(seconds[1], 2),
    }


def _seconds(command: list[object]) -> float:
    began = time.monotonic()
    subprocess.run([str(part) for part in command], check=True, stdout=subprocess.DEVNULL)
    return time.monotonic() - began


def _different(theirs: Path, ours: Path) -> tuple[int, int]:
    from apps.imaging.nifti import read_whole

    unequal = read_whole(theirs)[0] != read_whole(ours)[0]
    return int(np.count_nonzero(unequal)), int(unequal.size)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("images", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--tta", action="store_true")
    parser.add_argument("--memory", default="3GiB")
    args = parser.parse_args()
    found = compare(args.model, args.images, args.work, tta=args.tta, memory=args.memory)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
