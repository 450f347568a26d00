"""Memory of ``imaging infer``: pure prices, apart from the code that allocates.

The baseline, the engine (probed), the ring of stored planes, what the blend carries, tiles, and finished labels.
Studies run one after the other, so the largest decides each term.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import product
from math import prod
from shutil import disk_usage
from typing import cast

from apps.imaging.dicom.web import NETWORK_BYTES, is_address
from apps.imaging.dicom.writing.sr import template_bytes
from apps.imaging.inference.components.streaming import components_bytes
from apps.imaging.inference.discovery import StudyInputs
from apps.imaging.inference.labeling.decision import label_bytes
from apps.imaging.inference.labeling.planes import label_dtype, row_depth
from apps.imaging.inference.labeling.resampling import back_bytes, piece_bytes, slab_bytes
from apps.imaging.inference.network_grid import NetworkGrid, restored_channels
from apps.imaging.inference.outputs import outputs_bytes
from apps.imaging.inference.phases import INFER, OPEN, PREVIEW, STATISTICS, STOW, TEMPLATE
from apps.imaging.inference.request import InferRequest
from apps.imaging.inference.writing.probabilities import probability_bytes
from apps.imaging.models.model_folder import TORCH_NETWORK
from apps.imaging.models.networks.registry import divisors, is_static
from apps.imaging.planning import baselines
from apps.imaging.planning.reading import LIBRARIES, OBJECTS_BYTES, input_bytes, pass_bytes, reader_bytes
from apps.imaging.planning.tiles import halves, smaller, text
from apps.imaging.training.phases import FREE_HEAP
from apps.imaging.volumes.intensity import is_fixed
from apps.imaging.volumes.volume import Shape
from common.engines import registry
from common.engines.base import buffer_count
from common.engines.mirroring import mirror_bytes
from common.errors import BadInput
from common.memory.costs import baseline
from common.memory.costs.probes import Costs, Probe, ProbeFailed
from common.memory.costs.store import CostStore
from common.memory.footprint import Footprint, Price, Source, Term
from common.memory.plan.plan import Setting
from common.memory.plan.planner import Workload
from common.memory.process import glibc
from common.memory.process.bounded_heap import SLACK
from common.memory.process.budget import MIB, MemoryBudget, format_size
from common.tiling.blend import FLOAT, BlendFootprint, Spilled, blend_footprint

BEFORE, FROM_THE_FIRST_TILE = (STATISTICS, TEMPLATE), (INFER, PREVIEW, STOW)
"""The phases of one study."""
WORKING: Mapping[str, Source] = {
    "blend": "analytic",
    "input planes": "analytic",
    "finished labels": "analytic",
    "reading, labelling, writing": "measured",
    "components": "measured",
    "outputs": "measured",
}
"""Terms of one study while its tiles are run, and where their numbers come from."""

ENGINE_SPREAD = 1.005
"""An engine's peak differs from run to run by up to this factor (measured 0.1 to 0.5 %)."""
HALVINGS = 2
"""Halvings of a tile, at most, to estimate it: from an eighth of it, a MiB of error would become eight."""
EIGHTH = 3
"""Halvings between the two tiles of the estimate."""
PREVIEW_BYTES = 3 * MIB
"""Panels and picture, which do not grow with the volume (measured 2 to 3 MiB without the small objects)."""

LEFT_BYTES = 2 * MIB
"""What studies leave behind in the heap and the engine (measured 1.0 to 1.7 MiB after one and after five)."""

ENGINE_SECONDS = 6e-8
"""One feature of one voxel computed (measured 5.6e-8 and 7e-8, SegResNets of two levels, two cores). It is the same in
every setting and only weighs the rest."""
ADDITION_SECONDS = 1e-9
"""One value of one tile blended (measured 0.7 to 1.3 ns, two cores)."""
BESIDE = 0.5
"""Share of the blend's time that remains where the engine runs meanwhile on the same cores."""
WAITING = 1.08
"""Time of an engine whose threads share a tile and wait for each other, over a tile each (measured 1.07 to 1.11)."""
MAPPING = 1.4
"""Time of PyTorch whose tensors are mapped again for each tile (measured 1.2 to 1.5)."""
SPILL_PASSES = {"memory": 0, "rows": 2, "columns": 4}
"""Number of times that a waiting overlap is written or read for each row of tiles."""
SPILL_SECONDS = 1e-9
"""One byte spilled or read back, about the speed of a plain disk; only the order of the settings depends on it."""


@dataclass(frozen=True, slots=True)
class InferWorkload:
    """``imaging infer``."""

    request: InferRequest
    name: str = "imaging infer"
    left: tuple[int, int] = (0, 0)
    """Bytes that networks leave which ran before this one is opened: until its first tile, and from then on. Without
    any, it stays open for all studies."""

    @property
    def usable(self) -> list[NetworkGrid]:
        """Grids of the studies whose headers could be read."""
        return [grid for grid in self.request.inputs.grids.values() if isinstance(grid, NetworkGrid)]

    @property
    def parts(self) -> int:
        """Studies that can be tried."""
        return len(self.usable)

    def smallest(self, count: int, budget: MemoryBudget) -> "InferWorkload":
        """The ``count`` studies that need least; each of the others fails."""
        refused = refused_studies(self.request.inputs, self.needs(), count, budget)
        return replace(self, request=self.request.without(refused))

    def needs(self) -> dict[str, int]:
        """Bytes of each study that can be tried, by name, in the leanest setting, to put studies in order."""
        grids = self.request.inputs.grids
        return {name: self._study_bytes(grid) for name, grid in grids.items() if isinstance(grid, NetworkGrid)}

    def settings(self) -> Iterator[Setting]:
        """Yield the choices of blend, of the waiting overlap's place (on disk only if there is room), of tiles at a
        time, and of the allocator of PyTorch's tensors.

        Tile, overlap and precision change the labels and are the user's.
        """
        choice = self.request.model
        spaces = ["logits", "features"] if choice.model.head else ["logits"]
        allocators = ("heap", "mapped") if choice.engine == "torch" else ("mapped",)
        for space, spill, batch, allocator in product(spaces, SPILL_PASSES, self._batches, allocators):
            setting: Setting = {
                "tile": text(choice.tile),
                "overlap": choice.overlap,
                "batch": batch,
                "space": space,
                "spill": spill,
                "engine": choice.engine,
                "precision": choice.precision,
                "allocator": allocator,
            }
            if spill == "memory" or 0 < self._disk_bytes(setting) <= disk_usage(self.request.inputs.scratch).free:
                yield setting

    @property
    def _batches(self) -> list[int]:
        """A tile for each thread, or one for all; only OpenVINO gains from batches.

        No batch is larger than the longest row of tiles, over which batches do not reach.
        """
        longest = max((grid.tiles.per_row for grid in self.usable), default=1)
        if self.request.options.batch:
            return [min(self.request.options.batch, longest)]
        most = self.request.options.threads if self.request.model.engine == "openvino" else 1
        return sorted({1, min(most, longest)}, reverse=True)

    def probes(self, setting: Setting) -> Sequence[Probe]:
        """The baseline and the engine."""
        engine, threads = self.request.model.engine, self.request.options.threads
        libraries = (*LIBRARIES, *registry.LIBRARIES[engine])
        base = baseline.probe(baselines.INFER[engine], libraries=libraries, threads=threads)
        return [base, self._engine(setting, self.request.model.tile)]

    def _engine(self, setting: Setting, tile: Shape) -> Probe:
        choice = self.request.model
        return registry.probe(
            warm_up=baselines.INFER[choice.engine],
            threads=self.request.options.threads,
            sha256=choice.model.network_sha256,
            model_dir=str(choice.model.directory),
            name=choice.engine,
            precision=choice.precision,
            tile=tile,
            batch=int(setting["batch"]),
            output=setting["space"],
            head=choice.model.head,
            builder=TORCH_NETWORK,
            heap=setting["allocator"] == "heap",
        )

    def estimate(self, setting: Setting, costs: CostStore, ceiling: int) -> Footprint | None:
        """Price an engine that cannot be measured under the ceiling.

        The price lies on the line through the largest tile that can be measured and an eighth of it: apart from weights
        and code, an engine's memory grows with the voxels.
        """
        choice = self.request.model
        if is_static(choice.model.network):
            return None
        base, whole = self.probes(setting)
        tiles = list(halves(choice.tile, divisors(choice.model.network, choice.model.arguments)))
        for large, small in zip(tiles[:HALVINGS], tiles[EIGHTH:], strict=False):
            engines = [self._engine(setting, tile) for tile in (large, small)]
            with suppress(ProbeFailed):
                # In children of their own: the larger engine's peak would hide that of the smaller one.
                more, less = (costs.collect([engine], ceiling=ceiling)[engine] for engine in engines)
                ahead = (prod(choice.tile) - prod(large)) / (prod(large) - prod(small))
                line = {name: more[name] + max(0.0, more[name] - less[name]) * ahead for name in more}
                return self.footprint(setting, {**costs.collect([base], ceiling=ceiling), whole: line})
        return None

    def footprint(self, setting: Setting, costs: Costs) -> Footprint:
        """Baseline, engine, and the terms that grow with the data."""
        model, outputs = self.request.model.model, self.request.outputs
        base, engine = self.probes(setting)
        measured, batch = costs[engine], int(setting["batch"])
        tile, inputs = prod(self.request.model.tile), batch * buffer_count(batch)
        happens = {TEMPLATE: "dicom-seg" in outputs.types, PREVIEW: outputs.preview, STOW: bool(outputs.stow)}
        first, last = (
            tuple(phase for phase in phases if happens.get(phase, True)) for phases in (BEFORE, FROM_THE_FIRST_TILE)
        )
        running, pictures = (*first, *last), (PREVIEW,) if outputs.preview else ()
        passes = (*self._passes, *pictures)
        # An engine keeps what its first tile made it allocate; before that, a single study's first phases are over.
        fresh = self.parts == 1 or self.left != (0, 0)
        opened, ran = (first, last) if fresh else ((), running)
        terms = [
            Term("engine, loading", int(ENGINE_SPREAD * measured["open_bytes"]), "measured", (OPEN, *opened)),
            Term("engine, running", int(ENGINE_SPREAD * measured["run_bytes"]), "measured", ran),
            Term("end of the heap", glibc.HUGE_PAGE, "measured", (OPEN, *running)),
            Term(FREE_HEAP, SLACK if setting["allocator"] == "heap" else 0, "measured", ran),
            Term("small objects", OBJECTS_BYTES, "measured", (OPEN, *running)),
            Term("left by earlier studies", LEFT_BYTES if self.parts > 1 else 0, "measured", running),
            Term("left by other networks", self.left[0], "measured", (OPEN, *first)),
            Term("left by other networks", self.left[1], "measured", last),
            Term("head", (model.features + 1) * len(model.written) * FLOAT, "analytic", running),
            *(Term(name, size, WORKING[name], (INFER,)) for name, size in self._largest_working(setting).items()),
            Term("mirrored tiles", self._mirror_bytes(setting), "analytic", (INFER,)),
            Term("tiles", (inputs * model.inputs * FLOAT + 2 * FLOAT + 4) * tile, "analytic", (INFER,)),
            Term("reading", self._largest(reader_bytes), "measured", (*first, *last[1:])),
            Term("statistics", self._largest(pass_bytes) if passes else 0, "analytic", passes),
            Term("network", NETWORK_BYTES if self._networked else 0, "measured", running),
            Term("SEG template", template_bytes(outputs.types, len(outputs.labels)), "measured", (TEMPLATE,)),
            Term("preview", PREVIEW_BYTES if pictures else 0, "measured", pictures),
        ]
        return Footprint.of([*baseline.terms(costs, base), *terms])

    def channels(self, setting: Setting) -> int:
        """Values of each voxel in the blend."""
        model = self.request.model.model
        return model.features if setting["space"] == "features" else len(model.written)

    def remedies(self) -> Iterator[tuple[str, Workload]]:
        """Smaller tiles: they change labels only where a tile's border sees less."""
        choice = self.request.model
        if is_static(choice.model.network) or choice.model.inference.size:
            return
        for tile in smaller(choice.tile, divisors(choice.model.network, choice.model.arguments)):
            yield f"--tile {text(tile)}", replace(self, request=self.request.with_tile(tile))

    def seconds(self, setting: Setting) -> float:
        """Seconds in which settings differ: use of the engine's threads, the blend's additions, which batches
        hide behind the engine, and the blend's writes and reads."""
        choice, spill = self.request.model, str(setting["spill"])
        voxels = sum(len(grid.tiles) for grid in self.usable) * prod(choice.tile)
        batched = int(setting["batch"]) > 1
        added = voxels * self.channels(setting) * (BESIDE if batched else 1)
        rows = max((grid.tiles.count(2) for grid in self.usable), default=0)
        spilled = SPILL_PASSES[spill] * rows * self._disk_bytes(setting) if spill != "memory" else 0
        mapped = MAPPING if choice.engine == "torch" and setting["allocator"] == "mapped" else 1
        computed = voxels * choice.model.features * (1 if batched else WAITING) * mapped
        return ENGINE_SECONDS * computed + ADDITION_SECONDS * added + SPILL_SECONDS * spilled

    def _mirror_bytes(self, setting: Setting) -> int:
        choice = self.request.model
        if not choice.mirror:
            return 0
        return mirror_bytes(
            batch=int(setting["batch"]),
            voxels=prod(choice.tile),
            in_channels=choice.model.inputs,
            out_channels=self.channels(setting),
        )

    @property
    def _passes(self) -> tuple[str, ...]:
        """The phase of passes over the images, if there are any."""
        model = self.request.model.model
        return () if model.convention != "nnunet" and all(map(is_fixed, model.intensities)) else (STATISTICS,)

    @property
    def _networked(self) -> bool:
        return bool(self.request.outputs.stow) or any(is_address(study.input) for study in self.request.inputs.studies)

    def _carried(self, grid: NetworkGrid, setting: Setting) -> BlendFootprint:
        return blend_footprint(grid.tiles, self.channels(setting), cast(Spilled, setting["spill"]))

    def _disk_bytes(self, setting: Setting) -> int:
        return self._largest(lambda grid: self._carried(grid, setting).disk)

    def _study_bytes(self, grid: NetworkGrid) -> int:
        """Bytes of one study in the leanest setting."""
        leanest: Setting = {"space": "features" if self.request.model.model.head else "logits", "spill": "columns"}
        return sum(self._working(grid, leanest).values()) + pass_bytes(grid)

    def _largest(self, price: Callable[[NetworkGrid], int]) -> int:
        return max(map(price, self.usable), default=0)

    def _largest_working(self, setting: Setting) -> dict[str, int]:
        """The terms of ``_working``, each of the study that decides it."""
        studies = [self._working(grid, setting) for grid in self.usable]
        return {name: max((study[name] for study in studies), default=0) for name in WORKING}

    def _working(self, grid: NetworkGrid, setting: Setting) -> dict[str, int]:
        """Bytes of one study while its tiles are run, by term."""
        classes, channels, blend = (
            len(self.request.model.model.written),
            self.channels(setting),
            self._carried(grid, setting),
        )
        written = self.request.outputs
        files = len(written.labels)
        outputs = outputs_bytes(
            written.types,
            grid.volume,
            files if written.split else classes,
            with_statistics=written.statistics,
            split=written.split,
            largest=max((label.value for label in written.labels), default=0),
        )
        planes, restoring = input_bytes(grid), _restoring_bytes(grid, channels, classes)
        labels = self._labels(grid, setting, restoring)
        stored = written.probabilities
        kept = probability_bytes(grid, classes, files, stored, channels) if stored else Price(0, 0)
        reading = planes.transient + reader_bytes(grid)
        if grid.tiles.count(2) == 1:  # all is read before anything is carried or finished
            reading -= blend.memory + labels.resident
        return {
            "blend": blend.memory,
            "input planes": planes.resident,
            "finished labels": labels.resident,
            # A plane is read, or a tile added, or a block labelled, or a plane written: one waits for the other. The
            # last labels remain while planes are written.
            "reading, labelling, writing": max(
                reading,
                blend.transient,
                labels.transient,
                restoring + max(outputs.transient, kept.resident),
                kept.transient,
            ),
            "components": self._components_bytes(grid),
            "outputs": outputs.resident,
        }

    def _components_bytes(self, grid: NetworkGrid) -> int:
        """Bytes of the tables of components, of small ones and of the largest; of the latter also label planes where
        they are found on the network's grid."""
        rule, found = grid.inference, 0
        if rule.largest is not None:
            first = rule.largest_first and grid.resampled
            shape = grid.tiles.shape if first else grid.volume.shape
            found = components_bytes(shape, diagonal=True)
            found += shape[0] * shape[1] * row_depth(grid.tiles, grid.tiles.shape) if first else 0
        return found + (components_bytes(grid.volume.shape) if self.request.options.remove_small else 0)

    def _labels(self, grid: NetworkGrid, setting: Setting, restoring: int) -> Price:
        classes, channels, shape = self.request.model.model.written, self.channels(setting), grid.volume.shape
        dtype = label_dtype(classes)
        along_z = grid.to_file[2] if grid.resampled else None
        copied = setting["space"] == "features" or grid.inference.restored != "logits"
        labels = label_bytes(grid.tiles, shape, len(classes), channels, dtype, along_z, copied=copied)
        if not grid.resampled:
            return labels
        restored = restored_channels(grid, channels, len(classes))
        back, piece = back_bytes(grid.tiles, shape, restored), piece_bytes(grid.tiles, shape, restored)
        # Interpolating makes the piece; before it is labelled, the intermediate arrays are gone.
        return Price(back.resident + labels.resident, restoring + max(back.transient - piece, labels.transient))


def refused_studies(
    inputs: StudyInputs, needs: Mapping[str, int], count: int, budget: MemoryBudget
) -> dict[str, BadInput]:
    """By name, an error for each study that can be tried but is not among the ``count`` that need least."""
    kept = set(sorted(needs, key=needs.__getitem__)[:count])
    size = format_size(budget.host_bytes)
    return {
        study.study: BadInput(
            f"{study.input}: does not fit in {size}; run it alone with --dry-run to see the ceiling it needs",
            public="does not fit",
        )
        for study in inputs.studies
        if study.study in needs and study.study not in kept
    }


def _restoring_bytes(grid: NetworkGrid, channels: int, classes: int) -> int:
    """Bytes of a block on its way to the file's grid: its probabilities, the block with the planes before it, a piece.

    ``channels`` are the blend's.
    """
    if not grid.resampled:
        return 0
    restored = restored_channels(grid, channels, classes)
    block = prod(map(min, grid.tiles.tile, grid.tiles.shape)) if grid.inference.restored != "logits" else 0
    extended = slab_bytes(grid.tiles, restored)
    return block * restored * FLOAT + extended + piece_bytes(grid.tiles, grid.volume.shape, restored)
