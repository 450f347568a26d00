"""Large synthetic CT series and networks with random weights, the inputs of the suite ``imaging``.

Slices come from a real CT (if ``PEAKLINE_DATA`` has one, else smooth noise), tiled to 512 x 512 with noise added, and
are written as single-frame DICOM. Only memory, time and equality are measured on them.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from apps.imaging.bench.headline_infer import random_segresnet
from common.memory.process.budget import MIB

EDGE = 512
LONG_LENGTHS = (200, 600, 1000, 2000)
"""Numbers of slices of the series from which the peak's slope is computed."""
FLAT_CEILING = "700MiB"
"""Under this ceiling all lengths get the same plan. With more memory, series whose last tiles happen to overlap little
would be blended in memory and the others on disk."""


def make_series(
    folder: Path,
    slices: int,
    source: Path | None,
    *,
    seed: int = 0,
    edge: int = EDGE,
    pixel: float = 1.0,
    spacing: float = 1.0,
) -> Path:
    """Write a series of ``slices`` slices of ``edge`` x ``edge`` pixels, one by one; a complete one is kept.

    Parameters
    ----------
    pixel, spacing
        Size of a pixel and distance of two slices in mm.
    """
    import pydicom
    from pydicom.dataset import FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

    from apps.imaging.bench.volumes import read_whole

    if folder.is_dir() and len(list(folder.iterdir())) == slices:
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    base = read_whole(source)[0] if source is not None else random.normal(0, 300, (64, 64, 64)).astype(np.float32)
    x, y = (np.arange(edge) % size for size in base.shape[:2])
    for z in range(slices):
        plane = base[..., z % base.shape[2]][np.ix_(x, y)].T + random.normal(0, 20, (edge, edge))
        data = pydicom.Dataset()
        data.file_meta = FileMetaDataset()
        data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        data.SOPClassUID, data.SOPInstanceUID = CTImageStorage, f"1.2.826.0.1.3680043.8.498.{seed}.{slices}.{z + 1}"
        data.file_meta.MediaStorageSOPClassUID = CTImageStorage
        data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID
        data.StudyInstanceUID, data.SeriesInstanceUID, data.FrameOfReferenceUID = (
            f"1.2.826.0.1.3680043.8.498.{kind}.{seed}.{slices}" for kind in (1, 2, 3)
        )
        data.PatientName, data.PatientID, data.Modality = "SYNTHETIC^VOLUME", "SYNTHETIC", "CT"
        data.Rows = data.Columns = edge
        data.ImagePositionPatient, data.ImageOrientationPatient = [0.0, 0.0, spacing * z], [1, 0, 0, 0, 1, 0]
        data.PixelSpacing, data.SliceThickness = [pixel, pixel], spacing
        data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
        data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 16, 15, 1
        data.RescaleSlope, data.RescaleIntercept = 1, 0
        data.PixelData = np.clip(plane, -2000, 3000).astype(np.int16).tobytes()
        data.save_as(folder / f"{z:05d}.dcm", enforce_file_format=True)
    return folder


def make_model(directory: Path, *, classes: int, filters: int, tile: int, seed: int = 0) -> Path:
    """Write a model folder of a SegResNet with two levels, a 1x1x1 head after ``filters`` features, random weights."""
    return random_segresnet(
        directory,
        {"init_filters": filters, "blocks_down": [1, 2], "blocks_up": [1]},
        classes=classes,
        tile=tile,
        spacing=1.0,
        orientation="LPS",
        intensity=[{"op": "clip", "low": -1000, "high": 1000}, {"op": "scale", "low": -1000, "high": 1000}],
        seed=seed,
    )


def infer_command(series: Path, model: Path, out: Path, *options: object) -> list[str]:
    """Return a command of ``imaging infer`` that removes the output folder first; a finished study would be skipped."""
    command = (
        f"rm -rf '{out}' && exec '{sys.executable}' -m apps.imaging infer '{series}' -m '{model}' -o '{out}' --json"
    )
    return ["sh", "-c", " ".join([command, *map(str, options)])]


def slope(series: list[Path], model: Path, out: Path) -> dict[str, Any]:
    """Run one command on series of growing length; return the peaks and their slope in MiB per 100 slices."""
    options = ["--overlap", 0, "--memory", FLAT_CEILING, "--output-type", "nifti,dicom-seg", "--seg-type", "labelmap"]
    peaks, lengths, plans = [], [], set()
    for folder in series:
        command = infer_command(folder, model, out, *options, "--statistics", "--preview")
        record = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        working = [phase for phase in record["measured"]["phases"] if phase["name"] != "probe"]
        peaks.append(max(phase["peak_bytes"] for phase in working) / MIB)
        lengths.append(len(list(folder.iterdir())))
        plans.add(json.dumps(record["plan"]["knobs"], sort_keys=True))
        sys.stderr.write(
            f"flat: {lengths[-1]} slices, {peaks[-1]:.1f} MiB\n"
        )  # printed at once: a later run may be interrupted
    per_slice = float(np.polyfit(lengths, peaks, 1)[0])
    return {
        "slices": lengths,
        "peaks_mib": [round(peak, 1) for peak in peaks],
        "mib_per_100": round(100 * per_slice, 3),
        "plans": len(plans),
    }


if __name__ == "__main__":
    *folders, chosen_model, output = map(Path, sys.argv[1:])
    sys.stdout.write(json.dumps(slope(folders, chosen_model, output)) + "\n")
