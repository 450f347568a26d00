"""Deep supervision: the gradients of nnU-Net's and MONAI's own, exact in parts; a model that is written has none."""

from dataclasses import asdict, replace
from math import prod

import pytest
import torch
from monai.losses import DiceCELoss
from monai.networks.nets.dynunet import DynUNet
from torch.nn.functional import interpolate

from apps.imaging.models.networks import registry
from apps.imaging.training import traced_step
from apps.imaging.training.losses import deep_supervision
from apps.imaging.training.recipe import Recipe, make_step
from common.errors import UsageError
from common.memory.costs import trace
from tests.messages import refused

STRIDES = [1, 2, [2, 2, 1], 2, 2]
LAYERS = {
    "dynunet": {"filters": [4, 6, 8, 8, 8], "strides": STRIDES},
    "plainconvunet": {"features_per_stage": [4, 6, 8, 8, 8], "strides": STRIDES},
    "residualencoderunet": {"features_per_stage": [4, 6, 8, 8, 8], "strides": STRIDES},
}
PATCH = (32, 32, 16)
RATE = 0.5


def recipe_of(name: str, dice: str = "sample") -> Recipe:
    return Recipe(
        network=name,
        arguments=registry.arguments(name, LAYERS[name], in_channels=1, out_channels=3),
        patch=PATCH,
        batch=2,
        steps=10,
        seconds=None,
        learning_rate=RATE,
        weight_decay=0.0,
        clip=0.0,
        mirror="",
        validation_cases=0,
        fold=None,
        seed=0,
        optimizer="sgd",
        dice=dice,
        deep_supervision="on",
    )


def batch_of() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [
        torch.randn(2, 1, *PATCH, generator=generator),
        torch.randint(0, 3, (2, *PATCH), generator=generator, dtype=torch.uint8),
    ]


def reference(name: str, recipe: Recipe) -> torch.nn.Module:
    """The library's own network with deep supervision."""
    if name == "dynunet":
        _, arguments = registry.monai_call(name, recipe.arguments)
        return DynUNet(**arguments, deep_supervision=True, deep_supr_num=2)
    from dynamic_network_architectures.architectures import unet

    from apps.imaging.models.networks import nnunet

    arguments = nnunet.checked(recipe.arguments)
    for key in nnunet.LAYERS & set(arguments):
        arguments[key] = getattr(torch.nn, arguments[key]) if arguments[key] is not None else None
    channels = {"input_channels": arguments.pop("in_channels"), "num_classes": arguments.pop("out_channels")}
    made: torch.nn.Module = getattr(unet, nnunet.NETWORKS[name])(**channels, **arguments, deep_supervision=True)
    return made


@pytest.mark.parametrize("dice", ["sample", "batch"])
@pytest.mark.parametrize("name", list(LAYERS))
def test_a_step_is_that_of_the_librarys_network_in_one_batch_and_in_parts(name: str, dice: str) -> None:
    recipe, (image, target) = recipe_of(name, dice), batch_of()
    after: list[dict[str, torch.Tensor]] = []
    for micro_batch, checkpoint in ((2, "none"), (1, "8/8")):
        torch.manual_seed(0)
        network, _, step = make_step(recipe, micro_batch=micro_batch, amp="off", checkpoint=checkpoint)
        if not after:
            other = reference(name, recipe)
            names = {"coarse_heads.0.": "deep_supervision_heads.0.conv.conv."}
            names |= {"coarse_heads.1.": "deep_supervision_heads.1.conv.conv."}
            state = registry.weights(network)
            for ours, its in names.items():
                state = {key.replace(ours, its): tensor.clone() for key, tensor in state.items()}
            other.load_state_dict(state, strict=False)
        loss = float(step([image, target]))
        after.append({key: tensor.clone() for key, tensor in registry.weights(network).items()})
    outputs = other(image)
    levels = [outputs[:, 0], *other.heads] if name == "dynunet" else outputs  # type: ignore[misc]
    weights = [4 / 7, 2 / 7, 1 / 7]
    compared = DiceCELoss(
        softmax=True, include_background=False, to_onehot_y=True, batch=dice == "batch", smooth_nr=1e-5, smooth_dr=1e-5
    )
    expected = sum(
        weight * compared(logits, interpolate(target[:, None].float(), logits.shape[2:], mode="nearest-exact"))
        for weight, logits in zip(
            weights, levels, strict=False
        )  # nnU-Net has a head at the coarsest level, of weight 0
    )
    assert loss == pytest.approx(float(expected.detach()), rel=1e-5)
    expected.backward()
    updated = {key: p - (RATE * p.grad if p.grad is not None else 0) for key, p in other.named_parameters()}
    for part in after:
        for key, tensor in part.items():
            for ours, its in names.items():
                key = key.replace(ours, its)
            assert torch.allclose(tensor, updated[key], atol=2e-5), key


def test_the_network_that_is_written_has_no_further_heads() -> None:
    recipe = recipe_of("dynunet")
    network, _, _ = make_step(recipe, micro_batch=1, amp="off", checkpoint="none")
    weights = registry.weights(network)
    plain = registry.build(recipe.network, recipe.arguments)
    assert weights.keys() - registry.weights(plain).keys() == {
        f"{deep_supervision.HEADS}.{level}.{kind}" for level in (0, 1) for kind in ("weight", "bias")
    }
    registry.load_weights(plain, deep_supervision.of_inference(weights))
    image = batch_of()[0]
    assert torch.equal(network.eval()(image), plain.eval()(image))


def test_what_has_no_levels_to_supervise_is_refused() -> None:
    with refused(UsageError, "deep_supervision", "unet", "dynunet"):
        deep_supervision.strides("unet", registry.arguments("unet", {}, in_channels=1, out_channels=2))
    three = registry.arguments("dynunet", {"filters": [4, 8, 8], "strides": [1, 2, 2]}, in_channels=1, out_channels=2)
    with refused(UsageError, "deep_supervision", "at least 4", "has 3"):
        deep_supervision.strides("dynunet", three)
    assert deep_supervision.strides("dynunet", recipe_of("dynunet").arguments) == [(1, 1, 1), (2, 2, 2), (4, 4, 2)]


def test_the_plan_has_the_bytes_of_heads_and_losses() -> None:
    def priced(switch: str) -> dict[str, float]:
        recipe = asdict(replace(recipe_of("dynunet"), deep_supervision=switch))
        return trace.price(
            lambda: traced_step.step(recipe=recipe, micro_batch=2, parts=1, amp="off", checkpoint="none")
        )

    torch.manual_seed(0)
    plain, more = priced("off"), priced("on")
    heads = 4 * sum(features * 3 + 3 for features in (6, 8))
    assert more["parameters"] - plain["parameters"] == more["gradients"] - plain["gradients"] == heads
    coarser = 4 * 2 * 3 * (prod(PATCH) // 8 + prod(PATCH) // 32 // 4)  # probabilities, kept until the backward pass
    assert more["activations"] > plain["activations"] + 0.5 * coarser
