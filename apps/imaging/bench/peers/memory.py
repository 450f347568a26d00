"""Measure the peak memory of a peer of ``imaging infer`` on one volume: MONAI, nnU-Net or KonfAI, the same network.

``.venv-peers/bin/python -m apps.imaging.bench.peers.memory PEER IMAGE MODEL WORK``. MODEL is an nnU-Net folder, whose
network all peers run with the same tiles, from file to file, each as its documentation says. The result is the
process's peak, the baseline after imports and one small convolution, and their difference.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from apps.imaging.bench.peers import nnunet_folder
from common.memory.process import meter
from common.memory.process.budget import MIB

OVERLAP = 0.25
CONVERT = """
import sys, SimpleITK
from pathlib import Path
Path(sys.argv[2]).mkdir(parents=True, exist_ok=True)
SimpleITK.WriteImage(SimpleITK.ReadImage(sys.argv[1]), f"{sys.argv[2]}/CT.mha")
"""
"""Converts an image to uncompressed MetaImage; run in a separate process."""


def warm_up() -> None:
    """Run one convolution, so that oneDNN is part of the baseline."""
    import torch

    torch.nn.Conv3d(1, 1, 3)(torch.zeros(1, 1, 8, 8, 8))


def load_network(model: Path) -> Any:
    """Return the first fold's network with its weights."""
    import torch

    configuration = json.loads((model / "plans.json").read_text())["configurations"]["3d_fullres"]
    labels = json.loads((model / "dataset.json").read_text())["labels"]
    network = nnunet_folder.build(0, configuration["architecture"]["arch_kwargs"], classes=len(labels))
    checkpoint = torch.load(model / "fold_0" / "checkpoint_final.pth", weights_only=False)  # written by ourselves
    network.load_state_dict(checkpoint["network_weights"])
    return network.eval()


def monai(image: Path, model: Path, work: Path, tile: int) -> Callable[[], object]:
    """Return a function that runs a usual MONAI script: everything on the CPU, labels as uint8."""
    import nibabel as nib
    import torch
    from monai.inferers import sliding_window_inference
    from monai.transforms import Compose, EnsureChannelFirst, LoadImage, NormalizeIntensity

    network = load_network(model)

    def run() -> None:
        volume = Compose([LoadImage(image_only=True), EnsureChannelFirst(), NormalizeIntensity()])(image)
        with torch.inference_mode():
            logits = sliding_window_inference(volume[None], (tile,) * 3, 1, network, overlap=OVERLAP, mode="gaussian")
            labels = logits[0].argmax(dim=0).to(torch.uint8).numpy()
        nib.save(nib.Nifti1Image(labels, nib.Nifti1Image.from_filename(image).affine), work / "monai.nii.gz")

    return run


def nnunet(image: Path, model: Path, work: Path, tile: int) -> Callable[[], object]:
    """Return a function that runs nnU-Net's predictor with its plan's tile; worker processes would add copies."""
    os.environ |= {f"nnUNet_{name}": str(work) for name in ("raw", "preprocessed", "results")}
    import torch
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    predictor = nnUNetPredictor(
        tile_step_size=1 - OVERLAP,
        use_mirroring=False,
        perform_everything_on_device=False,
        device=torch.device("cpu"),
        allow_tqdm=False,
    )
    predictor.initialize_from_trained_model_folder(str(model), use_folds=(0,))
    return lambda: predictor.predict_from_files_sequential([[str(image)]], [str(work / "nnunet")])


def konfai(image: Path, model: Path, work: Path, tile: int) -> Callable[[], object]:
    """Return a function that runs KonfAI's streaming predictor on MetaImage, which it reads and writes by region."""
    from konfai import predict_model
    from konfai.data.transform import Argmax, Standardize, TensorCast

    subprocess.run([sys.executable, "-c", CONVERT, str(image), str(work / "konfai" / "CASE")], check=True)
    network = load_network(model)
    return lambda: predict_model(
        network,
        f"{work / 'konfai'}:mha",
        inputs="CT",
        patch=[tile] * 3,
        overlap=int(OVERLAP * tile),
        output=f"{work / 'konfai-out'}:mha",
        transforms={"CT": [Standardize()]},
        final_transforms=[Argmax(dim=0), TensorCast(dtype="uint8")],
        predictions_dir=work / "konfai-predictions",
        quiet=True,
        overwrite=True,
    )


PEERS: Mapping[str, Callable[[Path, Path, Path, int], Callable[[], object]]] = {
    "monai": monai,
    "nnunet": nnunet,
    "konfai": konfai,
}


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("peer", choices=PEERS)
    parser.add_argument("image", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--tile", type=int, default=96)
    parser.add_argument("--threads", type=int, default=1, help="memory hardly depends on them")
    args = parser.parse_args()
    import torch

    torch.set_num_threads(args.threads)
    run = PEERS[args.peer](args.image, args.model, args.work, args.tile)
    warm_up()
    baseline, began = meter.resident(), time.monotonic()
    run()
    peak = meter.lifetime_peak()
    sizes = {"elapsed": time.monotonic() - began, "baseline_mib": baseline / MIB, "peak_mib": peak / MIB}
    sizes["above_mib"] = sizes["peak_mib"] - sizes["baseline_mib"]
    versions = {name: version(name) for name in ("torch", "monai", "nnunetv2", "konfai")}
    print(json.dumps({name: round(value, 1) for name, value in sizes.items()} | {"versions": versions}))


if __name__ == "__main__":
    main()
