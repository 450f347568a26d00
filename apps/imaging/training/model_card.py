"""The model card that training writes: the model, its data, its training, its Dice and its limits."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from common import __version__

if TYPE_CHECKING:
    from apps.imaging.training.recipe import Recipe
    from apps.imaging.training.request import TrainRequest
    from common.memory.plan.plan import Plan


FALLING = {
    "cosine": "with a cosine to zero",
    "poly": "with a polynomial of power 0.9 to zero",
    "constant": "that does not fall",
}
"""Schedules in words."""


def render(request: "TrainRequest", plan: "Plan", *, ceiling: int, metrics: Mapping[str, Any], steps: int) -> str:
    """The card in Markdown.

    Parameters
    ----------
    ceiling
        Bytes that the training was allowed.
    metrics
        ``mean_dice``, ``per_class`` and ``cases``; empty if no case was held out.
    steps
        Optimiser steps that were done.
    """
    data, recipe = request.data, request.recipe
    start, teacher = request.options.init, request.options.distill
    dataset, about = data.dataset, data.dataset.about
    what = "cases" if dataset.table is None else "label maps, of which images were synthesised,"
    seen = "" if dataset.table is None else ", whose images are synthesised too"
    rows = [f"| {name} | {value:.4f} |" for name, value in metrics.get("per_class", {}).items()]
    dice = (
        [
            f"Mean over {metrics['cases']} held-out cases{seen} (every {recipe.fold[1]}th case, starting with number "
            f"{recipe.fold[0]}), none of them trained on; weights as shipped (half precision), computed in float32.",
            "",
            "| class | Dice |",
            "| --- | --- |",
            *rows,
            f"| mean | {metrics['mean_dice']:.4f} |",
        ]
        if metrics and recipe.fold
        else ["No case was held out: there is no measurement of this model."]
    )
    classes = ", ".join(f"{value} {name}" for value, name in dataset.labels.items())
    return "\n".join(
        [
            f"# {about.get('name', 'A segmentation model')}",
            "",
            "For research only. Not a medical device; not for diagnosis or treatment.",
            "",
            "## Model",
            f"- Network: {recipe.network} {dict(recipe.arguments)}",
            f"- Input: {', '.join(dataset.channels)}, {'x'.join(f'{size:g}' for size in dataset.spacing)} mm, RAS; "
            f"intensity {'; '.join(str(list(one)) for one in data.operations)}",
            f"- Output: {classes}",
            f"- Patch: {'x'.join(map(str, recipe.patch))} voxels",
            f"- Started from: {start.name if start else 'random weights'}",
            *([f"- Soft labels: of {teacher.name}"] if teacher else []),
            "",
            "## Data",
            f"- {about.get('name', 'a data set')}: {len(data.training)} {what} trained on, "
            f"{len(data.held_out)} held out",
            f"- Licence: {about.get('licence', 'not stated by the data set')}",
            f"- Reference: {about.get('reference', 'not stated by the data set')}",
            "",
            "## Dice",
            *dice,
            "",
            "## How it was made",
            f"peakline {__version__}, under a ceiling of {ceiling} bytes "
            f"({', '.join(f'{knob}={value}' for knob, value in plan.knobs)}):",
            "",
            f"    {request.options.command}",
            "",
            f"{steps} steps of {recipe.batch} patches, {recipe.optimizer}, learning rate {recipe.learning_rate:g} "
            f"{FALLING[recipe.schedule]}, weight decay {recipe.weight_decay:g}, seed {recipe.seed}. "
            f"The weights are {_kept(recipe)}.",
            *(["Coarser levels of the decoder were supervised too."] if recipe.deep_supervision == "on" else []),
            "",
        ]
    )


def _kept(recipe: "Recipe") -> str:
    """Which weights were written."""
    average = f"the moving average (decay {recipe.ema:g}) of those " if recipe.ema else "those "
    return average + ("of the best validation" if recipe.keep == "best" else "of the last step")
