"""The traced price of a training step against what a fresh process really holds."""

import json
import subprocess
import sys
from typing import Any

import pytest

MIB = 1 << 20
CASES = [
    (name, patch, samples, amp)
    for name, patches in (("segresnet", ((48, 48, 48), (40, 56, 40))), ("basicunet", ((48, 48, 48), (64, 64, 32))))
    for samples, patch in zip((1, 2), patches, strict=True)
    for amp in ("off", "bf16")
]

SCRIPT = """
import json, sys
from common.memory import allocator
allocator.tame()
import torch
from apps.imaging import warm
from apps.imaging.networks import arguments
from apps.imaging.train import Recipe, make_step
from common.memory import trace
from common.memory.meter import lifetime_peak, reset_peak, resident

torch.set_num_threads(2)
warm.train()

def prepare(name, patch, samples, amp):
    complete = arguments(name, {}, in_channels=1, out_channels=3)
    recipe = Recipe(name, complete, tuple(patch), samples, 1, None, 1e-3, 0.0, 1.0, "", 0, None, 0)
    network, optimizer, step = make_step(recipe, micro_batch=samples, amp=amp, checkpoint="none")
    batch = [torch.zeros(samples, 1, *patch), torch.zeros(samples, *patch, dtype=torch.uint8)]
    return network, optimizer, lambda: step(batch)

def price(case):
    return trace.price(lambda: prepare(*case))

def measure(case):
    allocator.trim()
    base = resident()
    reset_peak()
    network, optimizer, step = prepare(*case)
    for _ in range(3):
        step()
    return lifetime_peak() - base

mode, cases = sys.argv[1], json.loads(sys.argv[2])
print(json.dumps([{"price": price, "measure": measure}[mode](case) for case in cases]))
"""


def call(mode: str, cases: list[Any]) -> Any:
    done = subprocess.run([sys.executable, "-c", SCRIPT, mode, json.dumps(cases)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case)))
def test_predicted_is_within_15_percent_and_never_under(case: tuple[Any, ...]):
    (priced,) = call("price", [case])
    (measured,) = call("measure", [case])
    parts = ("parameters", "gradients", "optimizer", "activations", "workspace", "kernels")
    predicted = sum(priced[name] for name in parts)
    assert measured > 40 * MIB
    assert measured <= predicted <= 1.15 * measured, (priced, measured / MIB)


def test_parts_are_what_they_are_called():
    import torch

    from common.memory import trace

    def prepare() -> trace.Prepared:
        network = torch.nn.Linear(512, 1024, bias=False)
        optimizer = torch.optim.AdamW(network.parameters(), fused=True)
        inputs = torch.zeros(4096, 512)

        def step() -> None:
            network(inputs).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()

        return network, optimizer, step

    priced = trace.price(prepare)
    weights = 512 * 1024 * 4
    assert priced["parameters"] == priced["gradients"] == weights
    assert 2 * weights <= priced["optimizer"] <= 2 * weights + 64
    # Inputs, the product, its square's gradient and what is on the way: between two and six times the product.
    assert 2 * 4096 * 1024 * 4 <= priced["activations"] <= 6 * 4096 * 1024 * 4
