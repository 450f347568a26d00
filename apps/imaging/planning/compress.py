"""Memory of ``imaging compress``: pure prices."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod

from apps.imaging.compression import traced_pass
from apps.imaging.compression.calibration import CALIBRATE
from apps.imaging.compression.quantization import QUANTISE, CompressRequest
from apps.imaging.compression.shrinking import EXPORT, SHRINK, ShrinkRequest, exported_tile
from apps.imaging.inference.network_grid import NetworkGrid
from apps.imaging.models.stored_weights import stored_parameters
from apps.imaging.planning import baselines
from apps.imaging.planning.reading import LIBRARIES, OBJECTS_BYTES, input_bytes, pass_bytes, reader_bytes
from common.engines import quantization
from common.memory.costs import baseline, trace
from common.memory.costs.probes import Costs, Probe
from common.memory.footprint import Footprint, Term
from common.memory.plan.plan import OneSetting, Setting
from common.memory.process.budget import MIB
from common.tiling.blend import FLOAT

SPREAD = 1.05
"""Quantisations differ from run to run by up to this factor."""
COPIES, EXPORT_COPIES = 4.5, 5
"""Sizes of the network in float32 that are held at a time while it is cut, and while it is exported and written
(SegResNet, UNet, DynUNet and BasicUNet of 2.3 to 5.5 MiB: 3.8 more for each with --low-rank, 3.5 and less with
--prune; the export 3.9)."""
WALK_BYTES, EXPORT_BYTES = 6 * MIB, 12 * MIB
"""The rest of both (the same networks: 0 to 6 MiB, 2 to 10 MiB)."""
TRACED_PASSES = 4.5
"""Tensors of one pass that the exporter's trace holds (BasicUNet, 13 MiB a pass: 4.4)."""


@dataclass(frozen=True, slots=True)
class CompressWorkload:
    """``imaging compress --int8``: volumes one after the other, then NNCF."""

    request: CompressRequest
    name: str = "imaging compress"

    def settings(self) -> Iterator[Setting]:
        """The only setting."""
        options = self.request.options
        yield {"precision": "int8", "tiles": options.tiles} if options.int8 else {"precision": "int8 weights"}

    def probes(self, setting: Setting) -> Sequence[Probe]:
        """The baseline, and a quantisation with noise."""
        model, threads = self.request.model, self.request.options.threads
        return [
            baseline.probe(baselines.COMPRESS, libraries=(*LIBRARIES, *quantization.LIBRARIES), threads=threads),
            quantization.probe(
                warm_up=baselines.COMPRESS,
                threads=threads,
                sha256=model.network_sha256,
                model_dir=str(model.directory),
                tile=model.patch,
                weights_only=self.request.options.int8_weights,
            ),
        ]

    def footprint(self, setting: Setting, costs: Costs) -> Footprint:
        """Baseline, the reading of a volume, and the quantisation."""
        base, measured = self.probes(setting)
        model = self.request.model
        tile = prod(model.patch) * len(model.channels) * FLOAT
        terms = [
            Term("small objects", OBJECTS_BYTES, "measured", (CALIBRATE, QUANTISE)),
            *_reading(self.request.grids),
            Term("tiles", 2 * tile, "analytic", (CALIBRATE, QUANTISE)),
            Term("quantisation", int(SPREAD * costs[measured]["bytes"]), "measured", (QUANTISE,)),
        ]
        return Footprint.of([*baseline.terms(costs, base), *terms])

    def seconds(self, setting: Setting) -> float:
        """Any constant: there is one setting to choose."""
        return 1.0


def _reading(grids: Sequence[NetworkGrid]) -> list[Term]:
    """The reading of volumes, one after the other; nothing if there are none."""
    return [
        Term("input planes", max((input_bytes(grid).peak for grid in grids), default=0), "analytic", (CALIBRATE,)),
        Term("statistics", max(map(pass_bytes, grids), default=0), "analytic", (CALIBRATE,)),
        Term("reading", max(map(reader_bytes, grids), default=0), "measured", (CALIBRATE,)),
    ]


@dataclass(frozen=True, slots=True)
class ShrinkWorkload(OneSetting):
    """``imaging compress`` for a smaller network: volumes if they decide what goes, the network, its export."""

    request: ShrinkRequest
    name: str = "imaging compress"

    def probes(self, setting: Setting) -> Sequence[Probe]:
        """The baseline, a pass over the tile of the export, and one over a patch if images decide what goes."""
        request, model = self.request, self.request.model
        libraries, threads = (*LIBRARIES, "torch", "monai", "onnx", "safetensors"), request.options.threads
        warm_up = baselines.of_compress(int8=False, images=request.options.needs_images)
        base = baseline.probe(warm_up, libraries=libraries, threads=threads)
        passes = [(exported_tile(model), False)]
        if request.grids:
            passes.append((model.patch, request.backward))
        traced = [
            trace.probe(
                traced_pass.PASS,
                warm_up=baselines.TRACE,
                libraries=("torch", "monai"),
                threads=threads,
                network=model.network,
                arguments=dict(model.arguments),
                tile=tile,
                backward=backward,
            )
            for tile, backward in passes
        ]
        return [base, *traced]

    def footprint(self, setting: Setting, costs: Costs) -> Footprint:
        """Baseline, the weights as often as they are held, and what is measured on images."""
        request, model = self.request, self.request.model
        base, small, *others = self.probes(setting)
        weights = stored_parameters(model.directory) * FLOAT
        tile = prod(model.patch) * model.inputs * FLOAT if request.grids else 0
        traced = int(costs[small]["activations"] + costs[small]["workspace"] + costs[small]["kernels"])
        measured = ("activations", "workspace", "gradients", "kernels", "unseen")
        passing = sum(int(costs[one][name]) for one in others for name in measured)
        terms = [
            *_reading(request.grids),
            Term("tiles", 2 * tile, "analytic", (CALIBRATE, SHRINK)),
            Term("small objects", OBJECTS_BYTES if request.grids else 0, "measured", (CALIBRATE, SHRINK)),
            Term("copies of the weights", int(COPIES * weights), "measured", (SHRINK,)),
            Term("following channels", WALK_BYTES, "measured", (SHRINK,)),
            Term("pass over a small tile", traced, "replayed", (SHRINK,)),
            Term("traced passes", int(TRACED_PASSES * traced), "measured", (EXPORT,)),
            Term("passes over tiles", passing, "replayed", (SHRINK,)),
            Term("copies of the weights for the export", EXPORT_COPIES * weights, "measured", (EXPORT,)),
            Term("ONNX export", EXPORT_BYTES, "measured", (EXPORT,)),
        ]
        return Footprint.of([*baseline.terms(costs, base), *terms])
