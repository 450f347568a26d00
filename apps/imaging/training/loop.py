"""Train a segmentation network: load, step, validate, write the model. ``imaging train`` from top to bottom."""

import math
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from apps.imaging.models.networks import registry
from apps.imaging.training.dataset import LabelledCase, load_case
from apps.imaging.training.patch_sampling import Sampler, Volumes
from apps.imaging.training.phases import EXPORT, FREE_HEAP, LOAD, TRAIN, VALIDATE
from apps.imaging.training.recipe import OVERLAP, Job, Recipe, make_step
from apps.imaging.volumes.volume import Shape
from common.cli.session import Session
from common.errors import BadInput, UsageError
from common.memory.plan.plan import Plan
from common.memory.process import glibc
from common.memory.process.bounded_heap import SLACK, BoundedHeap
from common.memory.process.cuda import HOST
from common.tiling.blend import BoundedBlend
from common.tiling.grid import importance
from common.training import checkpoint as checkpointing
from common.training.amp import precision
from common.training.oom_retry import repeated

if TYPE_CHECKING:
    import torch

WORK = ".training"
"""Folder in the model folder that holds what an unfinished training needs; removed at the end."""
CHECKPOINT_SECONDS = 30.0
VALIDATIONS = 8
"""How often held-out cases are looked at on the way."""

Dice = npt.NDArray[np.float64]


def run(job: Job, session: Session) -> dict[str, Any]:
    """Train, and write the model folder; returns the record's ``results``."""
    import torch

    torch.set_num_threads(session.threads)
    torch.manual_seed(job.recipe.seed)
    work = job.output / WORK
    caches = (work / "training.cache", work / "held-out.cache") if session.plan["cache"] == "disk" else (None, None)
    with session.phase(LOAD):
        training = load_volumes(job, job.training, caches[0], session)
        held_out = load_volumes(job, job.held_out, caches[1], session)
    with session.deferred_signals():
        network, steps = _train(job, session, training, held_out)
    glibc.trim()
    return _finish(job, session, network, held_out, steps)


def load_volumes(job: Job, cases: Sequence[LabelledCase], file: Path | None, session: Session) -> Volumes:
    """Prepare cases and keep them in memory or in ``file``.

    Raises
    ------
    BadInput
        The first case that cannot be used; with ``skip_bad``, only if none is left.
    """
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.unlink(missing_ok=True)
    volumes = Volumes(file)
    with session.progress(total=len(cases), unit="case", label="loading") as bar:
        for case in cases:
            try:
                volumes.add(*load_case(case, job.dataset, job.operations))
            except BadInput as error:
                if not job.skip_bad:
                    if file is not None:
                        file.unlink()
                    raise
                session.say(f"skipped: {error}")
            bar.update()
    if cases and not len(volumes):
        raise BadInput("no usable case")
    return volumes


def bounded_heap(network: "torch.nn.Module", plan: Plan) -> AbstractContextManager[object]:
    """Where the step's tensors live, with the room that the plan has for free pages."""
    free = sum(term.bytes for term in plan.footprint.terms if term.name == FREE_HEAP)
    return BoundedHeap(network, slack=free - SLACK) if free else nullcontext()


def _train(job: Job, session: Session, training: Volumes, held_out: Volumes) -> tuple["torch.nn.Module", int]:
    recipe, plan = job.recipe, session.plan
    where = session.device.name if session.device else HOST
    network, optimizer, step = make_step(
        recipe,
        micro_batch=plan["micro_batch"],
        amp=plan["amp"],
        checkpoint=plan["checkpoint"],
        step_in_backward=plan["step_in_backward"] == "on",
        device=where,
    )
    step.on_shrink = lambda size: session.say(f"an allocation failed: going on with micro-batches of {size}")
    last = job.output / WORK / checkpointing.LAST
    settings = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(recipe).items()}
    start, before = 0, 0.0
    if state := _continued(last, settings, job.resume, session):
        checkpointing.restore(last, network=network, optimizer=optimizer)
        start, before = state["step"], state["seconds"]
        step.load_state_dict(state["scaler"])
        session.say(f"continuing after step {start}")

    sampler = Sampler(training, recipe.patch, recipe.batch, recipe.seed, recipe.mirror)
    classes = len(job.dataset.labels)
    done, began, saved, dice = start, time.monotonic() - before, time.monotonic(), math.nan

    def progress() -> float:
        return done / recipe.steps if recipe.steps else (time.monotonic() - began) / float(recipe.seconds or 1)

    def save() -> None:
        glibc.trim()  # what the heap keeps free between the step's tensors is not the checkpoint's
        elapsed = time.monotonic() - began
        state = {"step": done, "seconds": elapsed, "settings": settings, "scaler": step.state_dict()}
        checkpointing.save(last, network=network, optimizer=optimizer, state=state)

    network.train()
    next_validation = (math.floor(progress() * VALIDATIONS) + 1) / VALIDATIONS
    heap = bounded_heap(network, plan) if session.device is None else nullcontext()
    with heap, session.progress(total=recipe.steps, unit="step", label="training") as bar:
        bar.update(start)
        while progress() < 1:
            with session.phase(TRAIN):
                while progress() < min(1, next_validation):
                    for group in optimizer.param_groups:
                        group["lr"] = recipe.rate(progress())
                    loss = float(step([tensor.to(where) for tensor in sampler(done)]))
                    if not math.isfinite(loss):
                        raise ArithmeticError(f"the loss is {loss} at step {done}; try a smaller learning_rate")
                    done += 1
                    bar.update()
                    bar.set_postfix(loss=f"{loss:.3f}", dice=f"{dice:.3f}", refresh=False)
                    if session.stopping:
                        save()
                        raise KeyboardInterrupt
                    if time.monotonic() - saved > CHECKPOINT_SECONDS:
                        save()
                        saved = time.monotonic()
            next_validation += 1 / VALIDATIONS
            if progress() < 1 and len(held_out):
                glibc.trim()  # nor validation's
                with session.phase(VALIDATE):
                    dice = _on_the_way(network, held_out, recipe, classes, plan)
            save()
            saved = time.monotonic()
    return network, done


def _on_the_way(
    network: "torch.nn.Module", held_out: Volumes, recipe: Recipe, classes: int, plan: Mapping[str, Any]
) -> float:
    """Mean Dice of some held-out cases."""
    some = range(min(len(held_out), recipe.validation_cases))
    dice = repeated(lambda: validate(network, held_out, some, recipe.patch, classes, plan["amp"]))
    network.train()
    return float(np.nanmean(dice))


def _continued(last: Path, settings: Mapping[str, Any], resume: bool, session: Session) -> dict[str, Any] | None:
    """The checkpoint's state, if there is one and it is of the same training."""
    if not last.is_file():
        if resume:
            raise BadInput(f"{last.parent.parent}: nothing to resume")
        return None
    state = checkpointing.read_state(last)
    if state["settings"] == settings:
        return state
    differing = ", ".join(key for key, value in settings.items() if state["settings"].get(key) != value)
    if resume:
        raise UsageError(f"--resume: the checkpoint is of a training with other settings ({differing})")
    session.say(f"the checkpoint found is of a training with other settings ({differing}); starting anew")
    return None


def validate(
    network: "torch.nn.Module", volumes: Volumes, indices: Sequence[int], patch: Shape, classes: int, amp: str
) -> Dice:
    """Dice of overlapping tiles blended as in inference.

    Returns
    -------
    array (len(indices), classes - 1)
        NaN where neither reference nor prediction has the class.
    """
    import torch

    network.eval()
    where = next(network.parameters()).device
    weights = importance(patch)
    overlap, sizes = np.zeros((len(indices), classes)), np.zeros((len(indices), classes))
    for row, index in enumerate(indices):
        shape = volumes.shapes[index]
        blend = BoundedBlend(shape, patch, OVERLAP, classes, weights)
        for number, position in enumerate(blend.grid):
            tile = torch.from_numpy(_tile(volumes, index, position, blend))[None, None].to(where)
            with torch.inference_mode(), torch.autocast(where.type, precision(amp), enabled=amp != "off"):
                logits = network(tile).float()[0].cpu().numpy()
            for block in blend.add(number, logits):
                _, truth = volumes.read(index, block.low, block.high)
                guess = block.values.argmax(0)
                overlap[row] += np.bincount(truth[guess == truth], minlength=classes)
                sizes[row] += np.bincount(guess.ravel(), minlength=classes) + np.bincount(
                    truth.ravel(), minlength=classes
                )
    with np.errstate(invalid="ignore"):
        return (2 * overlap / sizes)[:, 1:]


def _tile(volumes: Volumes, index: int, position: Shape, blend: BoundedBlend) -> npt.NDArray[np.float32]:
    """One tile of the padded volume; zeros, the mean, outside of it."""
    tile = np.zeros(blend.grid.tile, np.float32)
    corner = [place - before for place, before in zip(position, blend.grid.before, strict=True)]
    start = [max(0, low) for low in corner]
    stop = [min(size, low + edge) for size, low, edge in zip(volumes.shapes[index], corner, tile.shape, strict=True)]
    inside = tuple(slice(a - low, b - low) for a, b, low in zip(start, stop, corner, strict=True))
    tile[inside] = volumes.read(index, (start[0], start[1], start[2]), (stop[0], stop[1], stop[2]))[0]
    return tile


def _finish(job: Job, session: Session, network: "torch.nn.Module", held_out: Volumes, steps: int) -> dict[str, Any]:
    """Round the weights, measure them as they will be used, write the folder."""
    import shutil

    from apps.imaging.models.model_folder import labels_from_names, write_model
    from apps.imaging.models.onnx_export import export_onnx
    from apps.imaging.training.model_card import render
    from common import model_folder
    from common.engines.base import NETWORK

    recipe, dataset = job.recipe, job.dataset
    # A plain network again (no activation checkpointing), with the half-precision weights that are written.
    state = {name: tensor.half().cpu() for name, tensor in network.state_dict().items()}
    network = registry.build(recipe.network, recipe.arguments)
    network.load_state_dict({name: tensor.to(network.state_dict()[name].dtype) for name, tensor in state.items()})
    metrics: dict[str, Any] = {}
    if len(held_out):
        with session.phase(VALIDATE):
            every = range(len(held_out))
            dice = repeated(lambda: validate(network, held_out, every, recipe.patch, len(dataset.labels), "off"))
        names = list(dataset.labels.values())[1:]
        per_class = dict(zip(names, np.nanmean(dice, 0).round(4).tolist(), strict=True))
        metrics = {"mean_dice": round(float(np.nanmean(dice, 0).mean()), 4), "per_class": per_class, "cases": len(dice)}
    glibc.trim()
    with session.phase(EXPORT):
        draft = job.output / WORK / NETWORK
        step = registry.divisor(recipe.network, recipe.arguments)
        export_onnx(recipe.network, network, draft, tile=(2 * step, 2 * step, 2 * step))
        head = registry.NETWORKS[recipe.network].head
        labels = [
            type(label)(value, label.name, label.code, label.color)
            for value, label in zip(dataset.labels, labels_from_names(list(dataset.labels.values())), strict=True)
        ]
        model_folder.unseal(job.output)
        draft.replace(job.output / NETWORK)
        write_model(
            job.output,
            network=recipe.network,
            arguments=recipe.arguments,
            state={name: tensor.numpy() for name, tensor in state.items()},
            channels=dataset.channels,
            spacing=dataset.spacing,
            orientation="RAS",
            intensity=job.operations,
            patch=recipe.patch,
            head={"weight": f"{head}.weight", "bias": f"{head}.bias"} if head else None,
            labels=labels,
            card=render(job, session, metrics, steps),
            extra={"mirror": job.recipe.mirror, "training": {"steps": steps, "metrics": metrics}},
        )
    shutil.rmtree(job.output / WORK)
    return {"metrics": metrics, "steps": steps, "model": "."}
