"""Models of other programs in a few lines, by what their files say; weights are not read."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from apps.imaging.importers import monai_bundle, nnunet


def foreign_lines(directory: Path) -> list[str] | None:
    """Lines about an nnU-Net model or a MONAI bundle for ``imaging inspect``; ``None`` for any other folder.

    Raises
    ------
    BadInput
        If it is one that is not read, with all that keeps it from running.
    """
    if nnunet.is_nnunet(directory):
        plan = nnunet.read_plan(directory)
        folds = [path.parent.name for path in nnunet.checkpoints(directory, nnunet.Weights())]
        labels = [(value, name) for name, value in plan.labels.items()]
        return _lines(f"nnU-Net v2, {plan.configuration}, {', '.join(folds)}", plan, plan.patch, labels)
    if monai_bundle.is_bundle(directory):
        bundle = monai_bundle.read_plan(directory)
        labels = list(zip(bundle.values, bundle.labels, strict=True))
        return _lines("MONAI bundle", bundle, bundle.inferer.patch or (), labels)
    return None


def _lines(kind: str, plan: Any, patch: Sequence[int], labels: Sequence[tuple[int, str]]) -> list[str]:
    edges = f"{'x'.join(f'{size:g}' for size in plan.spacing)} mm" if all(plan.spacing) else "the image's own spacing"
    tile = f"{'x'.join(map(str, patch))} voxels" if patch else "whole images"
    return [
        f"kind        {kind}: {plan.network}",
        f"channels    {', '.join(plan.channels)}",
        f"labels      {', '.join(f'{value} {name}' for value, name in labels)}",
        f"patch       {tile} of {edges}, {plan.orientation}",
        f"intensity   {', '.join(' '.join(str(value) for value in one.values()) for one in plan.intensity) or 'none'}",
    ]
