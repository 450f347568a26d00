"""Where in an image the fine pass has to look: a coarse network over all of it, and a margin around what it finds."""

from contextlib import ExitStack
from typing import cast

import numpy as np

from apps.imaging.inference.components.filters import major_only
from apps.imaging.inference.focus import MINOR, Box, Found
from apps.imaging.inference.network_grid import NetworkGrid
from apps.imaging.inference.open_network import OpenNetwork
from apps.imaging.inference.phases import INFER, STATISTICS
from apps.imaging.inference.pipeline import finished_values
from apps.imaging.inference.reading import resolved, within_content
from apps.imaging.inference.request import InferRequest
from apps.imaging.volumes.volume import Shape, spacing
from common.cli.session import Session
from common.memory.plan.plan import Setting
from common.memory.process import glibc
from common.tiling.blend import Spilled


def locate(
    request: InferRequest, session: Session, setting: Setting, label: str, grid: NetworkGrid, margin: float
) -> Box:
    """Find the box of a study.

    Parameters
    ----------
    request, setting, grid
        Of the coarse network.
    label
        Name of the work for its progress.
    margin
        Millimetres around what is found.

    Returns
    -------
    Box
        In voxels of the file.

    Raises
    ------
    Unsure
        If the coarse pass found nothing, or nothing probable.
    """
    glibc.trim()
    model, scratch = request.model.model, request.inputs.scratch
    network = OpenNetwork.of(request, session, setting)
    with ExitStack() as stack:
        with session.phase(STATISTICS):
            inside, first = stack.enter_context(within_content(grid, model, scratch))
            operations = resolved(inside, model)
        stack.enter_context(session.phase(INFER))
        bar = stack.enter_context(session.progress(total=len(inside.tiles), unit="tile", label=label))
        found = Found(network.to_labels, inside)
        blocks = finished_values(
            inside,
            network.engine,
            operations,
            batch=int(setting["batch"]),
            spill=cast(Spilled, setting["spill"]),
            scratch=scratch,
            tick=bar.update,
        )
        box = found.box(major_only(found.planes(blocks), MINOR, scratch))
    low, high = inside.to_box(box.low, box.high)
    return widened(Box(low, high), first or (0, 0, 0), grid, margin)


def widened(box: Box, first: Shape, grid: NetworkGrid, margin: float) -> Box:
    """A box of a part of the file that begins at ``first``, in the file, with a margin as far as that reaches."""
    steps = [int(np.ceil(margin / edge)) for edge in spacing(grid.volume.affine)]
    low = [max(0, start + place - step) for start, place, step in zip(first, box.low, steps, strict=True)]
    ends = zip(first, box.high, steps, grid.volume.shape, strict=True)
    high = [min(size, start + place + step) for start, place, step, size in ends]
    return Box((low[0], low[1], low[2]), (high[0], high[1], high[2]))
