"""Memory of ``imaging export``: pure prices."""

from collections.abc import Sequence
from dataclasses import dataclass

from apps.imaging.exporters.options import ExportRequest
from apps.imaging.models.model_folder import ImagingModel
from apps.imaging.planning import baselines
from apps.imaging.planning.reading import LIBRARIES
from common.engines.base import NETWORK
from common.memory.costs import baseline
from common.memory.costs.probes import Costs, Probe
from common.memory.footprint import Footprint, Term
from common.memory.plan.plan import OneSetting, Setting
from common.memory.process.budget import MIB

EXPORT = "export"
"""The one phase."""
COPIES = {"onnx": 4.2, "bundle": 2}
"""Sizes of ``network.onnx`` that are held at a time: the network as read, with inferred shapes, checked and written;
the module and the tensors that are loaded into it (measured 4.1 and 1.7 with 2.7 and 9.5 MiB)."""
OPENVINO_BYTES = 33 * MIB
"""OpenVINO's libraries and an int8 network that was read, not compiled: 23 MiB on one machine, 31 MiB on another, whose
kernel mapped more of the libraries' files at a time (SegResNet of 0.7 MB)."""
OBJECTS_BYTES = {"onnx": 2 * MIB, "bundle": 6 * MIB}


@dataclass(frozen=True, slots=True)
class ExportWorkload(OneSetting):
    """``imaging export``: libraries, and copies of the weights."""

    request: ExportRequest
    model: ImagingModel
    name: str = "imaging export"

    @property
    def precision(self) -> str:
        """Precision of the network that is written."""
        quantised = self.model.int8 and self.request.form == "onnx"
        return self.request.precision or ("int8" if quantised else "float32")

    def probes(self, setting: Setting) -> Sequence[Probe]:
        """The baseline."""
        form = self.request.form
        libraries = (*LIBRARIES, "onnx") if form == "onnx" else (*LIBRARIES, "torch", "monai")
        return [baseline.probe(baselines.EXPORT[form], libraries=libraries, threads=self.request.threads)]

    def footprint(self, setting: Setting, costs: Costs) -> Footprint:
        """Baseline, and the weights as often as they are held."""
        form, during = self.request.form, (EXPORT,)
        stored = (self.model.directory / NETWORK).stat().st_size
        return Footprint.of(
            [
                *baseline.terms(costs, self.probes(setting)[0]),
                Term("copies of the weights", int(COPIES[form] * stored), "measured", during),
                Term("small objects", OBJECTS_BYTES[form], "measured", during),
                Term("OpenVINO", OPENVINO_BYTES if self.precision == "int8" else 0, "measured", during),
            ]
        )
