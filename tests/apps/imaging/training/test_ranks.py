"""Segmentation networks that two ranks train follow the course of one process."""

import json
from pathlib import Path

from tests.ranks import over_ranks

STEPS = """
import json
import numpy as np
from dataclasses import replace
from apps.imaging.models.networks.registry import arguments
from apps.imaging.training.data.patch_sampling import Sampler, Volumes
from apps.imaging.training.recipe import Recipe, make_step
from apps.imaging.training.validation import validate

volumes, random = Volumes(), np.random.default_rng(0)
for _ in range(3):
    truth = (random.standard_normal((12, 12, 12)) > 1).astype(np.uint8)
    volumes.add((truth + random.normal(0, 0.2, truth.shape)).astype(np.float32)[None], truth)
layers = {"init_filters": 8, "blocks_down": [1, 1], "blocks_up": [1]}
recipe = Recipe(
    network="segresnet",
    arguments=arguments("segresnet", layers, in_channels=1, out_channels=2),
    patch=(8, 8, 8), batch=3, steps=4, seconds=None, learning_rate=1e-2, weight_decay=1e-3, clip=0.5, mirror="xyz",
    validation_cases=1, fold=None, seed=1,
)

def trained(kind, group, double, shared=False):
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64 if double else torch.float32)
    knobs = {"micro_batch": 2, "checkpoint": "none"} if shared else {"micro_batch": 1, "checkpoint": "4/8"}
    network, _, step = make_step(replace(recipe, dice=kind), amp="off", group=group, shared=shared, **knobs)
    draw = Sampler(volumes, recipe.patch, recipe.batch, recipe.seed, recipe.mirror, group.world)
    torch.set_default_dtype(torch.float32)
    losses = []
    for number in range(recipe.steps):
        images, classes = draw(number)
        losses.append(float(step([images.double() if double else images, classes])))
    return losses, network

worst = {}
for double in (True, False):
    for kind in ("sample", "batch"):
        (alone, _), (shared, network) = trained(kind, ALONE, double), trained(kind, group, double)
        parts = trained(kind, group, double, shared=True)[0]
        worst[f"{kind} {double}"] = max(abs(a - b) / abs(a) for c in (shared, parts) for a, b in zip(alone, c))
dice = [validate(network, volumes, range(3), recipe.patch, 2, "off", one) for one in (ALONE, group)]
assert dice[0].tobytes() == dice[1].tobytes() and dice[0].shape == (3, 1)
print(json.dumps(worst))
"""


def test_two_ranks_follow_the_course_of_one_process(tmp_path: Path) -> None:
    for output in over_ranks(STEPS, 2, tmp_path):
        worst = json.loads(output)
        assert max(worst["sample True"], worst["batch True"]) <= 1e-9, worst
        assert max(worst["sample False"], worst["batch False"]) <= 1e-3, worst
