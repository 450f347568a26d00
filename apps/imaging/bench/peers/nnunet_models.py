"""Train nnU-Net models of the hippocampus to compare with: planned by nnU-Net, trained for a minute by its trainer.

``.venv-peers/bin/python -m apps.imaging.bench.peers.nnunet_models WORK SOURCE [STEPS]``. SOURCE is the Decathlon's
Task04. There are three data sets of 16 images and two folds: isotropic; every second slice at 0.8 x 0.8 x 3.6 mm;
isotropic with two channels. Each has six further images for testing, half of them at another spacing. Patches are
smaller than the images, so that tiles overlap, and networks have half the features.
"""

import json
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

TRAINING, TESTING = 16, 6
STEPS = 250
CHANGED = (1.2, 1.2, 0.9)
"""The spacing of every second test image is multiplied by this."""


@dataclass(frozen=True, slots=True)
class Kind:
    """One data set."""

    number: int
    name: str
    spacing: tuple[float, float, float]
    step: int
    """One slice in this many is kept."""
    patch: tuple[int, int, int]
    channels: tuple[str, ...] = ("MRI",)

    @property
    def folder(self) -> str:
        """Return nnU-Net's name for the data set's folder."""
        return f"Dataset{self.number:03d}_{self.name}"


KINDS = (
    Kind(1, "iso", (1.0, 1.0, 1.0), 1, (24, 32, 24)),
    Kind(2, "aniso", (0.8, 0.8, 3.6), 2, (12, 32, 24)),
    Kind(3, "two", (1.0, 1.0, 1.0), 1, (24, 32, 24), ("MRI", "slope")),
)


def write_images(kind: Kind, raw: Path, source: Path) -> None:
    """Write nnU-Net's raw data set; a second channel is the first one's gradient along x."""
    import nibabel as nib

    folder = raw / kind.folder
    for name in ("imagesTr", "labelsTr", "imagesTs"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for index, path in enumerate(sorted((source / "imagesTr").glob("hippo*.nii.gz"))[: TRAINING + TESTING]):
        testing = index >= TRAINING
        factors = CHANGED if testing and index % 2 else (1.0, 1.0, 1.0)
        affine = np.diag([*(size * factor for size, factor in zip(kind.spacing, factors, strict=True)), 1.0])
        image = np.asarray(nib.Nifti1Image.from_filename(path).dataobj, np.float32)[..., :: kind.step]
        case = path.name.removesuffix(".nii.gz")
        for channel, values in enumerate((image, np.gradient(image, axis=0))[: len(kind.channels)]):
            saved = nib.Nifti1Image(values.astype(np.float32), affine)
            nib.save(saved, folder / ("imagesTs" if testing else "imagesTr") / f"{case}_{channel:04d}.nii.gz")
        if not testing:
            stored = nib.Nifti1Image.from_filename(source / "labelsTr" / path.name)
            labels = np.asarray(stored.dataobj)[..., :: kind.step]
            nib.save(nib.Nifti1Image(labels.astype(np.uint8), affine), folder / "labelsTr" / f"{case}.nii.gz")
    described = {
        "channel_names": {str(number): name for number, name in enumerate(kind.channels)},
        "labels": {"background": 0, "Anterior": 1, "Posterior": 2},
        "numTraining": TRAINING,
        "file_ending": ".nii.gz",
    }
    (folder / "dataset.json").write_text(json.dumps(described))


def plan(kind: Kind, preprocessed: Path) -> None:
    """Run nnU-Net's fingerprint, planning (with patch, batch and features made smaller) and preprocessing."""
    from nnunetv2.experiment_planning import plan_and_preprocess_api as api

    os.environ |= {"nnUNet_n_proc_DA": "1"}  # the planner's number of threads
    api.extract_fingerprints([kind.number], num_processes=1, check_dataset_integrity=False)
    api.plan_experiments([kind.number])
    path = preprocessed / kind.folder / "nnUNetPlans.json"
    plans = json.loads(path.read_text())
    configuration = plans["configurations"]["3d_fullres"]
    configuration["batch_size"], configuration["patch_size"] = 2, list(kind.patch)
    arguments = configuration["architecture"]["arch_kwargs"]
    arguments["features_per_stage"] = [count // 2 for count in arguments["features_per_stage"]]
    plans["configurations"] = {"3d_fullres": configuration}
    path.write_text(json.dumps(plans))
    api.preprocess([kind.number], configurations=("3d_fullres",), num_processes=(1,))


def train(kind: Kind, steps: int) -> None:
    """Train two folds for ``steps`` steps each."""
    import torch
    from nnunetv2.run.run_training import get_trainer_from_args

    os.environ |= {"nnUNet_n_proc_DA": "0"}  # augmentation in this process
    for fold in (0, 1):
        trainer = get_trainer_from_args(
            str(kind.number), "3d_fullres", fold, "nnUNetTrainer", "nnUNetPlans", device=torch.device("cpu")
        )
        trainer.oversample_foreground_percent = 1.0  # few steps are then enough to learn the labels
        trainer.num_epochs, trainer.num_iterations_per_epoch, trainer.num_val_iterations_per_epoch = 1, steps, 1
        trainer.run_training()


def models(work: Path) -> Iterator[tuple[Kind, Path, Path]]:
    """Yield each data set with its trained model and its test images."""
    for kind in KINDS:
        model = work / "results" / kind.folder / "nnUNetTrainer__nnUNetPlans__3d_fullres"
        yield kind, model, work / "raw" / kind.folder / "imagesTs"


def make(work: Path, source: Path, steps: int = STEPS) -> None:
    """Make the data sets and models that are missing."""
    work = work.resolve()
    for name in ("raw", "preprocessed", "results"):
        (work / name).mkdir(parents=True, exist_ok=True)
        os.environ[f"nnUNet_{name}"] = str(work / name)  # read when nnunetv2 is imported
    os.environ |= {"nnUNet_compile": "f", "nnUNet_def_n_proc": "1"}
    for kind, model, _ in models(work):
        if not (model / "fold_1" / "checkpoint_final.pth").is_file():
            write_images(kind, work / "raw", source)
            plan(kind, work / "preprocessed")
            train(kind, steps)


if __name__ == "__main__":
    make(Path(sys.argv[1]), Path(sys.argv[2]), *map(int, sys.argv[3:4]))
