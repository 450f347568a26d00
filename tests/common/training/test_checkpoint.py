"""A checkpoint holds all that the next step depends on."""

from pathlib import Path

import pytest
import torch

from common.errors import BadInput
from common.training import checkpoint
from tests.messages import refused


def made(seed: int, width: int = 8) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    net = torch.nn.Sequential(torch.nn.Linear(4, width), torch.nn.Dropout(0.5), torch.nn.Linear(width, 2))
    return net, torch.optim.AdamW(net.parameters(), lr=0.01, fused=True)


def go(net: torch.nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    for _ in range(steps):
        net(torch.randn(16, 4)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def test_going_on_from_a_checkpoint_is_bit_for_bit(tmp_path: Path):
    path = tmp_path / checkpoint.LAST
    net, optimizer = made(0)
    go(net, optimizer, 3)
    checkpoint.save(path, network=net, optimizer=optimizer, state={"step": 3})
    go(net, optimizer, 4)

    other, second = made(1)
    assert checkpoint.read_state(path) == {"step": 3}
    checkpoint.restore(path, network=other, optimizer=second)
    go(other, second, 4)
    for a, b in zip(net.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_a_failed_save_keeps_the_old_one(tmp_path: Path):
    path = tmp_path / checkpoint.LAST
    net, optimizer = made(0)
    checkpoint.save(path, network=net, optimizer=optimizer, state={"step": 1})
    with pytest.raises(TypeError):
        checkpoint.save(path, network=net, optimizer=optimizer, state={"step": object()})
    assert checkpoint.read_state(path) == {"step": 1}


def test_what_is_not_a_checkpoint_is_refused(tmp_path: Path):
    path = tmp_path / checkpoint.LAST
    path.write_bytes(b"not a checkpoint at all")
    with refused(BadInput, path):
        checkpoint.read_state(path)
    net, optimizer = made(0)
    checkpoint.save(path, network=net, optimizer=optimizer, state={})
    wider, second = made(0, width=9)
    with refused(BadInput, path, "network"):
        checkpoint.restore(path, network=wider, optimizer=second)
