"""Names of the warm-up functions: a child measures a command's baseline by one, and the command itself calls it too.

They are strings, because the functions (``apps.imaging.warm_up``) load libraries that planning does not import.
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
