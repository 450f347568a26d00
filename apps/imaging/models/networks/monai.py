"""Import MONAI without its optional libraries.

A plain import of MONAI also imports every optional library that it finds (pandas, nibabel, pydicom, scipy, PIL): 159
MiB on top of torch, against 23 MiB without them.
"""

import sys
from importlib.abc import MetaPathFinder

_OPTIONAL = """
PIL cucim cupy fire gdown h5py huggingface_hub ignite itk lmdb matplotlib mlflow nibabel ninja nrrd numba onnx
onnxruntime openslide pandas psutil pyarrow pydicom pynvml requests scipy skimage sklearn tensorboard tensorboardX
tensorrt tifffile torchvision transformers zarr
"""


class _Refuse(MetaPathFinder):
    """Import hook under which MONAI's optional libraries seem not to be installed; loaded ones stay loaded."""

    names = frozenset(_OPTIONAL.split())

    def find_spec(self, fullname: str, path: object, target: object = None) -> None:
        if fullname.partition(".")[0] in self.names:
            raise ModuleNotFoundError(f"{fullname} is not imported here", name=fullname)


def import_monai() -> None:
    """Import MONAI; every use of MONAI in peakline comes after this call."""
    if "monai" in sys.modules:
        return
    refuse = _Refuse()
    sys.meta_path.insert(0, refuse)
    try:
        import monai.networks.nets  # noqa: F401
    finally:
        sys.meta_path.remove(refuse)
