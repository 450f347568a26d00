"""Backward passes that start from gradients, against PyTorch's own."""

import subprocess
import sys

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from common.gradients import backpropagate


@given(st.integers(1, 4), st.integers(0, 2**31))
@settings(max_examples=20, deadline=None)
def test_it_is_pytorchs_to_the_bit(outputs: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    start = torch.randn(3, 5, generator=generator)
    weights = [torch.randn(5, 2 + number, generator=generator) for number in range(outputs)]
    gradients = [torch.randn(3, 2 + number, generator=generator) for number in range(outputs)]
    found = []
    for backward in (torch.autograd.backward, backpropagate):
        leaf = start.clone().requires_grad_()
        backward([(leaf @ weight).tanh() for weight in weights], gradients)
        assert leaf.grad is not None
        found.append(leaf.grad)
    assert torch.equal(*found)


def test_it_loads_nothing() -> None:
    code = (
        "import sys, torch; from common.gradients import backpropagate as b; x = torch.ones(2, requires_grad=True);"
        " b([2 * x], [torch.ones(2)]); assert x.grad.tolist() == [2, 2] and 'sympy' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
