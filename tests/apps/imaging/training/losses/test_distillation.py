"""Soft labels: their loss against torch's own, micro-batches that change nothing, and a teacher that fits."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from apps.imaging.cli import parser
from apps.imaging.models.model_folder import read_model
from apps.imaging.training.losses.distillation import DistillingStep, with_soft_labels
from apps.imaging.training.losses.labels import IGNORED, dice_cross_entropy
from apps.imaging.training.request import TrainRequest
from apps.imaging.training.starting_model import read_teacher
from common.errors import BadInput, UsageError
from common.model_folder import model_path
from tests.messages import refused

SHIPPED = model_path("hippocampus")


def batch_of(ignored: bool) -> tuple[list[torch.Tensor], torch.Tensor]:
    torch.manual_seed(0)
    images, classes = torch.randn(3, 1, 4, 5, 6), torch.randint(0, 3, (3, 4, 5, 6), dtype=torch.uint8)
    if ignored:
        classes[0, :, 2:] = IGNORED
    return [images, classes], torch.randn(3, 3, 4, 5, 6)


@pytest.mark.parametrize("ignored", [False, True])
def test_the_soft_term_is_torchs_cross_entropy_with_probabilities(ignored: bool) -> None:
    batch, teacher = batch_of(ignored)
    logits = torch.randn(3, 3, 4, 5, 6)
    labels = dice_cross_entropy("sample")
    loss = with_soft_labels(labels, 0.5, 3.0)
    sums, counts = loss.sums(logits, [*batch, teacher]), loss.counts([*batch, teacher])  # type: ignore[union-attr]
    assert torch.equal(sums[0], labels.sums(logits, batch)[0])  # type: ignore[union-attr]
    counted = batch[1] != IGNORED
    each = torch.nn.functional.cross_entropy(logits / 3, torch.softmax(teacher / 3, 1), reduction="none")
    expected = 0.5 * 9 * each[counted].mean()
    assert torch.isclose(sums[2] / counts[2], expected, rtol=1e-5)


@pytest.mark.parametrize("dice", ["sample", "batch"])
def test_micro_batches_give_the_gradients_of_the_batch(dice: str) -> None:
    batch, _ = batch_of(ignored=True)
    gradients, losses = [], []
    for micro_batch in (3, 2, 1):
        torch.manual_seed(1)
        network, teacher = (torch.nn.Conv3d(1, 3, 3, padding=1).double() for _ in range(2))
        loss = with_soft_labels(dice_cross_entropy(dice), 1.0, 2.0)
        seen: list[torch.Tensor] = []

        class Plain(torch.optim.SGD):
            def step(self, closure: Any = None) -> None:
                seen.extend(p.grad.clone() for group in self.param_groups for p in group["params"])  # noqa: B023

        step = DistillingStep(network, Plain(network.parameters(), 0.1), loss, micro_batch, teacher=teacher)
        losses.append(float(step([batch[0].double(), batch[1]])))
        gradients.append(torch.cat([one.flatten() for one in seen]))
    assert torch.allclose(gradients[0], gradients[1], rtol=1e-5) and torch.allclose(
        gradients[0], gradients[2], rtol=1e-5
    )
    assert losses[0] == pytest.approx(losses[1], rel=1e-5) and losses[0] == pytest.approx(losses[2], rel=1e-5)


def test_a_teacher_of_its_own_predictions_has_nothing_to_say() -> None:
    batch, teacher = batch_of(ignored=False)
    logits = teacher.clone().requires_grad_()
    loss = with_soft_labels(dice_cross_entropy("sample"), 1.0, 2.0)
    loss.sums(logits, [*batch, teacher])[2].backward()  # type: ignore[union-attr]
    assert logits.grad is not None and float(logits.grad.abs().max()) < 1e-6


def request(folder: Path, *options: object) -> TrainRequest:
    args = parser().parse_args(["train", str(folder), "-o", "model", "-q", *map(str, options)])
    return TrainRequest.of(args.command.request(args))


def test_a_teacher_has_to_see_what_the_network_sees(dataset: Callable[[str], Path]) -> None:
    folder = dataset("msd-hippocampus")
    made = request(folder, "--init", SHIPPED, "--distill", SHIPPED)
    model = read_model(SHIPPED)
    assert made.recipe.teacher is not None and made.recipe.teacher["weights"] == model.weights_sha256
    assert list(made.data.dataset.labels.values()) == ["background", "Anterior", "Posterior"]  # as it names them
    data, operations = made.data.dataset, made.data.operations
    for change, fact in (
        ({"spacing": (1.0, 1.0, 2.0)}, "size of voxels"),
        ({"labels": {0: "background", 1: "one"}}, "labels"),
        ({"channels": ["MRI", "CT"]}, "channels"),
    ):
        with refused(BadInput, "--distill", fact):
            read_teacher(SHIPPED, replace(data, **change), operations, [(40, 56, 40)])
    with refused(BadInput, "--distill", "intensities"):
        read_teacher(SHIPPED, data, [[]], [(40, 56, 40)])
    with refused(BadInput, "--distill", "41x56x40"):
        read_teacher(SHIPPED, data, operations, [(40, 56, 40), (41, 56, 40)])
    with refused(UsageError, "temperature=0"):
        request(folder, "--distill", SHIPPED, "--set", "temperature=0")
