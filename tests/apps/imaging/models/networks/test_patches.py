"""Patches that a network cannot take: sides that it cannot halve, or one voxel on its coarsest grid."""

import pytest

from apps.imaging.models.networks import registry
from apps.imaging.models.networks.patches import check_patch, has_one_voxel
from common.errors import UsageError
from tests.messages import refused


def test_a_patch_that_cannot_be_halved_by_axis() -> None:
    complete = registry.arguments("dynunet", {"strides": [1, [2, 2, 1], 2, 2]}, in_channels=1, out_channels=2)
    check_patch("--patch", (16, 8, 4), "dynunet", complete)
    with refused(UsageError, "--patch", "16,8,6", "8,8,4"):
        check_patch("--patch", (16, 8, 6), "dynunet", complete)


@pytest.mark.parametrize("name", list(registry.NETWORKS))
def test_a_patch_of_one_voxel_on_the_coarsest_grid(name: str) -> None:
    """Torch's instance normalisation refuses it, and takes twice one side; SegResNet normalises groups of channels."""
    import torch

    complete = registry.arguments(name, {}, in_channels=1, out_channels=2)
    x, y, z = registry.divisors(name, complete)
    network = registry.build(name, complete)
    if name == "segresnet":
        check_patch("--patch", (x, y, z), name, complete)
        network(torch.zeros(1, 1, x, y, z))
        return
    with refused(UsageError, "--patch", "one voxel", f"{2 * x},{y},{z} or more"):
        check_patch("--patch", (x, y, z), name, complete)
    with pytest.raises(ValueError, match="more than 1 spatial element"):
        network(torch.zeros(1, 1, x, y, z))
    assert not has_one_voxel(name, (2 * x, y, z), complete)
    network(torch.zeros(1, 1, 2 * x, y, z))
