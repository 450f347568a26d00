"""VISTA3D in its automatic mode, in which it is asked for classes by number: a segmentation network like any other.

Each class is a vector that a small network makes of the class's number, and its logits are the products of that vector
with the features of each voxel. Without a user's clicks these vectors are constants, so that they are the weights of a
1x1x1 convolution; with a first class whose logits are zero, the background, a voxel's label is that of the largest.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    Tensors = Mapping[str, torch.Tensor]

ENCODER, MAPPING, CLASSES = "image_encoder.", "class_head.image_post_mapping.", "class_head."
CLICKS = ("image_encoder.up_layers.", "point_head.")
"""Weights that only answer to clicks."""
BLOCKS_DOWN = (1, 2, 2, 4, 4)


class AutomaticVista3D(nn.Module):
    """Logits of the background and of some of VISTA3D's classes.

    Parameters
    ----------
    features
        Channels in front of the last layer, and at the first level.
    """

    def __init__(self, in_channels: int, out_channels: int, features: int = 48) -> None:
        from monai.networks.nets.segresnet_ds import SegResNetDS2
        from monai.networks.nets.vista3d import ClassMappingClassify

        super().__init__()
        self.image_encoder = SegResNetDS2(
            in_channels=in_channels,
            blocks_down=BLOCKS_DOWN,
            norm="instance",
            out_channels=features,
            init_filters=features,
            dsdepth=1,
        )
        # The branch of clicks is never run; MONAI's forward asks for its length.
        self.image_encoder.up_layers = nn.ModuleList(nn.Identity() for _ in self.image_encoder.up_layers)
        self.mapping = ClassMappingClassify(n_classes=1, feature_size=features).image_post_mapping
        self.head = nn.Conv3d(features, out_channels, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(B, Cin, x, y, z) -> (B, Cout, x, y, z), sides multiples of 16."""
        _, features = self.image_encoder(images, with_point=False, with_label=True)
        logits: torch.Tensor = self.head(self.mapping(features))
        return logits


def automatic(tensors: "Tensors", classes: Sequence[int]) -> "dict[str, torch.Tensor]":
    """Weights of an ``AutomaticVista3D`` for some classes, of MONAI's ``VISTA3D``.

    Raises
    ------
    KeyError, IndexError
        Weights of another network, or a class that it does not have.
    """
    found = {key: tensor for key, tensor in tensors.items() if key.startswith(ENCODER) and not key.startswith(CLICKS)}
    found |= {f"mapping.{key[len(MAPPING) :]}": tensor for key, tensor in tensors.items() if key.startswith(MAPPING)}
    vectors = _vectors(tensors, tensors[f"{CLASSES}class_embeddings.weight"][[*classes]])
    weight = torch.cat([torch.zeros_like(vectors[:1]), vectors])
    return found | {"head.weight": weight[:, :, None, None, None], "head.bias": torch.zeros(len(weight))}


def _vectors(tensors: "Tensors", embeddings: torch.Tensor) -> torch.Tensor:
    """(classes, features) of ``embeddings``, by the class head's two layers."""
    first, second = (
        [tensors[f"{CLASSES}mlp.{layer}.{kind}"] for kind in ("weight", "bias")] for layer in (0, 3)
    )  # fmt: skip
    values = nn.functional.linear(embeddings.float(), *first)
    values = nn.functional.layer_norm(values, values.shape[1:])  # an instance norm of one channel
    return nn.functional.linear(nn.functional.gelu(values), *second)
