"""Names of the warm-ups, by which a command's baseline is measured in a child and repeated in its own process.

They are strings, because the functions load the libraries: planning imports none of them (``apps.imaging.warm_up``).
"""

from collections.abc import Mapping

OPENVINO = "apps.imaging.warm_up:openvino"
ONNXRUNTIME = "apps.imaging.warm_up:onnxruntime"
TORCH = "apps.imaging.warm_up:torch"
COMPRESS = "apps.imaging.warm_up:compress"
TRAIN = "apps.imaging.warm_up:train"
TRACE = "apps.imaging.warm_up:trace"
EVALUATE = "apps.imaging.warm_up:evaluate"

INFER: Mapping[str, str] = {"openvino": OPENVINO, "onnxruntime": ONNXRUNTIME, "torch": TORCH}
"""By engine."""
