"""Memory of ``imaging train``: pure prices, apart from the code that allocates."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from functools import cached_property
from itertools import product
from math import prod
from typing import Any

from apps.imaging.models.networks.patches import has_one_voxel
from apps.imaging.models.networks.registry import divisors
from apps.imaging.models.stored_weights import stored_parameters
from apps.imaging.planning import baselines, sharing
from apps.imaging.planning.tiles import smaller, text
from apps.imaging.training import traced_step
from apps.imaging.training.data import augmentation, chunks
from apps.imaging.training.data.label_maps import own_spacing, reading_bytes
from apps.imaging.training.data.prepared import loading_bytes
from apps.imaging.training.data.synthesis import region_voxels, synthesis_bytes
from apps.imaging.training.phases import CHECKPOINT, EXPORT, FREE_HEAP, LOAD, SHARED, STATES, TRAIN, VALIDATE, WHOLE
from apps.imaging.training.recipe import OVERLAP
from apps.imaging.training.request import TrainRequest
from apps.imaging.volumes.volume import Shape
from common.memory.costs import baseline, trace
from common.memory.costs.probes import Costs, Probe
from common.memory.footprint import Footprint, Term
from common.memory.plan.plan import Setting
from common.memory.plan.planner import Workload
from common.memory.process.bounded_heap import SLACK, room
from common.memory.process.budget import MIB
from common.tiling.blend import FLOAT, blend_footprint
from common.tiling.grid import TileGrid
from common.training import activation_checkpointing, amp, checkpoint
from common.training.distributed import sharding
from common.training.distributed.price import ranks_terms

EXPORT_BYTES = 24 * MIB
"""Tracing and serialising, without copies of the weights (measured with them: 7 to 15 MiB above the other terms, with
UNet, SegResNet and DynUNet)."""
MORE_FOR_EXPORT = {"basicunet": 32 * MIB}
"""Further bytes that the exporter takes for some networks, at any tile (BasicUNet: 29 to 31 MiB)."""


RECOMPUTING = {"off": 0.15, "bf16": 0.20}
"""Share of a step's time that the policy ``8/8`` adds, by precision (float32 at 96 cubed: UNet 0.08, DynUNet 0.17)."""
SOONER = 2
"""Power of the saved share by which the added time grows, as the first bytes cost least (DynUNet: ``4/8`` adds 0.034,
``6/8`` 0.085, ``7/8`` 0.11)."""
VOXEL = {"off": 1.0, "bf16": 0.6}
"""Time of a voxel by precision, against float32."""
PASS_VOXELS = {"unet": 49_000}
"""Fixed time of a forward and backward pass, as a number of voxels in float32, in any precision: 20 ms, which are more
voxels of a network that takes less time for each."""
USUAL_PASS_VOXELS = 12_000
"""The same, where it was not measured (SegResNet: 11,000 at a patch of 32 cubed, 19,000 and 22,000 at 24 cubed; each of
10,000 to 13,000 chooses within 5 % of the best at both)."""
ALLOCATORS = {
    "off": {"roomy": 1.0, "heap": 1.07, "mapped": 1.5},
    "bf16": {"roomy": 1.0, "heap": 1.08, "mapped": 1.6},
}
"""Time of a step by precision and where its tensors live: in the bounded heap with room for free pages, without, or
mapped one by one (SegResNet and UNet at 24 and 32 cubed; float32: heap 1.00 to 1.10, mapped 1.38 to 1.64; bf16: 0.98 to
1.10, 1.32 to 1.68; on another machine mapped was 1.7 to 2.0 and 1.3 to 1.9: what a page fault takes differs)."""


VALIDATED = 0.04
"""Share of a step's tensors by which the roomy heap grows once more after the first validation, whose blocks lie among
those of the step (float32 on AVX2: 3 to 6 MiB of 190)."""


@dataclass(frozen=True)
class TrainWorkload:
    """``imaging train``."""

    request: TrainRequest
    name: str = "imaging train"

    monotone_knobs: tuple[str, ...] = ("checkpoint",)
    """More recomputation saves memory; smaller micro-batches may not, because they take other kernels."""

    @cached_property
    def shapes(self) -> tuple[list[Shape], list[Shape]]:
        """Voxels of all cases, and of the held-out ones, on the network's grid; computed once for all settings."""
        data = self.request.data
        training, held_out = (
            [case.shape(data.dataset.spacing) for case in cases] for cases in (data.training, data.held_out)
        )
        return [*training, *held_out], held_out

    def settings(self) -> Iterator[Setting]:
        """Micro-batch and accumulation, precision, recomputed activations, gradients that are used up at once, where
        the prepared cases are kept, and whether tensors of less than 32 MiB live in the heap (the more it may keep
        free, the faster) or are mapped one by one."""
        options, batch, clip = self.request.options, self.request.samples, self.request.recipe.clip
        several = options.world.size > 1
        sizes = sorted({-(-batch // 2**halvings) for halvings in range(batch.bit_length())}, reverse=True)
        precisions = [options.amp] if options.amp else (["bf16", "off"] if amp.likely() else ["off"])
        choices = product(
            [options.micro_batch] if options.micro_batch else sizes,
            precisions,
            activation_checkpointing.POLICIES,
            ("off", "on"),
            [options.cache] if options.cache else ["memory", "disk"],
            ALLOCATORS["off"],
        )
        for micro_batch, precision, policy, step_in_backward, cache, allocator in choices:
            if step_in_backward == "on" and (micro_batch < batch or clip or precision == "fp16" or several):
                continue
            setting: dict[str, int | float | str] = {
                "micro_batch": micro_batch,
                "accumulate": -(-batch // micro_batch),
                "amp": precision,
                "checkpoint": policy,
                "step_in_backward": step_in_backward,
                "cache": cache,
                "allocator": allocator,
            }
            if options.recipe is not None:
                setting["patch"] = text(self.request.recipe.patch)
            yield from [setting | {STATES: one} for one in self._states(setting)] if several else [setting]

    def choices(self) -> "list[tuple[TrainWorkload, list[Setting]]]":
        """The patches of the recipe's file, from the best to the smallest, each with the settings that need least."""
        return [(work, work._leanest()) for work in map(TrainWorkload, self.request.choices)]

    def _leanest(self) -> list[Setting]:
        """For each precision the setting that is expected to need least."""
        slowest = sorted(self.settings(), key=lambda setting: (-int(setting["micro_batch"]), self.seconds(setting)))
        return list({str(setting["amp"]): setting for setting in slowest}.values())

    def _states(self, setting: Setting) -> tuple[str, ...]:
        """Values of the knob ``STATES``. A rank that has a part must do as many passes as all others, without
        recomputation, and cannot load another model's weights."""
        options, recipe, world = self.request.options, self.request.recipe, self.request.options.world
        passes = {-(-len(share) // int(setting["micro_batch"])) for share in world.shares(recipe.batch)}
        possible = (
            len(passes) == 1
            and recipe.optimizer in sharding.OPTIMIZERS
            and options.init is None
            and options.distill is None
            and options.deep_supervision == "off"
            and setting["amp"] != "fp16"
            and setting["checkpoint"] == activation_checkpointing.NONE
        )
        return (WHOLE, SHARED) if possible else (WHOLE,)

    def probes(self, setting: Setting) -> Sequence[Probe]:
        """The baseline, the traced step, and whether bfloat16 pays, unless the user has decided that."""
        options, recipe = self.request.options, asdict(self.request.recipe)
        # Only what decides shapes: a plan is then known for every seed, fold and length.
        neutral = {
            "steps": 1,
            "seconds": None,
            "seed": 0,
            "fold": None,
            "batch": 1,
            "validation_cases": 0,
            "mirror": "",
            "init": "",
            "schedule": "cosine",
            "ema": 0.0,
            "keep": "last",
            "patience": 0,
            "store": "float32",
            "synthesis": "",
            "spacing": None,
            "normalisation": "",
            "distillation": 1.0,
            "temperature": 2.0,
            "augment": augmentation.LIGHT,
            "teacher": {**recipe["teacher"], "weights": ""} if recipe["teacher"] else None,
        }
        shaping = recipe | neutral | {"learning_rate": 1e-3, "weight_decay": 0.0}
        step = self._traced(
            traced_step.STEP,
            recipe=shaping,
            micro_batch=setting["micro_batch"],
            parts=min(2, int(setting["accumulate"])),
            amp=setting["amp"],
            checkpoint=setting["checkpoint"],
            step_in_backward=setting["step_in_backward"],
        )
        # Held-out cases are validated in the training's precision meanwhile, and in float32 at the end.
        tiles = [
            self._traced(traced_step.TILE, recipe=shaping, amp=kind) for kind in sorted({"off", str(setting["amp"])})
        ]
        base = baseline.probe(
            baselines.of_training(events=options.tensorboard, ranks=options.world.size),
            libraries=("torch", "monai", "numpy", "nibabel", "safetensors"),
            threads=options.threads,
        )
        checks = [amp.probe(options.threads)] if setting["amp"] == "bf16" and options.amp is None else []
        return [*checks, base, step, *tiles]

    def _traced(self, prepare: str, **arguments: Any) -> Probe:
        threads = self.request.options.threads
        return trace.probe(prepare, warm_up=baselines.TRACE, libraries=("torch", "monai"), threads=threads, **arguments)

    def footprint(self, setting: Setting, costs: Costs) -> Footprint:
        """Baseline, model states, the step, the data, and what validation and export take instead of the step."""
        probes = self.probes(setting)
        base = next(probe for probe in probes if probe.function == baseline.MEASURE)
        step, *tiles = probes[probes.index(base) + 1 :]
        cost = {name: int(value) for name, value in costs[step].items()}
        forward = max(int(costs[tile]["activations"] + costs[tile]["workspace"]) for tile in tiles)
        kernels = sum(int(costs[tile]["kernels"]) for tile in tiles)
        data, recipe = self.request.data, self.request.recipe
        voxels, classes = prod(recipe.patch), len(data.dataset.labels)
        shapes, image = self.shapes[1], FLOAT * len(data.dataset.channels)
        cases, loading = self._data_bytes(image)
        traced = int(setting["micro_batch"]) * min(2, int(setting["accumulate"]))
        average = cost["parameters"] if recipe.ema else 0
        teacher = stored_parameters(self.request.options.distill) * FLOAT if self.request.options.distill else 0
        states = cost["parameters"] + cost["optimizer"] + average
        grids = [TileGrid(shape, recipe.patch, OVERLAP) for shape in shapes]
        blend = max((blend_footprint(grid, classes).memory for grid in grids), default=0)
        block = voxels * (image + 3 * 8)  # a finished block's image, and its labels compared as int64
        exporting = EXPORT_BYTES + MORE_FOR_EXPORT.get(recipe.network, 0)
        tensors = cost["activations"] + cost["workspace"]
        roomy = SLACK + room(tensors) + int(VALIDATED * tensors)
        free = {"roomy": roomy, "heap": SLACK, "mapped": 0}[str(setting["allocator"])]
        if setting.get(STATES) == SHARED:
            held = sharing.terms(self.request.options.world, cost, average=average)
        else:
            held = [
                Term("parameters", cost["parameters"], "analytic", (TRAIN, VALIDATE, EXPORT)),
                Term("gradients", cost["gradients"], "analytic", (TRAIN,)),
                *ranks_terms(self.request.options.world, cost["gradients"], (TRAIN, VALIDATE, CHECKPOINT, EXPORT)),
                Term("optimizer states", cost["optimizer"], "analytic", (TRAIN, VALIDATE, EXPORT)),
                Term("average of the weights", average, "analytic", (TRAIN, VALIDATE, EXPORT)),
                Term("checkpoint", checkpoint.bytes_needed(states), "analytic", (CHECKPOINT,)),
                Term("parameters and optimizer", states, "analytic", (CHECKPOINT,)),
            ]
        terms = [
            *held,
            # A training's activations contain the teacher.
            Term("teacher", teacher, "analytic", (VALIDATE, CHECKPOINT, EXPORT)),
            Term("activations", cost["activations"], "replayed", (TRAIN,)),
            Term("operator workspace", cost["workspace"], "replayed", (TRAIN,)),
            Term(FREE_HEAP, free, "estimated", (TRAIN, VALIDATE)),
            Term("compiled kernels", cost["kernels"], "replayed", (TRAIN, VALIDATE, EXPORT)),
            Term("kernels of validation", kernels, "replayed", (VALIDATE, EXPORT)),
            Term("small blocks", cost["unseen"], "measured", (TRAIN, VALIDATE, EXPORT)),
            Term("batch", max(0, self.request.samples - traced) * voxels * (image + 1), "analytic", (TRAIN,)),
            Term("cases in memory", cases if setting["cache"] == "memory" else 0, "analytic"),
            Term("loading a case", loading, "analytic", (LOAD,)),
            *self._chunk_terms(setting),
            Term("synthesis beyond a step", max(0, self._synthesis_bytes() - tensors), "analytic", (TRAIN,)),
            Term("augmentation beyond a step", max(0, self._augmentation_bytes() - tensors), "analytic", (TRAIN,)),
            Term("blend", blend + block + voxels * (image + FLOAT * (classes + 2)), "analytic", (VALIDATE,)),
            Term("tile's forward pass", forward, "replayed", (VALIDATE,)),
            Term("ONNX export", exporting + 4 * cost["parameters"], "measured", (EXPORT,)),
        ]
        return Footprint.of([*baseline.terms(costs, base), *terms])

    def _data_bytes(self, image: int) -> tuple[int, int]:
        """Bytes of all prepared cases, and of loading one with its results.

        Parameters
        ----------
        image
            Bytes of a voxel of all channels as float32.
        """
        data, (every, held_out) = self.request.data, self.shapes
        half = image // 2 if self.request.recipe.store == "float16" else 0  # beside the float32 that they come from
        kept = half or image
        sizes = [prod(shape) for shape in every]
        if data.dataset.table is None:
            cases = (*data.training, *data.held_out)
            loading = max(loading_bytes(case, size) for case, size in zip(cases, sizes, strict=True))
            return sum(sizes) * (kept + 1), loading + max(sizes) * (image + half + 1)
        maps = [prod(case.label.shape) for case in data.training]
        looked_at = [prod(shape) for shape in held_out]
        loading = max(
            *(reading_bytes(case, 0) for case in data.training),
            *(reading_bytes(case, size) for case, size in zip(data.held_out, looked_at, strict=True)),
        )
        return sum(maps) + sum(looked_at) * (kept + 1), loading + max(looked_at, default=0) * half

    def _chunk_terms(self, setting: Setting) -> list[Term]:
        """What compressed cases take besides the patch: the library, a chunk, and the largest case's index."""
        if setting["cache"] != "compressed":
            return []
        largest = max(self.shapes[0], key=prod)
        return [
            Term("Blosc", chunks.LIBRARY_BYTES, "measured"),
            Term("a chunk", chunks.reading_bytes(largest, len(self.request.data.dataset.channels)), "analytic"),
        ]

    def _synthesis_bytes(self) -> int:
        """Bytes of the synthesis of one patch, before the step and not beside its tensors; 0 if images are read."""
        data, recipe = self.request.data, self.request.recipe
        if data.dataset.table is None:
            return 0
        own = data.dataset.spacing
        regions = [
            region_voxels(recipe.patch, case.shape(own_spacing(case)), own, own_spacing(case)) for case in data.training
        ]
        return synthesis_bytes(prod(recipe.patch), max(regions))

    def _augmentation_bytes(self) -> int:
        """Bytes of a batch and of what makes its last sample, before the step; 0 if images are synthesised."""
        data, recipe = self.request.data, self.request.recipe
        if data.dataset.table is not None:
            return 0
        channels = len(data.dataset.channels)
        batch = self.request.samples * prod(recipe.patch) * (FLOAT * channels + 1)
        return batch + augmentation.augmentation_bytes(recipe.augment, recipe.patch, channels)

    def alike(self) -> dict[str, Any]:
        """What all ranks must have in common: the settings, and the sizes of the cases in their order."""
        training = [list(shape) for shape in self.shapes[0]]
        sizes = hashlib.sha256(json.dumps(training).encode()).hexdigest()[:12]
        return {**json.loads(json.dumps(self.request.settings)), "sizes of the cases": sizes}

    def remedies(self) -> Iterator[tuple[str, Workload]]:
        """Smaller patches: the network then sees less around each voxel."""
        recipe = self.request.recipe
        steps = divisors(recipe.network, recipe.arguments)
        for patch in smaller(recipe.patch, steps):
            if not has_one_voxel(recipe.network, patch, recipe.arguments):
                yield f"--patch {text(patch)}", TrainWorkload(self.request.with_patch(patch))

    def seconds(self, setting: Setting) -> float:
        """Relative, from what was measured of each knob: a traced step's own seconds depend on who else was busy."""
        precision, recipe = "bf16" if setting["amp"] == "bf16" else "off", self.request.recipe  # fp16 is as float32
        voxels = self.request.samples * prod(recipe.patch) * VOXEL[precision]
        passes = int(setting["accumulate"]) * PASS_VOXELS.get(recipe.network, USUAL_PASS_VOXELS)
        return (
            (voxels + passes)
            * _recomputing(precision, str(setting["checkpoint"]))
            * ALLOCATORS[precision][str(setting["allocator"])]
            * (1.01 if setting["step_in_backward"] == "on" else 1.0)
            * (1.0 if setting["cache"] == "memory" else 1.05)
            * (sharing.SLOWER if setting.get(STATES) == SHARED else 1.0)
        )


def _recomputing(precision: str, policy: str) -> float:
    """Time of a step with a checkpointing policy, against one without."""
    share = 0.0 if policy == activation_checkpointing.NONE else float(Fraction(policy))
    return 1 + RECOMPUTING[precision] * float(share**SOONER)
