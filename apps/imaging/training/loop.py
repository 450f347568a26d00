"""Run ``imaging train``: load the cases, train, validate, write the model folder."""

import math
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from apps.imaging.models.networks import registry
from apps.imaging.training.dataset import LabelledCase
from apps.imaging.training.losses import IGNORED
from apps.imaging.training.patch_sampling import Sampler, Volumes
from apps.imaging.training.phases import EXPORT, FREE_HEAP, LOAD, TRAIN, VALIDATE
from apps.imaging.training.prepared import load_case
from apps.imaging.training.recipe import OVERLAP, Recipe, make_step
from apps.imaging.training.request import TrainingData, TrainRequest
from apps.imaging.training.starting_model import load_start
from apps.imaging.volumes.volume import Shape
from common.cli.session import Session
from common.errors import BadInput
from common.memory.plan.plan import Plan
from common.memory.process import glibc
from common.memory.process.bounded_heap import SLACK, BoundedHeap
from common.memory.process.cuda import HOST
from common.tiling.blend import BoundedBlend
from common.tiling.grid import importance
from common.training import checkpoint
from common.training.amp import precision
from common.training.oom_retry import repeated
from common.training.resume import resume

if TYPE_CHECKING:
    import torch

WORK = ".training"
"""Folder in the model folder that holds what an unfinished training needs; removed at the end."""
CHECKPOINT_SECONDS = 30.0
VALIDATIONS = 8
"""Number of validations on held-out cases during the training."""

Dice = npt.NDArray[np.float64]


def run(request: TrainRequest, session: Session) -> dict[str, Any]:
    """Train, and write the model folder.

    Returns
    -------
    dict
        The record's ``results``: ``metrics``, ``steps``, ``model``.

    Raises
    ------
    ArithmeticError
        If the loss is not finite.
    KeyboardInterrupt
        After a checkpoint, if the session is stopping.
    """
    import torch

    options, data = request.options, request.data
    torch.set_num_threads(session.threads)
    torch.manual_seed(request.recipe.seed)
    work = options.output / WORK
    caches = (work / "training.cache", work / "held-out.cache") if session.plan["cache"] == "disk" else (None, None)
    with session.phase(LOAD):
        training, held_out = (
            load_volumes(data, cases, file, session, skip_bad=options.skip_bad)
            for cases, file in zip((data.training, data.held_out), caches, strict=True)
        )
    with session.deferred_signals():
        network, steps = _train(request, session, training, held_out)
    glibc.trim()
    return _write(request, session, network, held_out, steps)


def load_volumes(
    data: TrainingData, cases: Sequence[LabelledCase], file: Path | None, session: Session, *, skip_bad: bool
) -> Volumes:
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
                volumes.add(*load_case(case, data.dataset, data.operations))
            except BadInput as error:
                if not skip_bad:
                    if file is not None:
                        file.unlink()
                    raise
                session.say(f"skipped: {error}")
            bar.update()
    if cases and not len(volumes):
        raise BadInput("no usable case")
    return volumes


def bounded_heap(network: "torch.nn.Module", plan: Plan) -> AbstractContextManager[object]:
    """Context in which the step's tensors live, with the room that the plan has for free pages."""
    free = sum(term.bytes for term in plan.footprint.terms if term.name == FREE_HEAP)
    return BoundedHeap(network, slack=free - SLACK) if free else nullcontext()


def _train(
    request: TrainRequest, session: Session, training: Volumes, held_out: Volumes
) -> tuple["torch.nn.Module", int]:
    """The loop; returns the network and the number of steps."""
    recipe, plan, output = request.recipe, session.plan, request.options.output
    device = session.device.name if session.device else HOST
    network, optimizer, step = make_step(
        recipe,
        micro_batch=plan["micro_batch"],
        amp=plan["amp"],
        checkpoint=plan["checkpoint"],
        step_in_backward=plan["step_in_backward"] == "on",
        device=device,
    )
    step.on_shrink = lambda size: session.say(f"an allocation failed: continuing with micro-batches of {size}")
    last = output / WORK / checkpoint.LAST

    def load(path: Path) -> dict[str, Any]:
        checkpoint.restore(path, network=network, optimizer=optimizer)
        state = checkpoint.read_state(path)
        step.load_state_dict(state["scaler"])
        return state

    state = resume(
        last,
        request.settings,
        read_settings=lambda path: checkpoint.read_state(path)["settings"],
        load=load,
        progress=lambda state: f"after step {state['step']}",
        output=output,
        required=request.options.resume,
        say=session.say,
    )
    if state is None and request.options.init is not None:
        left = load_start(network, request.options.init)
        names = f"; new, because the classes are: {', '.join(left)}" if left else ""
        session.say(f"starting from the weights of {request.options.init.name}{names}")
    start, before = (state["step"], state["seconds"]) if state else (0, 0.0)
    sampler = Sampler(training, recipe.patch, recipe.batch, recipe.seed, recipe.mirror)
    classes = len(request.data.dataset.labels)
    done, began, saved, dice = start, time.monotonic() - before, time.monotonic(), math.nan

    def progress() -> float:
        return done / recipe.steps if recipe.steps else (time.monotonic() - began) / float(recipe.seconds or 1)

    def save() -> None:
        glibc.trim()  # what the heap keeps free between the step's tensors is not the checkpoint's
        elapsed = time.monotonic() - began
        state = {"step": done, "seconds": elapsed, "settings": request.settings, "scaler": step.state_dict()}
        checkpoint.save(last, network=network, optimizer=optimizer, state=state)

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
                    loss = float(step([tensor.to(device) for tensor in sampler(done)]))
                    if not math.isfinite(loss):
                        raise ArithmeticError(f"the loss is {loss} at step {done}; try a smaller learning_rate")
                    done += 1
                    bar.update()
                    validated = {} if math.isnan(dice) else {"dice": f"{dice:.3f}"}
                    bar.set_postfix(loss=f"{loss:.3f}", **validated, refresh=False)
                    if session.stopping:
                        save()
                        raise KeyboardInterrupt
                    if time.monotonic() - saved > CHECKPOINT_SECONDS:
                        save()
                        saved = time.monotonic()
            next_validation += 1 / VALIDATIONS
            if progress() < 1 and len(held_out) and recipe.validation_cases:
                glibc.trim()  # nor validation's
                with session.phase(VALIDATE):
                    dice = _validate_some(network, held_out, recipe, classes, plan["amp"])
            save()
            saved = time.monotonic()
    return network, done


def _validate_some(network: "torch.nn.Module", held_out: Volumes, recipe: Recipe, classes: int, amp: str) -> float:
    """Mean Dice of as many held-out cases as the recipe says."""
    some = range(min(len(held_out), recipe.validation_cases))
    dice = repeated(lambda: validate(network, held_out, some, recipe.patch, classes, amp))
    network.train()
    return float(np.nanmean(dice))


def validate(
    network: "torch.nn.Module", volumes: Volumes, indices: Sequence[int], patch: Shape, classes: int, amp: str
) -> Dice:
    """Dice of cases whose overlapping tiles are blended as in inference.

    Parameters
    ----------
    volumes, indices
        The cases, and which of them.
    patch
        Voxels of a tile.
    amp
        Precision of the network: ``off``, ``bf16`` or ``fp16``.

    Returns
    -------
    array (len(indices), classes - 1)
        NaN where neither reference nor prediction has the class.
    """
    import torch

    network.eval()
    device = next(network.parameters()).device
    weights = importance(patch)
    overlap, sizes = np.zeros((len(indices), classes)), np.zeros((len(indices), classes))
    for row, index in enumerate(indices):
        shape = volumes.shapes[index]
        blend = BoundedBlend(shape, patch, OVERLAP, classes, weights)
        for number, position in enumerate(blend.grid):
            tile = torch.from_numpy(_tile(volumes, index, position, blend))[None].to(device)
            with torch.inference_mode(), torch.autocast(device.type, precision(amp), enabled=amp != "off"):
                logits = network(tile).float()[0].cpu().numpy()
            for block in blend.add(number, logits):
                _, truth = volumes.read(index, block.low, block.high)
                counted = truth != IGNORED
                truth, guess = truth[counted], block.values.argmax(0)[counted]
                overlap[row] += np.bincount(truth[guess == truth], minlength=classes)
                sizes[row] += np.bincount(guess, minlength=classes) + np.bincount(truth, minlength=classes)
    with np.errstate(invalid="ignore"):
        return (2 * overlap / sizes)[:, 1:]


def _tile(volumes: Volumes, index: int, position: Shape, blend: BoundedBlend) -> npt.NDArray[np.float32]:
    """One tile (channels, x, y, z) of the padded volume; outside of it zeros, which are the mean."""
    tile = np.zeros((volumes.channels, *blend.grid.tile), np.float32)
    corner = [first - before for first, before in zip(position, blend.grid.before, strict=True)]
    start = [max(0, low) for low in corner]
    stop = [
        min(size, low + edge) for size, low, edge in zip(volumes.shapes[index], corner, blend.grid.tile, strict=True)
    ]
    inside = tuple(slice(a - low, b - low) for a, b, low in zip(start, stop, corner, strict=True))
    tile[:, *inside] = volumes.read(index, (start[0], start[1], start[2]), (stop[0], stop[1], stop[2]))[0]
    return tile


def _write(
    request: TrainRequest, session: Session, network: "torch.nn.Module", held_out: Volumes, steps: int
) -> dict[str, Any]:
    """Round the weights to half precision, validate them as they will be used, write the model folder."""
    import shutil

    from apps.imaging.models.model_folder import labels_from_names, write_model
    from apps.imaging.models.onnx_export import export_onnx
    from apps.imaging.training.model_card import render
    from common import model_folder
    from common.engines.base import NETWORK

    recipe, dataset, output = request.recipe, request.data.dataset, request.options.output
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
        draft = output / WORK / NETWORK
        step = registry.divisor(recipe.network, recipe.arguments)
        export_onnx(recipe.network, network, draft, tile=(2 * step, 2 * step, 2 * step))
        head = registry.NETWORKS[recipe.network].head
        labels = [
            type(label)(value, label.name, label.code, label.color)
            for value, label in zip(dataset.labels, labels_from_names(list(dataset.labels.values())), strict=True)
        ]
        others = [[dict(one) for one in operations] for operations in request.data.operations[1:]]
        further = {"further_intensity": others} if others else {}
        model_folder.unseal(output)
        draft.replace(output / NETWORK)
        write_model(
            output,
            network=recipe.network,
            arguments=recipe.arguments,
            state={name: tensor.numpy() for name, tensor in state.items()},
            channels=dataset.channels,
            spacing=dataset.spacing,
            orientation="RAS",
            intensity=request.data.operations[0],
            patch=recipe.patch,
            head={"weight": f"{head}.weight", "bias": f"{head}.bias"} if head else None,
            labels=labels,
            card=render(request, session.plan, ceiling=session.budget.host_bytes, metrics=metrics, steps=steps),
            extra={"mirror": recipe.mirror, "training": {"steps": steps, "metrics": metrics}, **further},
        )
    shutil.rmtree(output / WORK)
    return {"metrics": metrics, "steps": steps, "model": "."}
