"""Segmentation for Python: an image in, labels out, inside a stated number of bytes."""

import gzip
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.api import command
from common.api.scratch import Scratch
from common.errors import BadInput, UsageError
from common.model_folder import MANIFEST, model_path

if TYPE_CHECKING:
    import nibabel as nib
    import numpy as np
    import numpy.typing as npt

COPY_BYTES = 1 << 20
"""Labels are unpacked so many bytes at a time."""


@dataclass(frozen=True, slots=True, eq=False)
class Segmentation:
    """The labels of one image.

    Attributes
    ----------
    labels
        Shape (x, y, z), one unsigned integer a voxel of the image, on the image's own grid. The array is mapped from a
        file that has no name any more: what is read of it takes memory, and the file's space is free when the array is.
    affine
        From indices of voxels to millimetres in NIfTI's axes (right, anterior, superior), shape (4, 4).
    names
        Value -> name of the class; 0 is the background.
    header
        nibabel's header, with the image's geometry.
    record
        Record of the run, as in ``run.json``: predicted and measured memory, and more.
    """

    labels: "npt.NDArray[np.unsignedinteger]"
    affine: "npt.NDArray[np.float64]"
    names: Mapping[int, str]
    header: Any
    record: Mapping[str, Any]

    @property
    def image(self) -> "nib.Nifti1Image":
        """The labels as an image, which ``nibabel.save`` writes."""
        import nibabel as nib

        kind: Any = nib.Nifti2Image if self.header["sizeof_hdr"] == 540 else nib.Nifti1Image
        image: nib.Nifti1Image = kind(self.labels, self.affine, self.header)
        return image

    def __repr__(self) -> str:
        size = "x".join(map(str, self.labels.shape))
        return f"<Segmentation {size}: {', '.join(name for value, name in self.names.items() if value)}>"


def segment(
    image: "str | os.PathLike[str] | nib.spatialimages.SpatialImage",
    model: str | os.PathLike[str],
    *,
    memory: str | int = "auto",
    roi_subset: Sequence[str] | None = None,
    tile: int | Sequence[int] | None = None,
    overlap: float | None = None,
    batch: int | None = None,
    engine: str | None = None,
    precision: str | None = None,
    tta: str | None = None,
    fast: bool = False,
    remove_small: float | None = None,
    series: str | int | None = None,
    volume: int | None = None,
    repair: Sequence[str] | None = None,
    allow_quality_loss: str | float | None = None,
    variants: str | os.PathLike[str] | None = None,
    threads: int | None = None,
) -> Segmentation:
    """Segment one image, as ``imaging infer`` does, in a process of its own.

    Parameters
    ----------
    image
        The path of a NIfTI file, of a folder or zip with one DICOM series (or see ``series``), the address of a
        DICOMweb study, or an image of nibabel.
    model
        A model folder of ``imaging train``, of nnU-Net v2 or a MONAI bundle; or the name of a model that is installed
        with this program: ``"hippocampus"``.
    memory
        Ceiling of the segmentation's process tree: bytes, or text such as ``"800MiB"``, ``"50%"`` or ``"auto"``, most
        of what is free. An image that this process holds is not part of it.
    roi_subset
        Names of the classes to label; all by default.
    tile
        Voxels of a tile along each axis; by default those of training.
    overlap
        Share of a tile that the next one covers again.
    batch
        Tiles at a time; by default the plan's choice.
    engine, precision
        ``"openvino"``, ``"onnxruntime"``, ``"torch"``; ``"float32"``, ``"bf16"``, ``"int8"``.
    tta
        ``"mirror"``: average over mirror images.
    fast
        Segment at half the model's resolution.
    remove_small
        Make connected components of less than so many millilitres background.
    series
        Number or UID of the series to take, where a DICOM folder has several.
    volume
        Number, from 1, of the volume in a series or file of several.
    repair
        What to repair instead of refusing: ``"tilt"`` and ``"spacing"`` of a DICOM series, a contradictory NIfTI
        ``"header"``.
    allow_quality_loss
        Where the model does not fit, a variant that ``imaging compress --measure`` found to lose no more of its mean
        Dice takes its place: ``"0.5%"``, or a number of percent. None by default. ``record["plan"]["knobs"]`` says
        which was taken.
    variants
        The folder of the model's variants; by default ``variants`` in its own folder.
    threads
        CPU threads, all by default.

    Returns
    -------
    Segmentation

    Raises
    ------
    BadInput
        If the image or the model cannot be used; the message says why.
    UsageError
        If an argument is wrong, or there is more than one study.
    DoesNotFit
        If no setting fits; ``smallest_feasible_bytes`` is the ceiling that would do.

    Examples
    --------
    >>> import nibabel, numpy
    >>> from apps.imaging import segment
    >>> voxels = numpy.random.default_rng(0).normal(100, 10, (40, 48, 36)).astype("float32")
    >>> found = segment(nibabel.Nifti1Image(voxels, numpy.eye(4)), "hippocampus", memory="400MiB")
    >>> found.labels.shape, found.names
    ((40, 48, 36), {0: 'background', 1: 'Anterior', 2: 'Posterior'})
    """
    edges = None if tile is None else [tile] if isinstance(tile, int) else list(tile)
    named = {"roi-subset": roi_subset, "tile": edges, "overlap": overlap, "batch": batch, "engine": engine}
    named |= {"precision": precision, "tta": tta, "remove-small": remove_small, "series": series, "repair": repair}
    named |= {"volume": volume, "allow-quality-loss": allow_quality_loss, "threads": threads}
    named |= {"variants": None if variants is None else os.fspath(variants)}
    options = [f"--{name}={_text(choice)}" for name, choice in named.items() if choice is not None]
    options += ["--fast"] if fast else []
    command.budget_of(memory)
    with Scratch() as scratch:
        source = _source(image, scratch)
        output = scratch / "out"
        record = command.run(
            "apps.imaging",
            ["infer", f"--model={os.fspath(model)}", "-o", output, *options, source],
            memory=memory,
            name="imaging infer",
            shown={str(scratch / IMAGE): "image"},
        )
        from apps.imaging.inference.studies import outputs_of

        studies = record["results"]["studies"]
        if len(studies) != 1:
            raise UsageError(f"{source}: holds {len(studies)} studies; segment takes one")
        if len(outputs_of(output)[studies[0]["study"]]) != 1:
            raise UsageError(f"{model}: its classes overlap; imaging infer writes a file of each")
        labels, header = _mapped(output / outputs_of(output)[studies[0]["study"]][0], scratch)
    return Segmentation(labels, header.get_best_affine(), _names(model, memory, roi_subset), header, record)


IMAGE = "image.nii"
"""In scratch, an image that this process holds."""


def _text(choice: object) -> str:
    """A value as the command line takes it: lists with commas."""
    if isinstance(choice, Sequence) and not isinstance(choice, str):
        return ",".join(map(str, choice))
    return str(choice)


def _source(image: Any, scratch: Path) -> Path | str:
    """Return what the command reads: the path or address itself, or a file with the image.

    Raises
    ------
    BadInput
        If it is neither.
    """
    if isinstance(image, str) and image.startswith(("http://", "https://")):
        return image
    if isinstance(image, (str, os.PathLike)):
        path = Path(os.fspath(image))
        _require_one(path)
        return path
    import nibabel as nib
    from nibabel.filebasedimages import ImageFileError
    from nibabel.spatialimages import HeaderDataError, SpatialImage

    if not isinstance(image, SpatialImage) or image.affine is None:
        raise BadInput(
            f"image: a {type(image).__name__} has no affine; pass nibabel.Nifti1Image(array, affine), or a path",
            public="no image",
        )
    if (unread := _unread(image)) is not None:
        return unread
    try:
        if not isinstance(image, (nib.Nifti1Image, nib.Nifti1Pair)):
            image = nib.Nifti1Image.from_image(image)
        nib.save(image, scratch / IMAGE)
    except (ImageFileError, HeaderDataError, ValueError, TypeError) as error:
        raise BadInput(f"image: nibabel cannot write it as NIfTI ({error})", public="no NIfTI image") from None
    return scratch / IMAGE


def _require_one(path: Path) -> None:
    """Refuse a folder of several studies before all of them are segmented; the command refuses all else."""
    if path.is_dir():
        from apps.imaging.inference.discovery import find_studies

        places, _ = find_studies([path])
        if len(places) > 1 and (count := sum(_is_volume(Path(place.input)) for place in places)) > 1:
            raise UsageError(f"{path}: holds {count} studies; segment takes one")


def _is_volume(path: Path) -> bool:
    """False for what a search leaves out: a localizer, a report, one slice."""
    from apps.imaging.dicom.defects import is_no_volume
    from apps.imaging.inference.discovery import open_volume

    try:
        open_volume(path)
    except BadInput as error:
        return not is_no_volume(error)
    return True


def _unread(image: Any) -> Path | None:
    """The file of an image that nibabel has opened and nobody has changed; it need not be read here."""
    import nibabel as nib
    import numpy as np

    name = image.get_filename()
    if not name or image.in_memory or not nib.is_proxy(image.dataobj) or not name.endswith((".nii", ".nii.gz")):
        return None
    stored: Any = nib.load(name)
    same = stored.header == image.header and np.array_equal(stored.affine, image.affine)
    return Path(name) if same else None


def _mapped(path: Path, scratch: Path) -> "tuple[npt.NDArray[np.unsignedinteger], Any]":
    """The voxels of a label file, mapped, and its header."""
    import nibabel as nib
    import numpy as np

    plain = scratch / "labels.nii"
    with gzip.open(path) as packed, plain.open("wb") as stream:
        shutil.copyfileobj(packed, stream, COPY_BYTES)
    image: Any = nib.load(plain)
    header = image.header
    voxels = np.memmap(plain, header.get_data_dtype(), "r", image.dataobj.offset, header.get_data_shape(), "F")
    return voxels, header


def _names(model: str | os.PathLike[str], memory: str | int, roi_subset: Sequence[str] | None) -> dict[int, str]:
    """The classes that are labelled, by value. The command has read the model, and converted one from elsewhere."""
    from apps.imaging.importers.convert import converted_model
    from apps.imaging.models.model_folder import read_model

    directory = model_path(os.fspath(model))
    if not (directory / MANIFEST).is_file():
        directory = converted_model(directory, command.budget_of(memory))
    labels = read_model(directory).labels
    return {one.value: one.name for one in labels if roi_subset is None or not one.value or one.name in roi_subset}
