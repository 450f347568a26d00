"""The table of optimisers: what they hold, that they are what they are called, and steps that can be repeated."""

import copy
from pathlib import Path

import pytest
import torch

from common.errors import UsageError
from common.training import checkpoint, optimizers
from common.training.step import TrainingStep
from common.training.update_rules import adamw8bit
from common.training.update_rules.retryable import OneByOne
from tests.common.training.failing import Failing

MIB = 1 << 20
Tensor = torch.Tensor


def bytes_of(optimizer: torch.optim.Optimizer) -> int:
    states = [value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor)]
    return sum(value.numel() * value.element_size() for value in states)


def network() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3), torch.nn.Flatten(), torch.nn.Linear(8 * 36, 41), torch.nn.LayerNorm(41)
    )


def learn(optimizer: torch.optim.Optimizer, net: torch.nn.Module, steps: int) -> None:
    torch.manual_seed(1)
    for _ in range(steps):
        net(torch.randn(2, 3, 8, 8)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def moments_in_8_bits(values: int) -> int:
    if values < adamw8bit.SMALLEST:
        return 2 * 4 * values + 4
    return 2 * -(-values // adamw8bit.BLOCK) * (adamw8bit.BLOCK + 4) + 4


def factored(shape: torch.Size) -> int:
    """Row and column means over the last two axes; whole for a vector."""
    if len(shape) < 2:
        return 4 * shape.numel() + 4
    return 4 * (shape[:-1].numel() + shape[:-2].numel() * shape[-1]) + 4


STATES = {
    "adamw": lambda shape: 2 * 4 * shape.numel() + 4,
    "adamw8bit": lambda shape: moments_in_8_bits(shape.numel()),
    "adafactor": factored,
    "rowwise_adagrad": lambda shape: 4 * shape[0],
    "sgd": lambda shape: 0,
}
"""Bytes by the shape of a parameter."""


@pytest.mark.parametrize("name", optimizers.NAMES)
def test_states_are_as_large_as_the_table_says(name: str):
    net = network()
    optimizer = optimizers.build(name, net.parameters(), learning_rate=1e-3)
    learn(optimizer, net, 1)
    assert bytes_of(optimizer) == sum(STATES[name](p.shape) for p in net.parameters())


SHAPE = (1024, 768)
VALUES, MEANS = 4 * 1024 * 768, 4 * (1024 + 768) + 4


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("adamw", 0),
        ("adamw8bit", 4 * (adamw8bit.SCRATCH + 1) * adamw8bit.CHUNK),
        ("adafactor", 2 * (VALUES + MEANS)),  # the update, and the copy to go back to
        ("rowwise_adagrad", 3 * 4 * 1024),
        ("sgd", 0),
    ],
)
def test_what_a_step_takes_for_a_moment(name: str, expected: int):
    from common.memory.costs import trace

    def prepare() -> trace.Prepared:
        net = torch.nn.Linear(SHAPE[1], SHAPE[0], bias=False)
        optimizer = optimizers.build(name, net.parameters(), learning_rate=1e-3, weight_decay=0.1)
        inputs = torch.zeros(1, SHAPE[1])

        def step() -> None:
            net(inputs).sum().backward()
            optimizer.step()
            optimizer.zero_grad()

        return net, optimizer, step

    assert abs(trace.price(prepare)["activations"] - expected) <= 0.2 * MIB


def test_no_other_names():
    with pytest.raises(UsageError, match=r"'adam'.*adamw\b"):
        optimizers.build("adam", [], learning_rate=1.0)


def test_rowwise_adagrad_is_the_exact_one():
    """Rows that occur several times count once, with the sum of their gradients; untouched rows stay."""
    torch.manual_seed(0)
    start, lr, eps = torch.randn(6, 4, dtype=torch.float64), 0.1, 1e-8
    touched = torch.tensor([1, 4, 1, 2])
    results = []
    for sparse in (True, False):
        table = torch.nn.Embedding(6, 4, sparse=sparse, _weight=start.clone())
        optimizer = optimizers.build("rowwise_adagrad", table.parameters(), learning_rate=lr)
        for turn in range(3):
            (table(touched) * torch.arange(1, 17, dtype=torch.float64).view(4, 4) * (turn + 1)).sum().backward()
            optimizer.step()
        results.append(table.weight.detach())

    expected, sums = start.clone(), torch.zeros(6, dtype=torch.float64)
    for turn in range(3):
        slope = torch.zeros(6, 4, dtype=torch.float64)
        for row, values in zip(touched, torch.arange(1, 17, dtype=torch.float64).view(4, 4), strict=True):
            slope[row] += values * (turn + 1)
        for row in (1, 2, 4):
            sums[row] += (slope[row] ** 2).mean()
            expected[row] -= lr * slope[row] / (sums[row].sqrt() + eps)
    for result in results:
        torch.testing.assert_close(result, expected, rtol=1e-12, atol=1e-12)
        assert torch.equal(result[[0, 3, 5]], start[[0, 3, 5]])


def quadratic(name: str, steps: int = 200) -> tuple[float, Tensor]:
    """A badly scaled least-squares problem of 65,536 parameters; the loss reached."""
    torch.manual_seed(0)
    features = torch.randn(64, 256) * torch.logspace(-2, 0, 256)
    target = features @ torch.randn(256, 256)
    weight = torch.nn.Parameter(torch.zeros(256, 256))
    optimizer = optimizers.build(name, [weight], learning_rate=1e-2)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 1e-2 * (1 - step / steps)
        loss = (features @ weight - target).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return float(loss.detach()), weight.detach()


def test_eight_bits_learn_as_thirty_two_do():
    exact, weights = quadratic("adamw")
    rounded, others = quadratic("adamw8bit")
    assert rounded <= 1.1 * exact
    # bitsandbytes 0.50.2 does the same with 0.17, where this is 0.07.
    assert float((others - weights).norm() / weights.norm()) < 0.1


def test_eight_bits_do_not_depend_on_chunks(monkeypatch: pytest.MonkeyPatch):
    from common.training.update_rules import adamw8bit

    results = []
    for chunk in (1 << 18, 1 << 10):
        monkeypatch.setattr(adamw8bit, "CHUNK", chunk)
        net = network()
        learn(optimizers.build("adamw8bit", net.parameters(), learning_rate=1e-2), net, 3)
        results.append(torch.cat([p.flatten() for p in net.parameters()]))
    torch.testing.assert_close(*results, rtol=2e-2, atol=2e-3)  # only the rounding's turns differ


@pytest.mark.parametrize("name", [name for name in optimizers.NAMES if name != "adamw8bit"])
def test_step_in_backward_is_the_same_step(name: str):
    batch = [torch.randn(4, 3, 8, 8), torch.randint(0, 41, (4,))]
    from common.training.losses import CrossEntropy

    results, alive = [], []
    for at_once in (False, True):
        net = network()
        optimizer = optimizers.build(name, net.parameters(), learning_rate=1e-2)
        step = TrainingStep(net, optimizer, CrossEntropy(), 4, step_in_backward=at_once)
        if at_once:
            for p in net.parameters():
                p.register_hook(lambda _, net=net: alive.append(sum(q.grad is not None for q in net.parameters())))
        for _ in range(3):
            step(batch)
        results.append(torch.cat([p.detach().flatten() for p in net.parameters()]))
    assert torch.equal(*results)
    assert max(alive) == 0  # when a gradient arrives, all others are gone


def test_step_in_backward_refuses_what_needs_all_gradients():
    from common.training.losses import CrossEntropy

    net = network()
    make = lambda **more: TrainingStep(  # noqa: E731
        net,
        optimizers.build("sgd", net.parameters(), learning_rate=0.1),
        CrossEntropy(),
        2,
        step_in_backward=True,
        **more,
    )
    with pytest.raises(UsageError, match="clip"):
        make(clip=1.0)
    with pytest.raises(UsageError, match="scale"):
        make(amp="fp16")
    with pytest.raises(UsageError, match=r"\b4 samples.*\b2\b"):
        make()([torch.randn(4, 3, 8, 8), torch.randint(0, 41, (4,))])


@pytest.mark.parametrize("name", optimizers.NAMES)
def test_a_failed_step_goes_on_where_it_stopped(name: str):
    """Whichever allocation of whichever step fails, calling again gives the undisturbed weights, bit for bit."""
    calm = network()
    optimizer = optimizers.build(name, calm.parameters(), learning_rate=1e-2, weight_decay=0.1)
    learn(optimizer, calm, 2)
    failures = 0
    for nth in (1, 2, 3, 5, 8, 9, 14, 21, 34):
        net = network()
        optimizer = optimizers.build(name, net.parameters(), learning_rate=1e-2, weight_decay=0.1)
        torch.manual_seed(1)
        for turn in range(2):
            net(torch.randn(2, 3, 8, 8)).square().mean().backward()
            with Failing(nth if turn == nth % 2 else 0) as failing:
                try:
                    optimizer.step()
                except RuntimeError:
                    failures += 1
            if failing.raised:
                optimizer.step()
            optimizer.zero_grad()
        for a, b in zip(calm.parameters(), net.parameters(), strict=True):
            assert torch.equal(a, b), nth
    assert failures or name == "sgd"


@pytest.mark.parametrize("name", optimizers.NAMES)
def test_checkpoints_hold_every_state(name: str, tmp_path: Path):
    """A training continued from a checkpoint equals one without a break, bit for bit, 8-bit states included."""
    path = tmp_path / checkpoint.LAST
    net = network()
    optimizer = optimizers.build(name, net.parameters(), learning_rate=1e-2, weight_decay=0.1)
    learn(optimizer, net, 2)
    checkpoint.save(path, network=net, optimizer=optimizer, state={})
    learn(optimizer, net, 2)
    other = network()
    second = optimizers.build(name, other.parameters(), learning_rate=1e-2, weight_decay=0.1)
    checkpoint.restore(path, network=other, optimizer=second)
    learn(second, other, 2)
    for a, b in zip(net.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
    for one, two in zip(optimizer.state.values(), second.state.values(), strict=True):
        assert one.keys() == two.keys()
        for key in one:
            assert one[key].dtype == two[key].dtype and torch.equal(one[key], two[key])


def test_one_by_one_lets_go_of_gradients():
    net = network()
    optimizer = optimizers.build("rowwise_adagrad", net.parameters(), learning_rate=1e-2)
    assert isinstance(optimizer, OneByOne)
    net(torch.randn(2, 3, 8, 8)).sum().backward()
    optimizer.step()
    assert all(p.grad is None for p in net.parameters())
    copy.deepcopy(optimizer.state_dict())
