"""Memory of ``imaging infer`` with several networks, of which one is open at a time.

All networks have one setting, as far as they can take it. In each phase the network that needs most there decides; what
becomes of the label map that they share is priced here.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from apps.imaging.dicom.web import NETWORK_BYTES
from apps.imaging.dicom.writing.sr import template_bytes
from apps.imaging.inference.components.streaming import components_bytes
from apps.imaging.inference.focus import focus_bytes
from apps.imaging.inference.labeling.planes import label_dtype, row_depth
from apps.imaging.inference.outputs import outputs_bytes
from apps.imaging.inference.phases import INFER, PREVIEW, STOW, TEMPLATE, WRITE
from apps.imaging.inference.running.label_file import merging_bytes
from apps.imaging.inference.running.merged_request import MergedRequest
from apps.imaging.planning.infer import PREVIEW_BYTES, InferWorkload, refused_studies
from apps.imaging.planning.reading import OBJECTS_BYTES, pass_bytes, reader_bytes
from apps.imaging.planning.tiles import text
from common.memory.costs.probes import Costs, Probe
from common.memory.costs.store import CostStore
from common.memory.footprint import ALL, Footprint, Term
from common.memory.plan.plan import Setting
from common.memory.plan.planner import Workload
from common.memory.process import glibc
from common.memory.process.budget import MIB, MemoryBudget


@dataclass(frozen=True, slots=True)
class Left:
    """Bytes that closed networks leave: code that was loaded, and holes in the heap."""

    before: int
    """What the next one finds while it is loaded, beyond what it takes anyway, if all are of one kind."""
    running: int
    """The same from its first tile on."""
    after: int
    """What is left when all are closed."""
    kind: int
    """In addition for each further kind of network."""


LEFT = {
    "openvino": Left(6 * MIB, 1 * MIB, 14 * MIB, 5 * MIB),
    "onnxruntime": Left(6 * MIB, 1 * MIB, 6 * MIB, 2 * MIB),
    "torch": Left(24 * MIB, 8 * MIB, 28 * MIB, 6 * MIB),
}
"""By engine. Measured with six networks of one kind: 5.1, 0, 12.9 MiB (OpenVINO), 4.5, 0.7, 5.2 (ONNX Runtime), 20,
7.7, 26.7 (PyTorch); and with three kinds by turns, for each further kind: 4.6, 1, 6 MiB at most."""


@dataclass(frozen=True, slots=True)
class MergedWorkload:
    """``imaging infer`` with several networks."""

    request: MergedRequest
    name: str = "imaging infer"

    @property
    def members(self) -> tuple[InferWorkload, ...]:
        """One workload for each network."""
        left, kinds = self._left, self._kinds
        reopened = len(self.request.networks) > 1
        found = (left.before + (kinds - 1) * left.kind, left.running + (kinds - 1) * left.kind) if reopened else (0, 0)
        return tuple(InferWorkload(member, left=found) for member in self.request.networks)

    @property
    def _kinds(self) -> int:
        return len({member.model.model.network for member in self.request.networks})

    @property
    def _left(self) -> Left:
        return LEFT[self.request.networks[0].model.engine]

    @property
    def parts(self) -> int:
        """Studies that can be tried."""
        return self.members[0].parts

    def smallest(self, count: int, budget: MemoryBudget) -> "MergedWorkload":
        """The ``count`` studies that need least; each of the others fails."""
        each = [member.needs() for member in self.members]
        needs = {name: max(one[name] for one in each) for name in each[0]}
        return replace(self, request=self.request.without(refused_studies(self.request.inputs, needs, count, budget)))

    def settings(self) -> Iterator[Setting]:
        """Yield each setting of a network that all others can take too, in their way."""
        offered = [[dict(setting) for setting in member.settings()] for member in self.members]
        seen: list[Setting] = []
        for setting in (each for network in offered for each in network):
            own = [member.request.own(setting) for member in self.members]
            if all(one in network for one, network in zip(own, offered, strict=True)):
                shared = {**setting, **self._stated}
                if shared not in seen:
                    seen.append(shared)
                    yield shared

    @property
    def _stated(self) -> Setting:
        """What differs between networks and is not the planner's to choose."""
        choices = [member.model for member in self.request.networks]
        return {
            "tile": " ".join(dict.fromkeys(text(choice.tile) for choice in choices)),
            "overlap": " ".join(dict.fromkeys(f"{choice.overlap:g}" for choice in choices)),
            "precision": " ".join(dict.fromkeys(choice.precision for choice in choices)),
            "networks": len(choices),
        }

    def probes(self, setting: Setting) -> Sequence[Probe]:
        """The baseline and all engines."""
        probes = [p for member in self.members for p in member.probes(member.request.own(_plain(setting)))]
        return list(dict.fromkeys(probes))

    def estimate(self, setting: Setting, costs: CostStore, ceiling: int) -> Footprint | None:
        """Price engines that cannot be measured under the ceiling, as ``InferWorkload.estimate``."""
        found = []
        for member in self.members:
            one = member.estimate(member.request.own(_plain(setting)), costs, ceiling)
            if one is None:
                return None
            found.append(one)
        return self._together(found)

    def footprint(self, setting: Setting, costs: Costs) -> Footprint:
        """In each phase, that of the network which needs most; and the label map's."""
        return self._together([member.footprint(member.request.own(_plain(setting)), costs) for member in self.members])

    def remedies(self) -> Iterator[tuple[str, Workload]]:
        """Smaller tiles, where all networks have the same and can run on them."""
        if len({member.model.tile for member in self.request.networks}) == 1:
            first, *others = [dict(member.remedies()) for member in self.members]
            for change, smaller in first.items():
                if all(change in offered for offered in others):
                    assert isinstance(smaller, InferWorkload)
                    yield change, replace(self, request=self.request.with_tile(smaller.request.model.tile))

    def seconds(self, setting: Setting) -> float:
        """Those of all networks."""
        return sum(member.seconds(member.request.own(_plain(setting))) for member in self.members)

    def _together(self, footprints: Sequence[Footprint]) -> Footprint:
        phases = dict.fromkeys(phase for one in footprints for phase in one.phases())
        terms = [term for term in footprints[0].terms if ALL in term.phases]
        for phase in phases:
            most = max(footprints, key=lambda one: one.phases().get(phase, 0))
            own = [term for term in most.terms if phase in term.phases]
            terms += [replace(term, phases=(phase,)) for term in own]
        return Footprint.of([*terms, *self._map_terms()])

    def _map_terms(self) -> Iterator[Term]:
        """Terms of the shared label map: a plane while it is merged, and all that is made of the whole."""
        outputs, member = self.request.outputs, self.members[0]
        after = (WRITE, *((PREVIEW,) if outputs.preview else ()), *((STOW,) if outputs.stow else ()))
        if "dicom-seg" in outputs.types:
            after = (TEMPLATE, *after)
            yield Term("SEG template", template_bytes(outputs.types, len(outputs.labels)), "measured", (TEMPLATE,))
        yield Term("small objects", OBJECTS_BYTES, "measured", after)
        yield Term("end of the heap", glibc.HUGE_PAGE, "measured", after)
        closed = self._left.after + (self._kinds - 1) * self._left.kind
        yield Term("left by the networks", closed, "measured", after)
        written = self.request.dtype.itemsize
        sources = [label_dtype(one.model.model.written).itemsize for one in self.request.networks]
        shapes = [grid.volume.shape for grid in member.usable]
        plane = max((x * y for x, y, _ in shapes), default=0)
        merging = [merging_bytes((x, y, 1), written, max(sources)) for x, y, _ in shapes]
        yield Term("merging", max(merging, default=0), "analytic", (INFER,))
        if self.request.options.crop_first:
            boxes = (
                focus_bytes(
                    grid.volume.shape,
                    grid.whole,
                    grid.volume.dtype.itemsize,
                    row_depth(grid.tiles, grid.volume.shape, grid.to_file[2] if grid.resampled else None),
                    max(sources),
                )
                for one in self.request.members
                for grid in InferWorkload(one).usable
            )
            coarse = [InferWorkload(one.locator) for one in self.request.members if one.locator]
            parts = (components_bytes(grid.tiles.shape) for one in coarse for grid in one.usable)
            yield Term("box", max((*boxes, *parts), default=0), "analytic", (INFER,))
        yield Term("label plane", plane * written, "analytic", (WRITE,))
        classes = len(outputs.labels)
        prices = [
            outputs_bytes(
                outputs.types,
                grid.volume,
                classes,
                with_statistics=outputs.statistics,
                split=outputs.split,
                largest=max(label.value for label in outputs.labels),
            )
            for grid in member.usable
        ]
        yield Term("outputs", max((price.peak for price in prices), default=0), "measured", (WRITE,))
        if self.request.options.remove_small:
            yield Term("components", max(map(components_bytes, shapes), default=0), "measured", (WRITE,))
        yield Term("reading", max(map(reader_bytes, member.usable), default=0), "measured", after)
        if outputs.preview:
            yield Term("preview", PREVIEW_BYTES, "measured", (PREVIEW,))
            yield Term("statistics", max(map(pass_bytes, member.usable), default=0), "analytic", (PREVIEW,))
        yield Term("network", NETWORK_BYTES if outputs.stow else 0, "measured", (STOW,))


def _plain(setting: Setting) -> Setting:
    """A setting without what only several networks have."""
    return {name: value for name, value in setting.items() if name != "networks"}
