"""Compare labels and speed with nnU-Net: a trained model's images through ``nnUNetv2_predict`` and ``imaging infer``.

``python -m apps.imaging.bench.peers.nnunet MODEL IMAGES WORK [--tta]``. MODEL is a trained-model folder in nnU-Net's
``nnUNet_results``, IMAGES a folder with the layout of its ``imagesTs``. It needs ``.venv-peers`` (``make peers``). It
prints the share of equal voxels and the seconds of each run, imports included; both run in turn ``--repeats`` times.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from apps.imaging.bench.peers import nnunet_models
from apps.imaging.volumes.stored import stem
from common.bench.harness import Bound, Suite

PEER_BIN = Path(".venv-peers/bin")
SUFFIX = "_0000.nii.gz"
"""nnU-Net's file names end in the number of the channel."""
EQUAL = Bound("result.equal", at_least=0.9999)
FASTER = Bound("result.speedup", at_least=1.5)


def compare(model: Path, images: Path, work: Path, *, tta: bool, memory: str, repeats: int) -> dict[str, Any]:
    """Run both in turn with the same folds, tiles and mirror axes."""
    theirs, ours = work / "nnunet", work / "peakline"
    files = sorted(images.glob(f"*{SUFFIX}"))
    folds = [path.parent.name.removeprefix("fold_") for path in sorted(model.glob("fold_*/checkpoint_final.pth"))]
    number = model.parent.name.removeprefix("Dataset").split("_")[0]
    predict: list[object] = [PEER_BIN / "nnUNetv2_predict", "-i", images, "-o", theirs, "-d", number, "-f", *folds]
    predict += ["-c", "3d_fullres", "-device", "cpu", "-npp", 0, "-nps", 0, "--disable_progress_bar"]
    predict += [] if tta else ["--disable_tta"]
    infer: list[object] = [sys.executable, "-m", "apps.imaging", "infer", *files, "-m", model, "-o", ours, "-q"]
    infer += ["--memory", memory, "--tta", "mirror" if tta else "none"]
    folders = {f"nnUNet_{name}": str(model.parent.parent) for name in ("raw", "preprocessed", "results")}
    seconds: list[tuple[float, float]] = []
    for _ in range(repeats):
        seconds.append((_seconds(predict, theirs, folders), _seconds(infer, ours, {})))
    different = [
        _different(theirs / f"{path.name.removesuffix(SUFFIX)}.nii.gz", ours / f"{stem(path)}.nii.gz") for path in files
    ]
    voxels = sum(size for _, size, _ in different)
    unequal = sum(count for count, _, _ in different)
    return {
        "voxels": voxels,
        "foreground": sum(foreground for _, _, foreground in different),
        "unequal": unequal,
        "equal": 1 - unequal / voxels,
        "seconds_nnunet": [round(pair[0], 2) for pair in seconds],
        "seconds_peakline": [round(pair[1], 2) for pair in seconds],
        "speedup": round(statistics.median(theirs / ours for theirs, ours in seconds), 3),
    }


def _seconds(command: list[object], out: Path, environment: Mapping[str, str]) -> float:
    shutil.rmtree(out, ignore_errors=True)
    began = time.monotonic()
    subprocess.run(
        [str(word) for word in command], check=True, stdout=subprocess.DEVNULL, env={**os.environ, **environment}
    )
    return time.monotonic() - began


def _different(theirs: Path, ours: Path) -> tuple[int, int, int]:
    """Return the numbers of differing voxels, of all voxels, and of foreground voxels."""
    from apps.imaging.bench.volumes import read_whole

    expected = read_whole(theirs)[0]
    unequal = expected != read_whole(ours)[0]
    return int(np.count_nonzero(unequal)), int(unequal.size), int(np.count_nonzero(expected))


def add_cases(suite: Suite, work: Path, source: Path) -> None:
    """Train missing models and declare the cases."""
    work = work / "nnunet"
    make = [PEER_BIN / "python", "-m", "apps.imaging.bench.peers.nnunet_models", work, source]
    subprocess.run([str(word) for word in make], check=True, stdout=subprocess.DEVNULL)
    for kind, model, images in nnunet_models.models(work):
        for tta in (False, True):
            name = f"parity-{kind.name}{'-tta' if tta else ''}"
            command = ["-m", "apps.imaging.bench.peers.nnunet", model, images, work / name, *(["--tta"] if tta else [])]
            suite.case(name, command, bounds=(EQUAL,))
    kind, model, images = next(nnunet_models.models(work))
    command = ["-m", "apps.imaging.bench.peers.nnunet", model, images, work / "speed", "--tta", "--repeats", 2]
    suite.case("parity-speed", command, bounds=(FASTER,))


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("images", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--tta", action="store_true")
    parser.add_argument("--memory", default="3GiB")
    parser.add_argument("--repeats", type=int, default=1)
    args = parser.parse_args()
    answer = compare(args.model, args.images, args.work, tta=args.tta, memory=args.memory, repeats=args.repeats)
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
