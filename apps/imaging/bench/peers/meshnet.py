"""MeshNet's published networks of 18 classes, by PyTorch, for comparison with the model ``brain``.

``python -m apps.imaging.bench.peers.meshnet FOLDER IMAGE OUT [HIGHEST]`` writes the labels of a NIfTI image on its
grid, numbered as the class table ``brain`` numbers them, and prints its peak. FOLDER is ``meshnet/model18cls`` or
``meshnet/model30chan18cls`` of a checkout of neuroneural/brainchop-models. The steps are those of their program,
brainchop: 256^3 voxels of 1 mm whose axes run left, down and forward, 8 bits, from 0 to 1, the whole volume at once,
and of the labelled voxels the largest connected part.
"""

import json
import os
import resource
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from apps.imaging.training.data.label_table import read_table
from common.resources import data_folder

if TYPE_CHECKING:
    import torch

MESHNET = Path(os.environ.get("PEAKLINE_MESHNET", ""))
"""A checkout of neuroneural/brainchop-models, for ``make bench-imaging ONLY='brain-*'``."""
NETWORKS = {"meshnet": "meshnet/model18cls", "meshnet30": "meshnet/model30chan18cls"}
"""The folders of a checkout: the networks of 21 and of 30 channels."""
TABLE = data_folder() / "label_tables" / "brain.json"
SIDE = 256
PLANES = 16
"""Planes of a layer that are computed at a time: a layer then takes its input, its output and one part of each."""
NAMES: Mapping[str, str] = {
    "Unknown": "background",
    "Cerebral-White-Matter": "cerebral white matter",
    "Cerebral-Cortex": "cerebral cortex",
    "Lateral-Ventricle": "lateral ventricle",
    "Inferior-Lateral-Ventricle": "inferior lateral ventricle",
    "Cerebellum-White-Matter": "cerebellar white matter",
    "Cerebellum-Cortex": "cerebellar cortex",
    "Thalamus": "thalamus",
    "Caudate": "caudate",
    "Putamen": "putamen",
    "Pallidum": "pallidum",
    "3rd-Ventricle": "third ventricle",
    "4th-Ventricle": "fourth ventricle",
    "Brain-Stem": "brainstem",
    "Hippocampus": "hippocampus",
    "Amygdala": "amygdala",
    "Accumbens-area": "accumbens",
    "VentralDC": "ventral diencephalon",
}
"""MeshNet's classes, left and right in one, and the same structures in the class table ``brain``."""


@dataclass(frozen=True, slots=True)
class Layer:
    """A convolution; all but the last are followed by an ELU."""

    inputs: int
    outputs: int
    kernel: int
    dilation: int


def read_layers(description: Mapping[str, Any]) -> list[Layer]:
    """Read the layers of a ``model.json``, which is brainchop's list or a TensorFlow.js model.

    Raises
    ------
    ValueError
        If the network is not one of convolutions with biases and ELUs alone.
    """
    if "layers" in description:
        rows = description["layers"]
        plain = description["elu"] and description["bias"] and not description["bnorm"]
        layers = [Layer(row["in_channels"], row["out_channels"], row["kernel_size"], row["dilation"]) for row in rows]
    else:
        rows, layers = description["modelTopology"]["model_config"]["config"]["layers"], []
        for row in (row["config"] for row in rows if row["class_name"] == "Conv3D"):
            inputs = layers[-1].outputs if layers else 1
            layers.append(Layer(inputs, row["filters"], row["kernel_size"][0], row["dilation_rate"][0]))
        plain = [row["class_name"] for row in rows] == ["InputLayer", *["Conv3D", "Activation"] * len(layers)][:-1]
        plain &= {row["config"].get("activation", "elu") for row in rows if row["class_name"] == "Activation"} == {
            "elu"
        }
    if not plain:
        raise ValueError("meshnet: model.json has other layers than convolutions and ELUs")
    return layers


def build(layers: Sequence[Layer]) -> "list[torch.nn.Conv3d]":
    """Make the convolutions, which keep the size of the volume."""
    from torch import nn

    return [
        nn.Conv3d(
            layer.inputs,
            layer.outputs,
            layer.kernel,
            padding=layer.dilation * (layer.kernel // 2),
            dilation=layer.dilation,
        )
        for layer in layers
    ]


def load(folder: Path) -> "list[torch.nn.Conv3d]":
    """Build the network of a folder and read its weights, float32 one after the other: kernel (3), inputs, outputs."""
    import torch

    layers = read_layers(json.loads((folder / "model.json").read_text()))
    network, values, at = build(layers), np.fromfile(folder / "model.bin", "<f4"), 0
    for layer, module in zip(layers, network, strict=True):
        shape = (*[layer.kernel] * 3, layer.inputs, layer.outputs)
        end = at + int(np.prod(shape))
        weight, bias = values[at:end].reshape(shape), values[end : end + layer.outputs]
        at = end + layer.outputs
        module.load_state_dict({"weight": torch.tensor(weight.transpose(4, 3, 0, 1, 2)), "bias": torch.tensor(bias)})
    if at != values.size:
        raise ValueError(f"meshnet: {folder / 'model.bin'} has {values.size} weights, its model.json {at}")
    return network


def to_bytes(values: npt.NDArray[np.floating], highest: float | None = None) -> npt.NDArray[np.uint8]:
    """Scale to 8 bits as FastSurfer's ``conform`` does: from the smallest value to the 0.999 quantile without zeros.

    ``highest`` stands for that quantile where the image has lost what was brightest, the fat around the skull.
    """
    low = float(values.min())
    high = float(np.quantile(values[np.abs(values) > 1e-15], 0.999)) if highest is None else highest
    scaled: npt.NDArray[np.uint8] = np.rint(np.clip((values - low) * (255 / (high - low)), 0, 255)).astype(np.uint8)
    return scaled


def predict(network: "Sequence[torch.nn.Conv3d]", image: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Classes of a volume, (x, y, z), with zeros beyond its border."""
    import torch
    from torch.nn import functional

    *hidden, last = network
    with torch.inference_mode():
        values = torch.from_numpy(image.astype(np.float32))
        features = (values / 255)[None, None]
        for module in hidden:
            following = torch.empty(1, module.out_channels, *image.shape)
            for start in range(0, image.shape[0], PLANES):
                following[:, :, start : start + PLANES] = functional.elu_(_planes(module, features, start))
            features = following
        parts = [_planes(last, features, start).argmax(1)[0] for start in range(0, image.shape[0], PLANES)]
        labels: npt.NDArray[np.uint8] = torch.cat(parts).to(torch.uint8).numpy()
        return labels


def _planes(module: "torch.nn.Conv3d", features: "torch.Tensor", start: int) -> "torch.Tensor":
    """``PLANES`` planes of a convolution's result, from ``start`` on."""
    from torch.nn import functional

    size, reach = features.shape[2], int(module.padding[0])
    stop = min(size, start + PLANES)
    part = features[:, :, max(0, start - reach) : stop + reach]
    part = functional.pad(part, (0, 0, 0, 0, max(0, reach - start), max(0, stop + reach - size)))
    return functional.conv3d(part, module.weight, module.bias, padding=(0, reach, reach), dilation=module.dilation)


def largest_part(labels: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Set all to zero but the largest part of the labelled voxels whose voxels touch, at a corner at least."""
    from scipy import ndimage

    parts, count = ndimage.label(labels > 0, np.ones((3, 3, 3)))
    if count:
        labels[parts != 1 + int(np.argmax(np.bincount(parts.ravel())[1:]))] = 0
    return labels


def segment(folder: Path, image: Path, out: Path, highest: float | None = None) -> None:
    """Write the labels of an image on its grid, numbered as the class table ``brain`` numbers them."""
    import nibabel as nib
    from nibabel.processing import conform, resample_from_to

    source: Any = nib.load(image)
    conformed: Any = conform(source, (SIDE,) * 3, order=1, orientation="LIA")
    found = largest_part(predict(load(folder), to_bytes(conformed.get_fdata(dtype=np.float32), highest)))
    values = {name: value for value, name in read_table(TABLE).labels.items()}
    names = json.loads((folder / "colormap.json").read_text())["labels"]
    numbered = np.array([values[NAMES[name]] for name in names], np.uint8)[found]
    there = resample_from_to(nib.Nifti1Image(numbered, conformed.affine), (source.shape, source.affine), order=0)
    nib.save(there, out)


if __name__ == "__main__":
    network, image, out = map(Path, sys.argv[1:4])
    segment(network, image, out, *map(float, sys.argv[4:]))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    sys.stdout.write(json.dumps({"peak_bytes": peak}) + "\n")
