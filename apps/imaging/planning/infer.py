"""What ``imaging infer`` needs: a pure price, beside the code that allocates.

Baseline + engine (probed) + the window of stored planes + the blend's frontier + tiles + one slab's labels. The largest
study decides each term, because they run one after the other.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import product
from math import prod
from pathlib import Path
from shutil import disk_usage
from typing import Any

import numpy as np

from apps.imaging.dicom.seg_header import CHILD_BYTES
from apps.imaging.dicom.web import NETWORK_BYTES, Downloads, is_address
from apps.imaging.inference.labeling import back_bytes, extended_bytes, label_bytes, piece_bytes
from apps.imaging.inference.network_grid import NetworkGrid, restored_channels
from apps.imaging.inference.outputs import OutputRequest, outputs_bytes
from apps.imaging.inference.small_components import components_bytes
from apps.imaging.inference.studies import Study
from apps.imaging.models.model_folder import TORCH_NETWORK, ImagingModel
from apps.imaging.models.networks.registry import steps
from apps.imaging.planning import baselines
from apps.imaging.planning.reading import LIBRARIES, OBJECTS_BYTES, input_bytes, pass_bytes, reader_bytes
from apps.imaging.planning.tiles import halves, smaller, text
from apps.imaging.training.phases import FREE_HEAP
from common.engines import registry as engine
from common.engines.base import buffer_count
from common.engines.mirroring import mirror_bytes
from common.errors import BadInput
from common.memory.costs import baseline
from common.memory.costs.probes import Costs, Probe, ProbeFailed
from common.memory.costs.store import CostStore
from common.memory.footprint import Footprint, Price, Source, Term
from common.memory.plan.plan import Setting
from common.memory.plan.planner import Workload
from common.memory.process.bounded_heap import SLACK
from common.memory.process.budget import MIB, MemoryBudget, format_size
from common.tiling.blend import FLOAT, BlendFootprint, blend_footprint

WARM_UPS = {"openvino": baselines.OPENVINO, "onnxruntime": baselines.ONNXRUNTIME, "torch": baselines.TORCH}

OPEN, STATISTICS, TEMPLATE, INFER, PREVIEW = "open", "statistics", "template", "infer", "preview"
STOW = "stow"
BEFORE, FROM_THE_FIRST_TILE = (STATISTICS, TEMPLATE), (INFER, PREVIEW, STOW)
"""The phases of one study."""
WORKING: Mapping[str, Source] = {
    "blend": "analytic",
    "input planes": "analytic",
    "finished labels": "analytic",
    "reading, labelling, writing": "measured",
    "small parts": "measured",
    "outputs": "measured",
}
"""Terms of one study while its tiles are run, and where their numbers come from."""

ENGINE_SPREAD = 1.005
"""An engine's peak differs from run to run by up to this factor (measured 0.1 to 0.5 %)."""
HALVINGS = 2
"""Of a tile, at most, to estimate it: of an eighth, a MiB more or less is eight of the whole."""
EIGHTH = 3
"""Halvings between the two tiles of the estimate."""
PREVIEW_BYTES = 3 * MIB
"""Panels and picture, which do not grow with the volume (measured 2 to 3 MiB beside small objects)."""

ENGINE_SECONDS = 6e-8
"""One feature of one voxel computed (measured 5.6e-8 and 7e-8, SegResNets of two levels, two cores): the same in every
setting, it only says how much the rest matters."""
ADDITION_SECONDS = 1e-9
"""One value of one tile blended (measured 0.7 to 1.3 ns, two cores)."""
BESIDE = 0.5
"""Share of the blend's time that is left where the engine runs beside it on the same cores."""
WAITING = 1.08
"""Time of an engine whose threads share a tile and wait for each other, over a tile each (measured 1.07 to 1.11)."""
MAPPING = 1.4
"""Time of PyTorch whose tensors are mapped anew for each tile (measured 1.2 to 1.5)."""
SPILL_PASSES = {"memory": 0, "rows": 2, "columns": 4}
"""How often a waiting overlap is written or read for each row of tiles."""
SPILL_SECONDS = 1e-9
"""One byte spilled or read back, about the speed of a plain disk; only the order of the settings depends on it."""


@dataclass(frozen=True, slots=True)
class InferWorkload:
    """``imaging infer``."""

    model: ImagingModel
    studies: tuple[Study, ...]
    cases: Mapping[str, NetworkGrid | BadInput]
    finished: Mapping[str, Study]
    """Of the studies, those that are not cases because they were done before."""
    engine: str
    precision: str
    tile: tuple[int, int, int]
    overlap: float
    batch: int | None
    """``None``: the planner's choice."""
    wanted: OutputRequest
    mirror: str
    """Axes over whose mirrorings the engine averages."""
    remove_small: float
    """Millilitres below which a connected part becomes background."""
    downloads: Downloads
    """Holds what was brought from a server until the process ends."""
    scratch: Path
    """An existing directory on the disk to which the blend may spill."""
    threads: int
    name: str = "imaging infer"

    @property
    def usable(self) -> list[NetworkGrid]:
        """Studies whose headers were readable."""
        return [case for case in self.cases.values() if isinstance(case, NetworkGrid)]

    @property
    def parts(self) -> int:
        """Studies that can be tried."""
        return len(self.usable)

    def smallest(self, count: int, budget: MemoryBudget) -> "InferWorkload":
        """The ``count`` studies that need least; the others fail, each by itself."""

        def own_bytes(study: str) -> int:
            return self._study_bytes(cases[study])

        cases = {study: case for study, case in self.cases.items() if isinstance(case, NetworkGrid)}
        kept = set(sorted(cases, key=own_bytes)[:count])
        size = format_size(budget.host_bytes)
        refused: dict[str, NetworkGrid | BadInput] = {
            study.study: BadInput(
                f"{study.input}: does not fit in {size}; alone, with --dry-run, it is said what would do",
                public="does not fit",
            )
            for study in self.studies
            if study.study in cases and study.study not in kept
        }
        return replace(self, cases={**self.cases, **refused})

    def settings(self) -> Iterator[Setting]:
        """What is blended, and where the overlap along z waits, if there is room. Tile, overlap and precision change
        the labels and are the user's."""
        spaces = ["logits", "features"] if self.model.head else ["logits"]
        allocators = ("heap", "mapped") if self.engine == "torch" else ("mapped",)
        for space, spill, batch, allocator in product(spaces, ("memory", "rows", "columns"), self._batches, allocators):
            setting = {
                "tile": text(self.tile),
                "overlap": self.overlap,
                "batch": batch,
                "space": space,
                "spill": spill,
                "engine": self.engine,
                "precision": self.precision,
                "allocator": allocator,
            }
            if spill == "memory" or 0 < self._disk_bytes(setting) <= disk_usage(self.scratch).free:
                yield setting

    @property
    def _batches(self) -> list[int]:
        """A tile for each thread or one for all; only OpenVINO gains from batches."""
        if self.batch:
            return [self.batch]
        return sorted({1, self.threads if self.engine == "openvino" else 1}, reverse=True)

    def probes(self, setting: Setting) -> Sequence[Probe]:
        """The baseline and the engine."""
        warm_up = WARM_UPS[self.engine]
        libraries = (*LIBRARIES, *engine.LIBRARIES[self.engine])
        return [baseline.probe(warm_up, libraries=libraries, threads=self.threads), self._engine(setting, self.tile)]

    def _engine(self, setting: Setting, tile: tuple[int, int, int]) -> Probe:
        return engine.probe(
            warm_up=WARM_UPS[self.engine],
            threads=self.threads,
            sha256=self.model.network_sha256,
            model_dir=str(self.model.directory.resolve()),
            name=self.engine,
            precision=self.precision,
            tile=tile,
            batch=int(setting["batch"]),
            output=setting["space"],
            head=self.model.head,
            builder=TORCH_NETWORK,
            heap=setting["allocator"] == "heap",
        )

    def estimate(self, setting: Setting, costs: CostStore, ceiling: int) -> Footprint | None:
        """With an engine on the line through the largest tile whose engine can be measured and an eighth of that: what
        it holds beside its weights and code grows with the voxels."""
        base, whole = self.probes(setting)
        tiles = list(halves(self.tile, steps(self.model.network, self.model.arguments)))
        for large, small in zip(tiles[:HALVINGS], tiles[EIGHTH:], strict=False):
            parts = [self._engine(setting, tile) for tile in (large, small)]
            with suppress(ProbeFailed):
                # In children of their own: an engine's peak would hide that of a smaller one after it.
                more, less = (costs.collect([part], ceiling=ceiling)[part] for part in parts)
                ahead = (prod(self.tile) - prod(large)) / (prod(large) - prod(small))
                line = {name: more[name] + max(0.0, more[name] - less[name]) * ahead for name in more}
                return self.footprint(setting, {**costs.collect([base], ceiling=ceiling), whole: line})
        return None

    def footprint(self, setting: Setting, costs: Costs) -> Footprint:
        """Baseline, engine, and what each place that grows with the data holds."""
        measured = costs[self.probes(setting)[1]]
        batch = int(setting["batch"])
        tile, inputs = prod(self.tile), batch * buffer_count(batch)
        happens = {
            TEMPLATE: "dicom-seg" in self.wanted.types,
            PREVIEW: self.wanted.preview,
            STOW: bool(self.wanted.stow),
        }
        first, last = (tuple(p for p in part if happens.get(p, True)) for part in (BEFORE, FROM_THE_FIRST_TILE))
        running, pictures = (*first, *last), (PREVIEW,) if self.wanted.preview else ()
        # An engine keeps what its first tile made it allocate; before that, a single study's first phases are over.
        opened, ran = (first, last) if self.parts == 1 else ((), running)
        terms = [
            Term("engine, loading", int(ENGINE_SPREAD * measured["open_bytes"]), "measured", (OPEN, *opened)),
            Term("engine, running", int(ENGINE_SPREAD * measured["run_bytes"]), "measured", ran),
            Term(FREE_HEAP, SLACK if setting["allocator"] == "heap" else 0, "measured", ran),
            Term("small objects", OBJECTS_BYTES, "measured", (OPEN, *running)),
            Term("head", (self.model.features + 1) * len(self.model.labels) * FLOAT, "analytic", running),
            *(Term(name, size, WORKING[name], (INFER,)) for name, size in self._largest_working(setting).items()),
            Term("mirrored tiles", self._mirror_bytes(setting), "analytic", (INFER,)),
            Term("tiles", (inputs * len(self.model.channels) * FLOAT + 2 * FLOAT + 4) * tile, "analytic", (INFER,)),
            Term("reading", self._largest(reader_bytes), "measured", (*first, *last[1:])),
            Term("statistics", self._largest(pass_bytes), "analytic", (STATISTICS, *pictures)),
            Term("network", NETWORK_BYTES if self._networked else 0, "measured", running),
            Term("SEG template", CHILD_BYTES if happens[TEMPLATE] else 0, "measured", (TEMPLATE,)),
            Term("preview", PREVIEW_BYTES if pictures else 0, "measured", pictures),
        ]
        return Footprint.of([*baseline.terms(costs, self.probes(setting)[0]), *terms])

    def channels(self, setting: Setting) -> int:
        """Values per voxel in the blend."""
        return self.model.features if setting["space"] == "features" else len(self.model.labels)

    def remedies(self) -> Iterator[tuple[str, Workload]]:
        """Smaller tiles: the same labels but for what a tile's border sees."""
        for tile in smaller(self.tile, steps(self.model.network, self.model.arguments)):
            cases = {
                study: case.with_tiles(self.model, tile, self.overlap)
                for study, case in self.cases.items()
                if isinstance(case, NetworkGrid)
            }
            yield f"--tile {text(tile)}", replace(self, tile=tile, cases=cases)

    def seconds(self, setting: Setting, costs: Costs) -> float:
        """What differs between settings: how well the engine's threads are used, the blend's additions, which batches
        hide behind the engine, and what the blend writes and reads."""
        voxels = sum(len(case.grid) for case in self.usable) * prod(self.tile)
        batched = int(setting["batch"]) > 1
        added = voxels * self.channels(setting) * (BESIDE if batched else 1)
        rows = max((case.grid.count(2) for case in self.usable), default=0)
        spilled = (
            SPILL_PASSES[setting["spill"]] * rows * self._disk_bytes(setting) if setting["spill"] != "memory" else 0
        )
        mapped = MAPPING if self.engine == "torch" and setting["allocator"] == "mapped" else 1
        computed = voxels * self.model.features * (1 if batched else WAITING) * mapped
        return ENGINE_SECONDS * computed + ADDITION_SECONDS * added + SPILL_SECONDS * spilled

    def _mirror_bytes(self, setting: Setting) -> int:
        channels = {"in_channels": len(self.model.channels), "out_channels": self.channels(setting)}
        return mirror_bytes(batch=int(setting["batch"]), voxels=prod(self.tile), **channels) if self.mirror else 0

    @property
    def _networked(self) -> bool:
        return bool(self.wanted.stow) or any(is_address(study.input) for study in self.studies)

    def _carried(self, case: NetworkGrid, setting: Setting) -> BlendFootprint:
        return blend_footprint(case.grid, self.channels(setting), setting["spill"])

    def _disk_bytes(self, setting: Setting) -> int:
        return self._largest(lambda c: self._carried(c, setting).disk)

    def _study_bytes(self, case: NetworkGrid) -> int:
        """What one study holds in the leanest setting, to put studies in order."""
        leanest = {"space": "features" if self.model.head else "logits", "spill": "columns"}
        return sum(self._working(case, leanest).values()) + pass_bytes(case)

    def _largest(self, price: Any) -> int:
        return max((int(price(case)) for case in self.usable), default=0)

    def _largest_working(self, setting: Setting) -> dict[str, int]:
        """The terms of ``_working``, each of the study that decides it."""
        studies = [self._working(case, setting) for case in self.usable]
        return {name: max((study[name] for study in studies), default=0) for name in WORKING}

    def _working(self, case: NetworkGrid, setting: Setting) -> dict[str, int]:
        """What one study holds while its tiles are run."""
        channels, blend = self.channels(setting), self._carried(case, setting)
        outputs = outputs_bytes(self.wanted, case.volume, self.model)
        planes, restoring = input_bytes(case), self._restoring_bytes(case, channels)
        labels = self._labels(case, setting, restoring)
        reading = planes.transient + reader_bytes(case)
        if case.grid.count(2) == 1:  # all is read before anything is carried or finished
            reading -= blend.memory + labels.resident
        return {
            "blend": blend.memory,
            "input planes": planes.resident,
            "finished labels": labels.resident,
            # A plane is read, or a tile added, or a block labelled, or a plane written: one waits for the other. What
            # was labelled last is still held while planes are written.
            "reading, labelling, writing": max(
                reading, blend.transient, labels.transient, restoring + outputs.transient
            ),
            "small parts": components_bytes(case.volume.shape) if self.remove_small else 0,
            "outputs": outputs.resident,
        }

    def _restoring_bytes(self, case: NetworkGrid, channels: int) -> int:
        """A block on its way to the file's grid: its probabilities, the block with what is before it, and a piece."""
        if not case.resampled:
            return 0
        restored = restored_channels(case, channels, len(self.model.labels))
        block = prod(map(min, case.grid.tile, case.grid.shape)) if case.inference.restored != "logits" else 0
        extended = extended_bytes(case.grid, restored)
        return block * restored * FLOAT + extended + piece_bytes(case.grid, case.volume.shape, restored)

    def _labels(self, case: NetworkGrid, setting: Setting, restoring: int) -> Price:
        classes, channels, shape = len(self.model.labels), self.channels(setting), case.volume.shape
        dtype = np.dtype(np.uint8 if max(label.value for label in self.model.labels) < 256 else np.uint16)
        along_z = case.taps_back[2] if case.resampled else None
        copied = setting["space"] == "features" or case.inference.restored != "logits"
        labels = label_bytes(case.grid, shape, classes, channels, dtype, along_z, copied=copied)
        if not case.resampled:
            return labels
        restored = restored_channels(case, channels, classes)
        back, piece = back_bytes(case.grid, shape, restored), piece_bytes(case.grid, shape, restored)
        # Interpolating makes the piece; before it is labelled, what it was made through is gone.
        return Price(back.resident + labels.resident, restoring + max(back.transient - piece, labels.transient))
