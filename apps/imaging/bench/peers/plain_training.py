"""A good training script with PyTorch and MONAI, the peer of ``imaging train``.

It has no ceiling and cannot resume: it reads every case, z-scores, draws patches with flips, affine and intensity
augmentation, and trains a SegResNet with Dice and cross-entropy, AdamW, a cosine schedule and bfloat16 autocast.
``python -m apps.imaging.bench.peers.plain_training DATASET_DIR --steps 2000 --out result.json``
"""

import argparse
import json
import time
from pathlib import Path
from typing import cast

import nibabel as nib
import numpy as np
import numpy.typing as npt
import torch
from monai.inferers import sliding_window_inference
from monai.losses import DiceCELoss
from monai.metrics import DiceMetric
from monai.networks.nets import SegResNet
from monai.transforms import (
    Compose,
    EnsureChannelFirstd,
    NormalizeIntensityd,
    RandAdjustContrastd,
    RandAffined,
    RandFlipd,
    RandGaussianNoised,
    RandScaleIntensityd,
    RandShiftIntensityd,
    RandSpatialCropd,
    SpatialPadd,
)


def load(path: Path) -> npt.NDArray[np.float32]:
    """Read a NIfTI file as float32."""
    return np.asanyarray(nib.Nifti1Image.from_filename(path).dataobj).astype(np.float32)


def main() -> None:
    """Train, validate on the held-out fold, and print the result as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--fold", default="0/5")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--patch", type=int, nargs=3, default=(40, 56, 40))
    parser.add_argument("--filters", type=int, default=16)
    parser.add_argument("--down", type=int, nargs="+", default=(1, 2, 2))
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--weight-decay", type=float, default=1e-4)
    parser.add_argument("--precision", choices=("bf16", "float32"), default="bf16")
    parser.add_argument("--mirror", type=int, nargs="*", default=(0,))
    parser.add_argument("--affine", type=float, default=0.3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    began = time.monotonic()

    names = sorted(p.name for p in (args.dataset / "labelsTr").glob("*.nii.gz"))
    fold, folds = map(int, args.fold.split("/"))
    held_out = names[fold::folds]
    patch = tuple(args.patch)
    read = Compose(
        [
            EnsureChannelFirstd(["image", "label"], channel_dim="no_channel"),
            NormalizeIntensityd("image"),
        ]
    )
    cases = {
        n: read({"image": load(args.dataset / "imagesTr" / n), "label": load(args.dataset / "labelsTr" / n)})
        for n in names
    }
    both = ["image", "label"]
    augment = Compose(
        [
            SpatialPadd(both, patch),
            RandAffined(
                both,
                prob=args.affine,
                rotate_range=[0.25] * 3,
                scale_range=[0.15] * 3,
                mode=("bilinear", "nearest"),
                padding_mode=("zeros", "zeros"),
            ),
            RandSpatialCropd(both, patch, random_size=False),
            *[RandFlipd(both, prob=0.5, spatial_axis=axis) for axis in args.mirror],
            RandScaleIntensityd("image", factors=0.2, prob=0.5),
            RandShiftIntensityd("image", offsets=0.2, prob=0.5),
            RandAdjustContrastd("image", prob=0.3, gamma=(0.7, 1.5), retain_stats=True),
            RandGaussianNoised("image", prob=0.2, std=0.1),
        ]
    ).set_random_state(args.seed)
    training = [cases[n] for n in names if n not in held_out]

    network = SegResNet(
        init_filters=args.filters,
        in_channels=1,
        out_channels=3,
        blocks_down=args.down,
        blocks_up=(1,) * (len(args.down) - 1),
    )
    loss_function = DiceCELoss(to_onehot_y=True, softmax=True, include_background=False)
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=args.learning_rate, weight_decay=args.weight_decay, fused=True
    )
    warm_up = max(1, args.steps // 40)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda s: min((s + 1) / warm_up, 0.5 * (1 + np.cos(np.pi * max(0, s - warm_up) / (args.steps - warm_up)))),
    )
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=args.precision == "bf16")
    random = np.random.default_rng(args.seed)
    loaded = time.monotonic()

    def validate() -> list[float]:
        network.eval()
        metric = DiceMetric(reduction="mean_batch")
        with torch.inference_mode(), autocast:
            for name in held_out:
                case = cases[name]
                logits = sliding_window_inference(
                    case["image"][None], patch, 1, network, overlap=0.5, mode="gaussian", padding_mode="constant"
                )
                guess = cast(torch.Tensor, logits).argmax(1, keepdim=True)
                metric(*(torch.cat([v == c for c in (1, 2)], 1) for v in (guess, case["label"][None])))
        network.train()
        return [float(v) for v in metric.aggregate()]

    network.train()
    data_seconds = 0.0
    for step in range(args.steps):
        t = time.monotonic()
        batch = [augment(training[i]) for i in random.integers(len(training), size=args.batch)]
        image = torch.stack([b["image"].as_tensor() for b in batch])
        label = torch.stack([b["label"].as_tensor() for b in batch])
        data_seconds += time.monotonic() - t
        with autocast:
            logits = network(image)
        loss = loss_function(logits.float(), label)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 5.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        schedule.step()
        if step % 100 == 99:
            now = time.monotonic()
            print(f"{step + 1}: loss {loss.item():.3f}, {now - loaded:.0f} s, data {data_seconds:.0f} s", flush=True)
        if step % 500 == 499 and step + 1 < args.steps:
            print("   dice", validate(), flush=True)
    dice = validate()
    result = {
        "dice": dice,
        "mean_dice": float(np.mean(dice)),
        "seconds": time.monotonic() - began,
        "steps": args.steps,
        "precision": args.precision,
        "parameters": sum(p.numel() for p in network.parameters()),
    }
    print(json.dumps(result))
    if args.out:
        args.out.write_text(json.dumps(result))


if __name__ == "__main__":
    main()
