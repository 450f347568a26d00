"""The training step of the ``embedding`` model: losses as written down, exact accumulation, and its price."""

import pytest
import torch
import torch.nn.functional as F

from apps.recsys import losses
from apps.recsys.embedding import ABSENT, Batch, Recipe, largest_batch, make_step
from common.memory import trace


def batch(recipe: Recipe, *, seed: int = 0) -> Batch:
    """Random pairs; histories of different lengths, one empty; a negative that is a pair's own item."""
    torch.manual_seed(seed)
    pairs = torch.randint(recipe.items, (recipe.batch, 1 + recipe.history))
    length = torch.randint(recipe.history + 1, (recipe.batch, 1))
    length[0] = 0
    pairs[:, 1:][torch.arange(recipe.history) >= length] = ABSENT
    every = torch.arange(recipe.items)
    negatives = torch.randint(recipe.items, (recipe.negatives,))
    negatives[0] = pairs[1, 0]
    return Batch(every, every, pairs, negatives, torch.randn(recipe.negatives))


def naive(recipe: Recipe, items: torch.Tensor, taste: torch.Tensor, data: Batch) -> torch.Tensor:
    """The mean loss in float64, pair by pair."""
    total = torch.zeros((), dtype=torch.float64)
    for row in data.pairs:
        known = row[1:][row[1:] != ABSENT]
        user = taste[known].sum(0) / max(1, len(known)) ** 0.5
        other = torch.ones(len(data.negatives), dtype=torch.bool) & (data.negatives != row[0])
        if recipe.loss == "bpr":
            own, rest = items[row[0]] @ user, items[data.negatives] @ user
            total += (F.softplus(rest - own) * other).mean()
            continue
        own = F.cosine_similarity(items[row[0]], user, dim=0)
        rest = F.cosine_similarity(items[data.negatives], user[None])
        if recipe.loss == "ccl":
            total += 1 - own + recipe.negative_weight * ((rest - recipe.margin).relu() * other).mean()
        else:
            own = own / recipe.temperature
            rest = (rest / recipe.temperature - data.correction)[other]
            total += torch.cat([own[None], rest]).logsumexp(0) - own
    return total / len(data.pairs)


@pytest.mark.parametrize("loss", ["softmax", "ccl", "bpr"])
def test_loss_and_step_equal_a_naive_reference(loss: str) -> None:
    recipe = Recipe(30, 8, loss, batch=12, negatives=9, history=5, margin=0.1, negative_weight=3.0)
    torch.manual_seed(1)
    network, _, step = make_step(recipe, micro_batch=5)
    items = network.items.codes.double().clone().requires_grad_()
    taste = network.taste.codes.double().clone().requires_grad_()
    data = batch(recipe)
    expected = naive(recipe, items, taste, data)
    expected.backward()
    assert step(data).item() == pytest.approx(float(expected), rel=1e-5)
    for table, leaf in ((network.items, items), (network.taste, taste)):
        assert leaf.grad is not None
        # After its first step a row has moved by the rate times its gradient over the gradient's root mean square.
        size = leaf.grad.square().mean(1, keepdim=True).sqrt()
        moved = torch.where(size > 1e-9, recipe.learning_rate * leaf.grad / size.clamp(min=1e-12), 0.0)
        torch.testing.assert_close(table.codes.double(), leaf.detach() - moved, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("loss", ["softmax", "ccl", "bpr"])
def test_micro_batches_give_the_same_step(loss: str) -> None:
    recipe = Recipe(40, 8, loss, batch=32, negatives=16, history=6)
    results = []
    for micro_batch in (32, 7):
        torch.manual_seed(1)
        network, _, step = make_step(recipe, micro_batch=micro_batch)
        for seed in range(3):
            step(batch(recipe, seed=seed))
        results.append((network.items.codes, network.taste.codes))
    torch.testing.assert_close(results[0], results[1], atol=1e-5, rtol=1e-4)


def test_losses_ignore_a_negative_of_minus_infinity() -> None:
    scores = torch.tensor([[0.3, -torch.inf, 0.2]], requires_grad=True)
    for each, expected in (
        (losses.softmax, float(torch.tensor([0.3, 0.2]).logsumexp(0) - 0.3)),
        (losses.ranking, float(F.softplus(torch.tensor(-0.1)) / 2)),
        (losses.contrastive(0.1, 4.0), 0.7 + 4 * 0.1 / 2),
    ):
        value = each(scores).sum()
        assert float(value) == pytest.approx(expected)
        value.backward()
        assert scores.grad is not None and scores.grad.isfinite().all()
        scores.grad = None


@pytest.mark.parametrize("kind", ["full", "int8", "int4"])
def test_training_lowers_the_loss(kind: str) -> None:
    recipe = Recipe(40, 16, "softmax", kind, batch=64, negatives=32, history=6)
    torch.manual_seed(1)
    _, _, step = make_step(recipe, micro_batch=64)
    seen = [step(batch(recipe)).item() for _ in range(40)]
    assert seen[-1] < 0.5 * seen[0]


def test_the_step_is_priced_without_running_it() -> None:
    recipe = Recipe(5000, 64, batch=512, negatives=256, history=8)

    def prepare() -> trace.Prepared:
        network, optimizer, step = make_step(recipe, micro_batch=256)
        data = largest_batch(recipe)
        return network, optimizer, lambda: step(data)

    priced = trace.price(prepare)
    assert priced["parameters"] == 2 * 5000 * (4 * 64 + 4)
    loaded = 2 * 4 * 64 * (768 + 4096)  # rows and gradients of both tables
    assert loaded < priced["activations"] < 3 * loaded
