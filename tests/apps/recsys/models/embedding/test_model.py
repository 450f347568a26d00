"""The training step of the ``embedding`` model: losses as written down, exact accumulation, and its price."""

import pytest
import torch
import torch.nn.functional as F

from apps.recsys.models.embedding import losses
from apps.recsys.models.embedding.embedding_config import ABSENT, RATES, EmbeddingConfig
from apps.recsys.models.embedding.model import EmbeddingBatch, largest_batch, make_step
from common.compression.layouts import KINDS
from common.memory.costs import trace


def batch(config: EmbeddingConfig, *, seed: int = 0) -> EmbeddingBatch:
    """Random windows of different lengths and numbers of targets; a negative that is a target itself."""
    torch.manual_seed(seed)
    places = torch.stack([torch.randperm(config.items)[: config.width] for _ in range(config.batch)])
    length = torch.randint(2, config.width + 1, (config.batch, 1))
    places[torch.arange(config.width) >= length] = ABSENT
    targets = torch.minimum(torch.randint(1, config.targets + 1, (config.batch, 1)), length)
    user = torch.randint(max(1, config.users), (config.batch, 1))
    negatives = torch.randint(config.items, (config.negatives,))
    negatives[0] = places[1, 0]
    windows = torch.cat([targets, user, places], 1)
    rows, users = torch.arange(config.items), torch.arange(config.users)
    return EmbeddingBatch(rows, users, windows, negatives, torch.randn(config.negatives), torch.randn(config.items))


def naive(config: EmbeddingConfig, tables: list[torch.Tensor], data: EmbeddingBatch) -> torch.Tensor:
    """The mean loss in float64, pair by pair."""
    items, last = tables[0], tables[-1]
    losses_ = []
    for row in data.windows:
        known = row[2:][row[2:] != ABSENT]
        for target in known[: row[0]]:
            rest = known[known != target]
            user = last[row[1]] if config.users else last[rest].sum(0) / len(rest) ** 0.5
            others = torch.ones_like(data.negatives, dtype=torch.bool) if config.users else data.negatives != target
            priors = (data.prior[target], data.prior[data.negatives]) if config.prior else (0, 0)
            log_q = data.correction - priors[1] + priors[0]  # what all scores have alike does not matter
            losses_.append(naive_loss(config, user, items[target], items[data.negatives], others, log_q))
    return torch.stack(losses_).mean()


def naive_loss(
    config: EmbeddingConfig,
    user: torch.Tensor,
    own: torch.Tensor,
    rest: torch.Tensor,
    others: torch.Tensor,
    log_q: torch.Tensor,
) -> torch.Tensor:
    """The definitions written out for one pair."""
    if config.loss == "bpr":
        return (F.softplus(rest @ user - own @ user) * others).mean()
    score, scores = F.cosine_similarity(own, user, dim=0), F.cosine_similarity(rest, user[None])
    if config.loss == "ccl":
        return 1 - score + config.negative_weight * ((scores - config.margin).relu() * others).mean()
    score, scores = score / config.temperature, (scores / config.temperature - log_q)[others]
    return torch.cat([score[None], scores]).logsumexp(0) - score


@pytest.mark.parametrize(
    ("loss", "tables", "users", "prior"),
    [(loss, *rest, 0.0) for loss in ("softmax", "ccl", "bpr") for rest in ((1, 0), (2, 0), (1, 20))]
    + [("softmax", 1, 20, 0.3)],
)
def test_loss_and_step_equal_a_naive_reference(loss: str, tables: int, users: int, prior: float) -> None:
    sizes = {"batch": 12, "negatives": 9, "window": 6}
    config = EmbeddingConfig(30, 8, users, loss, tables, prior=prior, margin=0.1, negative_weight=3.0, **sizes)
    torch.manual_seed(1)
    network, _, step = make_step(config, micro_batch=5)
    before = [table.form.codes.double().clone().requires_grad_() for table in network.tables]
    data = batch(config)
    expected = naive(config, before, data)
    expected.backward()
    assert step(data).item() == pytest.approx(float(expected), rel=1e-5)
    for table, leaf in zip(network.tables, before, strict=True):
        assert leaf.grad is not None
        # After its first step a row has moved by the rate times its gradient over the gradient's root mean square.
        size = leaf.grad.square().mean(1, keepdim=True).sqrt()
        moved = torch.where(size > 1e-9, config.learning_rate * leaf.grad / size.clamp(min=1e-12), 0.0)
        there = leaf.detach() - moved
        if table.form.length:
            there *= table.form.length / there.norm(dim=1, keepdim=True)
            assert config.cosine and users
        torch.testing.assert_close(table.form.codes.double(), there, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("loss", ["softmax", "ccl", "bpr"])
def test_micro_batches_give_the_same_step(loss: str) -> None:
    config = EmbeddingConfig(40, 8, loss=loss, batch=32, negatives=16, window=6)
    results = []
    for micro_batch in (32, 7):
        torch.manual_seed(1)
        network, _, step = make_step(config, micro_batch=micro_batch)
        for seed in range(3):
            step(batch(config, seed=seed))
        results.append(network.items.form.codes)
    torch.testing.assert_close(results[0], results[1], atol=1e-5, rtol=1e-4)


def test_losses_ignore_a_negative_of_minus_infinity() -> None:
    own = torch.tensor([[0.3]], requires_grad=True)
    others = torch.tensor([[[-torch.inf, 0.2]]], requires_grad=True)
    for each, expected in (
        (losses.softmax, float(torch.tensor([0.3, 0.2]).logsumexp(0) - 0.3)),
        (losses.bpr, float(F.softplus(torch.tensor(-0.1)) / 2)),
        (losses.contrastive(0.1, 4.0), 0.7 + 4 * 0.1 / 2),
    ):
        value = each(own, others).sum()
        assert float(value) == pytest.approx(expected)
        value.backward()
        for leaf in (own, others):
            assert leaf.grad is not None and leaf.grad.isfinite().all()
            leaf.grad = None


@pytest.mark.parametrize("users", [0, 32])
@pytest.mark.parametrize("kind", KINDS)
def test_training_lowers_the_loss(kind: str, users: int) -> None:
    rate = RATES["learned" if users else "history"]
    config = EmbeddingConfig(40, 16, users, table=kind, batch=32, negatives=32, window=6, learning_rate=rate)
    torch.manual_seed(1)
    _, _, step = make_step(config, micro_batch=32)
    seen = [step(batch(config)).item() for _ in range(40)]
    assert seen[-1] < (0.7 if users else 0.5) * seen[0]


def test_the_step_is_priced_without_running_it() -> None:
    config = EmbeddingConfig(5000, 64, batch=256, negatives=256, window=16)

    def prepare() -> trace.Prepared:
        network, optimizer, step = make_step(config, micro_batch=128)
        data = largest_batch(config)
        return network, optimizer, lambda: step(data)

    priced = trace.price(prepare)
    assert priced["parameters"] == 5000 * (4 * 64 + 4)
    loaded = 2 * 4 * 64 * (256 * 16 + 256)  # rows and gradients
    assert loaded < priced["activations"] < 3 * loaded
