"""Names of the warm-up functions: a child measures a command's baseline by one, and the command itself calls it too.

They are strings, because the functions (``apps.imaging.warm_up``) load libraries that planning does not import.
"""

from collections.abc import Mapping

OPENVINO = "apps.imaging.warm_up:openvino"
ONNXRUNTIME = "apps.imaging.warm_up:onnxruntime"
TORCH = "apps.imaging.warm_up:torch"
COMPRESS = "apps.imaging.warm_up:compress"
SHRINK = "apps.imaging.warm_up:shrink"
SHRINK_ON_IMAGES = "apps.imaging.warm_up:shrink_on_images"
TRAIN = "apps.imaging.warm_up:train"
TRAIN_WITH_EVENTS = "apps.imaging.warm_up:train_with_events"
RANKS = "apps.imaging.warm_up:train_over_ranks"
RANKS_WITH_EVENTS = "apps.imaging.warm_up:train_over_ranks_with_events"
TRACE = "apps.imaging.warm_up:trace"
FINGERPRINT = "apps.imaging.warm_up:fingerprint"
EVALUATE = "apps.imaging.warm_up:evaluate"
ENSEMBLE = "apps.imaging.warm_up:ensemble"


def of_training(*, events: bool, ranks: int = 1) -> str:
    """The warm-up of a training, which may write event files for TensorBoard, and may run over several ranks."""
    if ranks > 1:
        return RANKS_WITH_EVENTS if events else RANKS
    return TRAIN_WITH_EVENTS if events else TRAIN


def of_compress(*, int8: bool, images: bool) -> str:
    """The warm-up of ``imaging compress``, where images may decide what a smaller network loses."""
    if int8:
        return COMPRESS
    return SHRINK_ON_IMAGES if images else SHRINK


INFER: Mapping[str, str] = {"openvino": OPENVINO, "onnxruntime": ONNXRUNTIME, "torch": TORCH}
"""By engine."""
EXPORT: Mapping[str, str] = {"onnx": "apps.imaging.warm_up:export_onnx", "bundle": "apps.imaging.warm_up:export_bundle"}
"""By form."""
