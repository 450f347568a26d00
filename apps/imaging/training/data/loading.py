"""Prepare the cases of a training, each once: in memory, in a file, or as compressed chunks that a later run finds."""

import shutil
from collections.abc import Sequence

from apps.imaging.training.data import chunks
from apps.imaging.training.data.dataset import LabelledCase
from apps.imaging.training.data.label_maps import add_label_map
from apps.imaging.training.data.patch_sampling import Volumes
from apps.imaging.training.data.prepared import load_case
from apps.imaging.training.request import TrainingData
from common.cli.session import Session
from common.errors import BadInput, lacks_room


def load_volumes(
    data: TrainingData,
    cases: Sequence[LabelledCase],
    volumes: Volumes,
    session: Session,
    *,
    skip_bad: bool,
    drawn: bool = True,
) -> Volumes:
    """Prepare cases.

    Parameters
    ----------
    volumes
        Gets them, and is returned.
    drawn
        True for cases from which patches are drawn: label maps are then kept without an image.

    Raises
    ------
    BadInput
        The first case that cannot be used; with ``skip_bad``, only if none is left.
    OSError
        The disk is full; what was prepared is removed.
    """
    _make_room(volumes)
    synthesised = data.dataset.table is not None and not drawn
    before = again = 0
    with session.progress(total=len(cases), unit="case", label="loading") as bar:
        for number, case in enumerate(cases):
            imaged = number if synthesised else None
            try:
                key = _key(volumes, case, data, imaged)
                found = volumes.reuse(key)
                if not found:
                    _load(volumes, case, data, number=imaged, key=key)
                before, again = before + (found is True), again + (found is None)
            except BadInput as error:
                if not skip_bad:
                    if volumes.file is not None:
                        volumes.file.unlink(missing_ok=True)
                    raise
                session.say(f"skipped: {error}")
            except OSError as error:
                if lacks_room(error):
                    _remove(volumes)
                raise
            bar.update()
    if before or again:
        changed = f"; {again} of another version, or damaged, were prepared again" if again else ""
        session.say(f"{before} of {len(cases)} cases had been prepared before{changed}")
    if cases and not len(volumes):
        raise BadInput("no usable case")
    return volumes


def _key(volumes: Volumes, case: LabelledCase, data: TrainingData, number: int | None) -> str:
    """Digest by which a case is found again; empty where no later run finds any."""
    if volumes.folder is None:
        return ""
    return chunks.case_key(case, data.dataset, [volumes.store, data.operations, number])


def _load(volumes: Volumes, case: LabelledCase, data: TrainingData, *, number: int | None, key: str) -> None:
    """Prepare one case; ``number`` and ``key`` as in ``add_label_map``."""
    if data.dataset.table is not None:
        add_label_map(volumes, case, data.dataset, number=number, key=key)
    else:
        volumes.add(*load_case(case, data.dataset, data.operations), key=key)


def _make_room(volumes: Volumes) -> None:
    """Remove an earlier run's file, to which cases would be appended; compressed cases are whole, and stay."""
    if volumes.file is not None:
        volumes.file.parent.mkdir(parents=True, exist_ok=True)
        volumes.file.unlink(missing_ok=True)
    if volumes.folder is not None:
        volumes.folder.mkdir(parents=True, exist_ok=True)


def _remove(volumes: Volumes) -> None:
    if volumes.file is not None:
        volumes.file.unlink(missing_ok=True)
    if volumes.folder is not None:
        shutil.rmtree(volumes.folder, ignore_errors=True)
