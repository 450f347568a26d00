"""The traced price of a step against what torch allocates, byte for byte; bench-promise has fresh processes."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from common.memory.costs import cpu, trace
from common.memory.costs.operators import OperatorCosts
from common.memory.process import glibc

MIB = 1 << 20
Step = Callable[[], trace.Prepared]


def allocated(prepare: Step) -> int:
    """Peak of torch's own allocations in the second step, counting what was alive before it."""
    import torch
    from torch.profiler import profile

    network, optimizer, step = prepare()
    step()
    states = [value for state in optimizer.state.values() for value in state.values()]
    alive = [*network.parameters(), *network.buffers(), *(s for s in states if isinstance(s, torch.Tensor))]
    before = sum(tensor.untyped_storage().nbytes() for tensor in alive)
    with profile(profile_memory=True) as recorded:
        step()
    events = [e for e in recorded.profiler.kineto_results.events() if e.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    live = peak = 0
    for event in events:
        live += event.nbytes()
        peak = max(peak, live)
    return before + peak


def traced(prepare: Step, costs: OperatorCosts) -> int:
    """The same by the trace."""
    priced = trace.price(prepare, costs=costs)
    return int(sum(priced[name] for name in ("parameters", "gradients", "optimizer", "activations", "workspace")))


def branches(network: Any, amp: str = "off", optimizer: str = "adamw", samples: int = 1, parts: int = 1) -> Step:
    """A step of a small network; targets are made in the step, so that nothing but the network is alive before."""

    def prepare() -> trace.Prepared:
        import torch

        from common.training import optimizers
        from common.training.step import TrainingStep

        class Squares:
            def counts(self, batch: Any) -> tuple[Any]:
                return (torch.tensor(float(len(batch[0]))),)

            def sums(self, outputs: Any, batch: Any) -> tuple[Any]:
                return (outputs.square().mean(1).sum(),)

        made = network()
        chosen = optimizers.build(optimizer, made.parameters(), learning_rate=0.1)
        step = TrainingStep(made, chosen, Squares(), samples, amp)
        return made, chosen, lambda: step([torch.zeros(samples * parts, 256)])

    return prepare


def chain() -> Any:
    from torch import nn

    return nn.Sequential(nn.Linear(256, 4096), nn.ReLU(), nn.Linear(4096, 512), nn.LayerNorm(512), nn.Linear(512, 2048))


def fan() -> Any:
    """Three branches of a tensor, one through a concatenation: gradients meet in place and in new tensors."""
    import torch

    class Fan(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = torch.nn.Linear(256, 8192), torch.nn.Linear(16384, 64)

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            hidden = self.first(inputs)
            three = hidden.sin() + hidden.cos() + hidden.exp()
            return self.last(torch.cat([three, hidden], 1))

    return Fan()


def checkpointed() -> Any:
    import torch
    from torch.utils.checkpoint import checkpoint

    class Twice(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = torch.nn.Sequential(torch.nn.Linear(256, 8192), torch.nn.Tanh(), torch.nn.Linear(8192, 256))

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            for _ in range(2):
                inputs = checkpoint(self.inner, inputs, use_reentrant=False)
            return inputs

    return Twice()


CASES = {
    "chain": branches(chain, samples=512),
    "chain-two-parts": branches(chain, samples=256, parts=2),
    "chain-bf16": branches(chain, samples=512, amp="bf16"),
    "chain-adamw8bit": branches(chain, optimizer="adamw8bit"),
    "chain-adafactor": branches(chain, optimizer="adafactor"),
    "chain-rowwise_adagrad": branches(chain, optimizer="rowwise_adagrad"),
    "chain-sgd": branches(chain, samples=512, optimizer="sgd"),
    "fan": branches(fan, samples=256),
    "checkpoint": branches(checkpointed, samples=256),
}


@pytest.fixture(scope="module")
def bytes_by_case(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, int]]:
    """What torch allocates and what is priced in each case, in a process of its own.

    A workspace is what the process grew by, and this one holds other tests' heaps.
    """
    names = [name for name in CASES if "bf16" not in name or "bf16" in cpu.precisions("torch")]
    command = [sys.executable, __file__, str(tmp_path_factory.mktemp("operators")), *names]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    rows = [line.split() for line in done.stdout.splitlines()]
    return {name: (int(real), int(priced)) for name, real, priced in rows}


@pytest.mark.parametrize("name", CASES)
def test_live_bytes_are_those_that_torch_allocates(name: str, bytes_by_case: dict[str, tuple[int, int]]) -> None:
    from tests.precision import needs  # run as a script, this file has no ``tests``

    if "bf16" in name:
        needs("torch", "bf16")
    real, priced = bytes_by_case[name]
    assert real > 8 * MIB
    # Scalars are made on either side; a workspace is read in pages.
    assert priced == pytest.approx(real, abs=max(64 << 10, int(0.002 * real))), (priced / MIB, real / MIB)


def test_a_heap_of_huge_pages_may_be_one_of_them_larger(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv(glibc.TUNABLES, raising=False)
    plain = trace.unseen()
    for name, value in glibc.tunables(huge_pages=True, merge=True).items():
        monkeypatch.setenv(name, value)
    assert trace.unseen() - plain == glibc.HUGE_PAGE == 2 * MIB


def main(folder: Path, names: list[str]) -> None:
    """Print a line for each case, found in a fork of a process that has loaded torch and run none of it."""
    import torch._dynamo  # every trace and optimiser loads it

    assert torch._dynamo
    for name in names:
        if (process := os.fork()) == 0:
            trace.resident_bytes = lambda size: size  # torch counts bytes, not pages
            costs = OperatorCosts(folder / f"{name}.jsonl")
            print(name, allocated(CASES[name]), traced(CASES[name], costs), flush=True)
            os._exit(0)
        assert os.waitpid(process, 0)[1] == 0, name


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
