"""Published bundles of MONAI's model zoo, with random weights, by MONAI and by ``imaging infer``.

``python -m apps.imaging.bench.peers.zoo NAME ZOO WORK`` prints the share of equal voxels of both engines. ZOO is a
checkout of the model zoo, whose configurations are used as they are; if the bundle there has weights, it is used with
them. It needs ``.venv-peers`` (``make peers``).
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from common.bench.harness import Bound, Suite

EQUAL = Bound("result.equal", at_least=0.9999)
PEER_PYTHON = Path(".venv-peers/bin/python")
SCRIPT = Path(__file__).with_name("zoo_monai.py")
ZOO = Path(os.environ.get("PEAKLINE_ZOO", ""))
"""A checkout of the model zoo, for ``make bench-imaging ONLY='zoo-*'``."""


@dataclass(frozen=True, slots=True)
class Published:
    """A bundle, and the image that it is tried on."""

    configuration: str = "inference.json"
    channels: int = 1
    shape: tuple[int, int, int] = (72, 64, 40)
    spacing: tuple[float, float, float] = (1.9, 1.9, 3.1)


BUNDLES: Mapping[str, Published] = {
    "spleen_ct_segmentation": Published(),
    "wholeBody_ct_segmentation": Published(),
    "brats_mri_segmentation": Published(channels=4, shape=(64, 56, 48), spacing=(1.0, 1.0, 1.0)),
    "multi_organ_segmentation": Published("inference.yaml", shape=(60, 50, 30)),
    "pancreas_ct_dints_segmentation": Published("inference.yaml", shape=(60, 50, 30)),
    "pediatric_abdominal_ct_segmentation": Published("inference.yaml"),
    "prostate_mri_anatomy": Published(shape=(60, 56, 12), spacing=(0.8, 0.8, 3.0)),
    "swin_unetr_btcv_segmentation": Published(),
    "renalStructures_CECT_segmentation": Published(channels=3),
    "spleen_deepedit_annotation": Published(),
    "vista3d": Published(),
}


def write_images(folder: Path, bundle: Published) -> None:
    """Write blobs in a body, air around it."""
    import nibabel as nib

    folder.mkdir(parents=True)
    for channel in range(bundle.channels):
        random = np.random.default_rng(channel)
        coarse = random.integers(-150, 250, [size // 4 + 2 for size in bundle.shape])
        values = coarse.repeat(4, 0).repeat(4, 1).repeat(4, 2)[tuple(slice(size) for size in bundle.shape)]
        values = values + random.integers(-20, 20, bundle.shape)
        values[:5] = values[:, -4:] = values[..., :2] = -1000 if bundle.channels == 1 else 0
        name = f"case_{channel:04d}.nii.gz" if bundle.channels > 1 else "case.nii.gz"
        nib.save(nib.Nifti1Image(values.astype(np.int16), np.diag([*bundle.spacing, 1.0])), folder / name)


def compare(name: str, zoo: Path, work: Path, *, peer: Path = PEER_PYTHON, memory: str = "8GiB") -> dict[str, Any]:
    """Run both on a bundle and count the voxels that differ."""
    from apps.imaging.bench.volumes import read_whole

    bundle = BUNDLES[name]
    shutil.rmtree(work, ignore_errors=True)
    folder, images = work / name, work / "images"
    shutil.copytree(zoo / "models" / name, folder, ignore=shutil.ignore_patterns("docs", "*.ts"))
    write_images(images, bundle)
    monai: list[object] = [peer, "-P", "-W", "ignore", SCRIPT]
    if not (folder / "models").is_dir():
        _run([*monai, "make", folder, bundle.configuration])
    _run([*monai, "predict", folder, bundle.configuration, images, work / "expected.npy"])
    expected = np.rint(np.load(work / "expected.npy")[0])
    result: dict[str, Any] = {"voxels": int(expected.size), "classes": len(np.unique(expected))}
    # OpenVINO rounds otherwise, which decides voxels of a deep network of random weights.
    for engine, key in (("openvino", "equal_openvino"), ("torch", "equal")):
        infer = [sys.executable, "-m", "apps.imaging", "infer", images, "-m", folder, "-o", work / engine, "-q"]
        _run([*infer, "--memory", memory, "--engine", engine, "--json"], work / "run.json")
        result[key] = float((read_whole(work / engine / "case.nii.gz")[0] == expected).mean())
        record = json.loads((work / "run.json").read_text())
        peak, predicted = record["measured"]["peak_bytes"], record["plan"]["predicted_peak_bytes"]
        result[f"peak_mib_{engine}"] = peak >> 20
        result[f"predicted_over_measured_{engine}"] = round(predicted / peak, 3)
    return result


def _run(command: list[object], out: Path | None = None) -> None:
    with (out or Path(os.devnull)).open("wb") as stream:
        subprocess.run([str(word) for word in command], check=True, stdout=stream)


def add_cases(suite: Suite, work: Path) -> None:
    """Declare a case for each bundle, if there is a checkout of the zoo."""
    if not (ZOO / "models").is_dir() or Path() == ZOO:
        sys.stderr.write("imaging: cases of the model zoo are left out; PEAKLINE_ZOO names no checkout of it\n")
        return
    for name in BUNDLES:
        command = ["-m", "apps.imaging.bench.peers.zoo", name, ZOO, work / "zoo" / name]
        suite.case(f"zoo-{name}", command, bounds=(EQUAL,))


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=[*BUNDLES])
    parser.add_argument("zoo", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--peer", type=Path, default=PEER_PYTHON, help="Python that has MONAI")
    args = parser.parse_args()
    print(json.dumps(compare(args.name, args.zoo, args.work, peer=args.peer)))


if __name__ == "__main__":
    main()
