"""Run ``imaging train``: load the cases, train, validate, write the model folder."""

import math
import shutil
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from apps.imaging.models.networks import registry
from apps.imaging.training.data.loading import load_volumes
from apps.imaging.training.data.patch_sampling import Sampler, Volumes
from apps.imaging.training.data.synthetic_patches import SynthesisSampler
from apps.imaging.training.journal import VALIDATIONS, Journal
from apps.imaging.training.phases import EXPORT, FREE_HEAP, LOAD, SHARED, STATES, TRAIN, VALIDATE
from apps.imaging.training.recipe import make_step
from apps.imaging.training.request import TrainRequest
from apps.imaging.training.starting_model import load_start, load_teacher
from apps.imaging.training.states import SharedStates, States
from apps.imaging.training.tuning.trial import RUNGS, TrialCourse
from apps.imaging.training.validation import mean_dice, validate
from common.cli.session import Session
from common.memory.plan.plan import Plan
from common.memory.process import glibc
from common.memory.process.bounded_heap import SLACK, BoundedHeap
from common.memory.process.cuda import HOST
from common.search.trials import TrialStopped
from common.training import checkpoint
from common.training.distributed.group import LostRank
from common.training.oom_retry import repeated
from common.training.resume import resume

if TYPE_CHECKING:
    import torch

WORK = ".training"
"""Folder in the model folder that holds what an unfinished training needs; removed at the end."""
CHECKPOINT_SECONDS = 30.0
BEST = "best.safetensors"
"""File in ``WORK`` with the weights of the best validation."""
EVENTS = "tensorboard"
"""Folder in the model folder with TensorBoard's event files."""


def run(request: TrainRequest, session: Session) -> dict[str, Any]:
    """Train, and write the model folder.

    Returns
    -------
    dict
        The record's ``results``: ``metrics``, ``steps``, ``history`` (``Journal.entries``), ``model``; nothing on
        ranks other than the first.

    Raises
    ------
    ArithmeticError
        If the loss is not finite.
    KeyboardInterrupt
        After a checkpoint, if the session is stopping.
    LostRank
        After a checkpoint, if another rank has ended.
    """
    import torch

    options, data = request.options, request.data
    torch.set_num_threads(session.threads)
    torch.manual_seed(request.recipe.seed)
    work, group = options.output / WORK, session.group
    if not group.leads:
        work /= f"rank-{group.world.rank}"
    on_disk = session.plan["cache"] == "disk"
    kept = work if options.trial is None else options.trial.parent  # all trials, and the training, find them there
    folder = kept / "cases" if session.plan["cache"] == "compressed" else None
    with session.phase(LOAD):
        training, held_out = (
            load_volumes(
                data,
                cases,
                Volumes(work / name if on_disk else None, request.recipe.store, folder),
                session,
                skip_bad=options.skip_bad,
                drawn=drawn,
            )
            for cases, name, drawn in (
                (data.training, "training.cache", True),
                (data.held_out, "held-out.cache", False),
            )
        )
    with session.deferred_signals():
        course = _Training(request, session, training, held_out)
        if course.trial is not None:
            return _tried(course, course.trial)
        network = course.run()
    glibc.trim()
    return _write(request, session, network, held_out, course)


def sampler(request: TrainRequest, volumes: Volumes) -> "Callable[[int], list[torch.Tensor]]":
    """Draws the batch of a step: patches of the cases, or of images that are synthesised from label maps."""
    recipe, dataset, world = request.recipe, request.data.dataset, request.options.world
    if dataset.table is None:
        return Sampler(volumes, recipe.patch, recipe.batch, recipe.seed, recipe.mirror, world, recipe.augment)
    return SynthesisSampler(
        volumes, dataset.table, dataset.spacing, recipe.patch, recipe.batch, recipe.seed, recipe.mirror, world
    )


def bounded_heap(network: "torch.nn.Module", plan: Plan) -> AbstractContextManager[object]:
    """Context in which the step's tensors live, with the room that the plan has for free pages."""
    free = sum(term.bytes for term in plan.footprint.terms if term.name == FREE_HEAP)
    return BoundedHeap(network, slack=free - SLACK) if free else nullcontext()


class _Training:
    """A training under way: the network, its optimiser, and the course so far.

    Parameters
    ----------
    training, held_out
        The prepared cases.
    """

    def __init__(self, request: TrainRequest, session: Session, training: Volumes, held_out: Volumes) -> None:
        self.request, self.session, self.held_out, self.group = request, session, held_out, session.group
        recipe, plan, output = request.recipe, session.plan, request.options.output
        self.recipe, self.classes = recipe, len(request.data.dataset.labels)
        self.device = session.device.name if session.device else HOST
        shared = plan.get(STATES) == SHARED
        self.network, self.optimizer, self.step = make_step(
            recipe,
            micro_batch=plan["micro_batch"],
            amp=plan["amp"],
            checkpoint=plan["checkpoint"],
            step_in_backward=plan["step_in_backward"] == "on",
            device=self.device,
            group=self.group,
            shared=shared,
        )
        made = SharedStates if shared else States
        self.states = made(self.network, self.optimizer, recipe, self.group)
        load_teacher(self.step, request.options.distill)
        self.step.on_shrink = lambda size: session.say(f"an allocation failed: continuing with micro-batches of {size}")
        self.last, self.best = output / WORK / checkpoint.LAST, output / WORK / BEST
        self.sampler = sampler(request, training)
        self.journal = Journal(output / EVENTS if request.options.tensorboard and self.group.leads else None)
        self.trial = TrialCourse(request.options.trial) if request.options.trial is not None else None
        self.done, self._seconds = self._resume()
        self._began, self._saved = time.monotonic() - self._seconds, time.monotonic()

    def _resume(self) -> tuple[int, float]:
        """Continue from a checkpoint, or start from a model's weights; returns the steps done and their seconds."""
        found = self._checkpoint() if self.group.leads else None
        state = self.group.of_leader(None if found is None else found[0])
        if state is not None:
            self.states.load(self.last, {} if found is None else found[1], state["step"])
            self.step.load_state_dict(state["scaler"])
        elif (init := self.request.options.init) is not None:
            left = load_start(self.network, init)
            names = f"; new, because the classes are: {', '.join(left)}" if left else ""
            self.session.say(f"starting from the weights of {init.name}{names}")
        if state is None:
            self.states.begin_average()
            return 0, 0.0
        self.journal.load(state["journal"])
        if self.trial is not None:
            self.trial.load(state["scores"])
        return state["step"], state["seconds"]

    def _checkpoint(self) -> "tuple[dict[str, Any], dict[str, torch.Tensor]] | None":
        """State and tensors of the checkpoint, if there is one to continue from."""
        return resume(
            self.last,
            self.request.settings,
            read_settings=lambda path: checkpoint.read_state(path)["settings"],
            load=lambda path: (checkpoint.read_state(path), self.states.read(path)),
            progress=lambda found: f"after step {found[0]['step']}",
            output=self.request.options.output,
            required=self.request.options.resume,
            say=self.session.say,
        )

    def _save(self, *, left_alone: bool = False) -> None:
        """Write a checkpoint."""
        glibc.trim()  # what the heap keeps free between the step's tensors is not the checkpoint's
        state = {
            "step": self.done,
            "seconds": time.monotonic() - self._began,
            "settings": self.request.settings,
            "scaler": self.step.state_dict(),
            "journal": self.journal.state(),
            "scores": self.trial.state() if self.trial is not None else {},
        }
        self.states.save(self.last, state, left_alone=left_alone)
        self._saved = time.monotonic()

    def _agree(self) -> tuple[bool, bool]:
        """Read the clock, which is the first rank's; returns if some rank has to stop, and if a checkpoint is due."""
        now = time.monotonic()
        clock = [now - self._began, float(now - self._saved > CHECKPOINT_SECONDS)] if self.group.leads else [0.0, 0.0]
        stopping, self._seconds, due = self.group.sums([float(self.session.stopping), *clock])
        return stopping > 0, due > 0

    @property
    def progress(self) -> float:
        """Share of the training that is done."""
        if self.recipe.steps:
            return self.done / self.recipe.steps
        return self._seconds / float(self.recipe.seconds or 1)

    @property
    def is_over(self) -> bool:
        """True at the end, and after as many validations without a better Dice as the recipe allows."""
        return self.progress >= 1 or 0 < self.recipe.patience <= self.journal.worse

    def run(self) -> "torch.nn.Module":
        """Train to the end, or until validations say that it is enough; returns the network with its final weights.

        Raises
        ------
        KeyboardInterrupt
            After a checkpoint, if the session is stopping.
        LostRank
            After a checkpoint, if another rank has ended.
        """
        try:
            return self._run()
        except LostRank as error:
            self._save(left_alone=True)
            place = "there" if self.states.survive else "the last checkpoint"
            after = f"stopped after step {self.done}; the same command continues from {place}"
            raise LostRank(f"{error}: {after}") from None

    def _run(self) -> "torch.nn.Module":
        recipe, session = self.recipe, self.session
        validates = len(self.held_out) > 0 and recipe.validation_cases > 0
        heap = bounded_heap(self.network, session.plan) if session.device is None else nullcontext()
        self.network.train()
        following = (math.floor(self.progress * VALIDATIONS) + 1) / VALIDATIONS
        with heap, session.progress(total=recipe.steps, unit="step", label="training") as bar:
            bar.update(self.done)
            while not self.is_over:
                before = self.done
                with session.phase(TRAIN):
                    while self.progress < min(1, following):
                        self._one(bar)
                eighths = VALIDATIONS if self.progress >= 1 else round(following * VALIDATIONS)
                following += 1 / VALIDATIONS
                if validates and self._is_due(eighths, stepped=self.done > before):
                    self._validate(eighths)
                self._save()
                self._agree()
        if self.progress < 1:
            session.say(f"stopped after step {self.done}: no better Dice in {recipe.patience} validations")
        self.journal.close()
        return self._final()

    def _is_due(self, eighths: int, *, stepped: bool) -> bool:
        """True if there is a validation after so many eighths of the training: none twice of the same weights."""
        if self.trial is not None:
            return eighths in RUNGS  # in which trials are compared
        return stepped and (self.progress < 1 or self.recipe.keep == "best")

    def _one(self, bar: Any) -> None:
        """Do one step."""
        rate = self.recipe.rate(self.progress)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        loss = float(self.step([tensor.to(self.device) for tensor in self.sampler(self.done)]))
        if not math.isfinite(loss):
            raise ArithmeticError(f"the loss is {loss} at step {self.done}; try a smaller learning_rate")
        self.done += 1
        if self.states.average is not None:
            self.states.average.update()
        self.journal.add(loss, step=self.done, progress=self.progress, rate=rate)
        bar.update()
        bar.set_postfix(loss=f"{loss:.3f}", **self.journal.shown, refresh=False)
        stopping, due = self._agree()
        if stopping:
            self._save()
            raise KeyboardInterrupt
        if due:
            self._save()

    def _validate(self, eighths: int) -> None:
        """Read the Dice of some held-out cases; the best weights so far are kept if the recipe says so.

        Raises
        ------
        TrialStopped
            This is a trial, and half of the others were better after so many eighths of the training.
        """
        glibc.trim()  # nor validation's
        with self.session.phase(VALIDATE), self.states.judged() as network:
            amp = self.session.plan["amp"]
            dice = mean_dice(network, self.held_out, self.recipe, self.classes, amp, self.group)
            if self.journal.validated(dice, step=self.done) and self.recipe.keep == "best" and self.group.leads:
                checkpoint.save_weights(self.best, registry.weights(network))
        if self.trial is not None:
            self.trial.validated(eighths, dice)

    def _final(self) -> "torch.nn.Module":
        """The network with the weights that the model folder gets: the last, the average or the best."""
        if self.recipe.keep == "best" and self.group.of_leader(self.best.is_file()):
            self.session.say(f"keeping the weights of step {self.journal.best_step}, the best of the validations")
            return self.states.final(self.best)
        return self.states.final(None)


def _tried(course: _Training, trial: TrialCourse) -> dict[str, Any]:
    """Train a trial, to its end or until others are found better; returns the record's results."""
    stopped = False
    try:
        course.run()
    except TrialStopped:
        stopped = True
    return {"scores": trial.state(), "stopped": stopped, "steps": course.done}


def _write(
    request: TrainRequest, session: Session, network: "torch.nn.Module", held_out: Volumes, course: _Training
) -> dict[str, Any]:
    """Round the weights to half precision, validate them as they will be used, write the model folder."""
    from apps.imaging.models.model_folder import labels_from_names, read_model, write_model
    from apps.imaging.models.onnx_export import export_onnx
    from apps.imaging.training.model_card import render
    from common import model_folder
    from common.engines.base import NETWORK

    recipe, dataset, output, steps = request.recipe, request.data.dataset, request.options.output, course.done
    # A plain network again (no activation checkpointing), with the half-precision weights that are written.
    state = {name: tensor.detach().half().cpu() for name, tensor in registry.weights(network).items()}
    network = registry.build(recipe.network, recipe.arguments)
    registry.load_weights(network, state)
    metrics: dict[str, Any] = {}
    if len(held_out):
        with session.phase(VALIDATE):
            every = range(len(held_out))
            classes, group = len(dataset.labels), session.group
            dice = repeated(lambda: validate(network, held_out, every, recipe.patch, classes, "off", group))
        names = list(dataset.labels.values())[1:]
        per_class = dict(zip(names, np.nanmean(dice, 0).round(4).tolist(), strict=True))
        metrics = {"mean_dice": round(float(np.nanmean(dice, 0).mean()), 4), "per_class": per_class, "cases": len(dice)}
    if not session.group.leads:
        shutil.rmtree(output / WORK / f"rank-{session.group.world.rank}", ignore_errors=True)
        return {}
    glibc.trim()
    with session.phase(EXPORT):
        draft = output / WORK / NETWORK
        export_onnx(recipe.network, network, draft, tile=registry.smallest_tile(recipe.network, recipe.arguments))
        head = registry.head_name(recipe.network, network)
        labels = [
            replace(label, value=value)
            for value, label in zip(dataset.labels, labels_from_names(list(dataset.labels.values())), strict=True)
        ]
        if request.options.distill is not None:
            labels = [*read_model(request.options.distill).labels]
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
            extra={
                "mirror": recipe.mirror,
                "training": {"steps": steps, "metrics": metrics, "fold": recipe.fold},
                **further,
            },
        )
    shutil.rmtree(output / WORK)
    return {"metrics": metrics, "steps": steps, "history": course.journal.entries, "model": "."}
