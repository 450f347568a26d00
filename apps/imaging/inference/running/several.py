"""Run ``imaging infer`` with several networks: one after the other over each image, into one label map on disk."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from apps.imaging.inference.focus import Box, Unsure
from apps.imaging.inference.labeling.planes import label_dtype
from apps.imaging.inference.network_grid import NetworkGrid
from apps.imaging.inference.open_network import OpenNetwork, announce
from apps.imaging.inference.outputs import Outputs
from apps.imaging.inference.phases import WRITE
from apps.imaging.inference.pipeline import finish, study_planes, write
from apps.imaging.inference.request import InferRequest
from apps.imaging.inference.running.label_file import LabelFile, label_file
from apps.imaging.inference.running.locating import locate
from apps.imaging.inference.running.merged_request import MergedRequest
from apps.imaging.inference.studies import Study, each_study
from common.cli.session import Session
from common.errors import BadInput
from common.memory.process import glibc


def run(request: MergedRequest, session: Session) -> dict[str, Any]:
    """Segment the studies with all networks; returns and raises as ``each_study``."""
    announce(request.members[0], session)

    def segment(stem: Path, study: Study, grid: NetworkGrid, uids: str, key: str) -> None:
        _segment(request, session, stem, study, uids, key)

    return each_study(request, session, segment)


def _segment(request: MergedRequest, session: Session, stem: Path, study: Study, uids: str, key: str) -> None:
    """Segment one study, as ``Segment``. A network whose labels an interrupted run has completed is not run again."""
    volume = request.inputs.grids[study.study].volume  # type: ignore[union-attr]  # the loop has raised errors
    merging = stem.with_name(f".{stem.name}.merging")
    boxes: dict[str, Box | str] = {}
    with label_file(merging, volume.shape, request.dtype, key) as merged:
        for number in range(merged.done, len(request.members)):
            _add(request, session, number, study, merged, merging, key, boxes)
        outputs = Outputs(request.outputs, stem.parent, stem.name, volume, request.described, uids, request.dtype)
        outputs.prepare(session)
        with session.phase(WRITE), outputs:
            write(outputs, merged.planes(), request.options.remove_small, request.inputs.scratch)
    finish(outputs, session)


def _add(
    request: MergedRequest,
    session: Session,
    number: int,
    study: Study,
    merged: LabelFile,
    merging: Path,
    key: str,
    boxes: dict[str, Box | str],
) -> None:
    """Run one model, after the first stage of a cascade, whose labels have a file of their own.

    ``boxes`` are what coarse passes found in this study, or why they are unsure, so that a coarse model that several
    share runs once.
    """
    member = request.members[number]
    table, label = request.tables[number], f"{study.study}, network {number + 1} of {len(request.members)}"
    previous = member.previous
    if previous is None:
        _run(member, session, study, merged, table, label, boxes=boxes)
        return
    labels = previous.model.model.labels
    kept, dtype = {one.value: one.value for one in labels if one.value}, label_dtype([one.value for one in labels])
    with label_file(merging.with_name(f"{merging.name}-stage"), merged.shape, dtype, f"{key} {number}") as stage:
        if not stage.done:
            _run(previous, session, study, stage, kept, f"{label}, first stage")
        _run(member, session, study, merged, table, label, stage=stage)


def _run(
    request: InferRequest,
    session: Session,
    study: Study,
    target: LabelFile,
    table: Mapping[int, int],
    label: str,
    *,
    stage: LabelFile | None = None,
    boxes: dict[str, Box | str] | None = None,
) -> None:
    """Run one network and add its classes to a file, by a table; nothing of it stays in memory.

    Where a coarse pass is unsure, the whole image is segmented: the same labels can be written again.
    """
    grid = _grid(request, study)
    if request.locator is not None:
        try:
            box = _box(request.locator, session, study, f"{label}, coarse", {} if boxes is None else boxes)
            _add_labels(request, session, target, table, label, grid, box=box)
            return
        except Unsure as why:
            session.say(f"{study.study}: the coarse pass is unsure: {why}; the whole image is segmented")
    _add_labels(request, session, target, table, label, grid, stage=stage)


def _box(request: InferRequest, session: Session, study: Study, label: str, boxes: dict[str, Box | str]) -> Box:
    """What a coarse pass finds; raises ``Unsure`` as ``locate``."""
    key = request.digest("")
    if key not in boxes:
        setting = request.own(dict(session.plan.knobs))
        try:
            boxes[key] = locate(request, session, setting, label, _grid(request, study), request.options.crop_margin)
        except Unsure as why:
            boxes[key] = str(why)  # the exception itself would keep the network
    found = boxes[key]
    if isinstance(found, str):
        raise Unsure(found)
    return found


def _grid(request: InferRequest, study: Study) -> NetworkGrid:
    grid = request.inputs.grids[study.study]
    if isinstance(grid, BadInput):
        raise grid
    return grid


def _add_labels(
    request: InferRequest,
    session: Session,
    target: LabelFile,
    table: Mapping[int, int],
    label: str,
    grid: NetworkGrid,
    *,
    stage: LabelFile | None = None,
    box: Box | None = None,
) -> None:
    setting = request.own(dict(session.plan.knobs))
    glibc.trim()
    network = OpenNetwork.of(request, session, setting)
    with study_planes(request, session, network, setting, label, grid, stage=stage, box=box) as planes:
        bits = request.model.model.inference.decision == "bits"
        target.add(planes, table, network.to_labels.dtype, bits=bits)
