"""Predict with nnU-Net itself, its sums of logits in single precision.

``nnunet_single.py MODEL IMAGES OUT [OPTION ...]``. nnU-Net adds tiles up in half precision, which decides many voxels
of a network whose logits lie close. ``--folds`` and ``--checkpoint`` are nnU-Net's; ``--tta`` mirrors.
"""

import argparse
from pathlib import Path

import torch


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("images", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--folds", nargs="*")
    parser.add_argument("--checkpoint", default="checkpoint_final.pth")
    parser.add_argument("--tta", action="store_true")
    parser.add_argument("--previous", type=Path, help="labels of a cascade's previous stage")
    args = parser.parse_args()
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    args.out.mkdir(parents=True, exist_ok=True)
    torch.half = torch.float32  # the type of the sums; that of the weights is written torch.float16
    torch.set_num_threads(1)
    predictor = nnUNetPredictor(use_mirroring=args.tta, device=torch.device("cpu"), allow_tqdm=False)
    folds = [fold if fold == "all" else int(fold) for fold in args.folds] if args.folds else None
    predictor.initialize_from_trained_model_folder(str(args.model), folds, args.checkpoint)
    predictor.predict_from_files_sequential(
        str(args.images), str(args.out), folder_with_segs_from_prev_stage=str(args.previous) if args.previous else None
    )


if __name__ == "__main__":
    main()
