"""Data sets of label maps without images: find them, read their headers, load them as tissues of a class table."""

from math import prod
from pathlib import Path

import numpy as np

from apps.imaging.training.data.case_files import LABELS
from apps.imaging.training.data.dataset import ORIENTATION, Dataset, LabelledCase, Warn, label_values, median_spacing
from apps.imaging.training.data.label_table import LARGEST_LABEL, LabelTable
from apps.imaging.training.data.patch_sampling import Volumes
from apps.imaging.training.data.prepared import Classes, Image, nearest, to_model
from apps.imaging.training.data.synthesis import Spacing, Tissues, paint, synthesis_bytes
from apps.imaging.volumes.geometry import AxisMapping
from apps.imaging.volumes.nifti import is_nifti, open_nifti
from apps.imaging.volumes.stored import stem
from apps.imaging.volumes.volume import block_planes, blocks, spacing
from common.errors import BadInput

CHANNEL = "MRI"
"""Name of the one channel, whose normalisation is that of an image without a fixed scale."""


def read_label_maps(
    directory: Path, table: LabelTable, *, skip_bad: bool = False, warn: Warn = lambda line: None
) -> Dataset:
    """Read the headers of the NIfTI files in a folder, or in its folder ``labelsTr``.

    Parameters
    ----------
    skip_bad
        Leave out files that cannot be read, with a warning for each, instead of stopping at the first.
    warn
        Called with each warning.

    Raises
    ------
    BadInput
        No such folder, no label map in it, or the first one that cannot be used.
    """
    folder = directory / LABELS if (directory / LABELS).is_dir() else directory
    try:
        paths = sorted(path for path in folder.iterdir() if is_nifti(path) and not path.name.startswith("."))
    except OSError as error:
        raise BadInput(f"{folder}: {error.strerror}", public="folder of label maps") from None
    cases = []
    for path in paths:
        try:
            cases.append(LabelledCase(stem(path), (), open_nifti(path)))
        except BadInput as error:
            if not skip_bad:
                raise
            warn(f"skipped: {error}")
    if not cases:
        raise BadInput(f"{folder}: no label map (NIfTI) to synthesise images from", public="no label map")
    return Dataset(tuple(cases), table.labels, (CHANNEL,), median_spacing(cases), None, table.about, table)


def load_tissues(case: LabelledCase, table: LabelTable) -> Tissues:
    """Read a label map as numbers of tissues, (x, y, z) in the model's axes, on its own grid.

    Raises
    ------
    BadInput
        Truncated data, label values that the table does not have, or none of a class.
    """
    present = [int(value) for value in label_values(case, LARGEST_LABEL)]
    if unknown := table.missing(present):
        values = ", ".join(map(str, unknown[:8])) + (" and more" if len(unknown) > 8 else "")
        raise BadInput(f"case {case.name}: label values {values} are not in the class table", public="label values")
    if not any(table.class_of[table.tissue_of[value]] for value in present):
        raise BadInput(f"case {case.name}: nothing but background", public="an empty label map")
    x, y, z = case.label.shape
    whole = np.empty((z, y, x), np.uint8)
    start = 0
    for block in blocks(case.label):
        whole[start : start + len(block)] = table.tissues(block.astype(np.uint16))
        start += len(block)
    mapping = AxisMapping.between(case.label.affine, ORIENTATION)
    return np.ascontiguousarray(to_model(whole.transpose(2, 1, 0), mapping))


def own_spacing(case: LabelledCase) -> Spacing:
    """Size of a map's voxels along the model's axes, in millimetres."""
    edges = np.empty(3)
    edges[list(AxisMapping.between(case.label.affine, ORIENTATION).axes)] = spacing(case.label.affine)
    x, y, z = map(float, edges)
    return x, y, z


def load_synthesised(case: LabelledCase, dataset: Dataset, number: int) -> tuple[Image, Classes]:
    """Read a label map to the network's grid, and synthesise one image of it, for validation.

    Parameters
    ----------
    number
        Decides the image's random choices, so that each case has the same image in every training.

    Returns
    -------
    tuple
        Image (1, x, y, z) and classes (x, y, z), as ``prepared.load_case`` has them.
    """
    assert dataset.table is not None
    tissues = np.ascontiguousarray(nearest(load_tissues(case, dataset.table), case.shape(dataset.spacing)))
    return paint(np.random.default_rng((0, number)), tissues, dataset.table, dataset.spacing)


def add_label_map(volumes: Volumes, case: LabelledCase, dataset: Dataset, *, number: int | None, key: str = "") -> None:
    """Load a label map into ``volumes``.

    Parameters
    ----------
    number
        Of a case that is validated, with a synthesised image (``load_synthesised``); ``None``: as tissues on its own
        grid, for ``SynthesisSampler``.
    key
        As in ``Volumes.add``.
    """
    assert dataset.table is not None
    if number is not None:
        volumes.add(*load_synthesised(case, dataset, number), key=key)
        return
    tissues = load_tissues(case, dataset.table)
    labelled = (dataset.table.class_of > 0)[tissues]
    image = np.empty((0, *tissues.shape), np.float32)
    volumes.add(image, tissues, foreground=labelled, spacing=own_spacing(case), key=key)


def reading_bytes(case: LabelledCase, voxels: int) -> int:
    """Bytes of ``load_synthesised`` beside its results, which ``synthesis_bytes`` contains as well.

    Parameters
    ----------
    voxels
        Of the case on the network's grid; 0 if no image is synthesised.
    """
    volume = case.label
    block = block_planes(volume) * volume.shape[0] * volume.shape[1]
    blocked = block * (volume.dtype.itemsize + 2 * 4 + 8)
    return blocked + 2 * prod(volume.shape) + volume.reader_bytes + synthesis_bytes(voxels, 0)
