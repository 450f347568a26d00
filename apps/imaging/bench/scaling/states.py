"""The case ``fsdp-states`` of the suite ``scaling``: bytes of parameters, gradients and states of a rank of two.

A SegResNet of 20 million parameters makes one step on noise, whose values do not matter for bytes.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from common.bench.harness import Bound, Suite

RANKS = 2


def suite() -> Suite:
    """Declare the case."""
    scaling = Suite("scaling")
    bounds = (Bound("result.over_whole", at_most=0.55), Bound("result.parameters", at_least=20e6))
    scaling.case("fsdp-states", ["-m", "apps.imaging.bench.scaling.states", "all"], bounds=bounds)
    return scaling


def rank(number: int, folder: Path) -> None:
    """Make a step, and print the bytes that this rank has of all."""
    import torch
    import torch.distributed as dist

    from apps.imaging.bench.one_step import one_step
    from apps.imaging.training.recipe import make_step
    from common.training.distributed.group import Group
    from common.training.distributed.world import World

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=number, world_size=RANKS)
    recipe = one_step("segresnet", {"init_filters": 88}, side=16, batch=RANKS)
    group = Group(World(number, RANKS, RANKS))
    network, optimizer, step = make_step(
        recipe, micro_batch=1, amp="off", checkpoint="none", group=group, shared=True
    )  # fmt: skip
    update = optimizer.step
    gradients: list[Any] = []

    def stepped() -> None:
        gradients.extend(parameter.grad for parameter in network.parameters())
        update()

    optimizer.step = stepped  # type: ignore[method-assign,assignment]
    step([torch.rand(1, 1, *recipe.patch), torch.zeros(1, *recipe.patch, dtype=torch.uint8)])
    tensors: list[Any] = [*network.parameters(), *gradients]
    tensors += [value for state in optimizer.state.values() for value in state.values() if value.dim()]
    own = sum(tensor.to_local().nbytes for tensor in tensors)
    whole = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    count = sum(parameter.numel() for parameter in network.parameters())
    sys.stdout.write(json.dumps({"own": own, "whole": whole, "parameters": count}) + "\n")
    sys.stdout.flush()


def every() -> dict[str, float]:
    """Start the ranks; ``over_whole`` is the larger rank's share."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "apps.imaging.bench.scaling.states"]
        started = [
            subprocess.Popen([*command, str(number), folder], stdout=subprocess.PIPE, text=True)
            for number in range(RANKS)
        ]
        found = [json.loads(each.communicate()[0].splitlines()[-1]) for each in started]
    return {"over_whole": max(one["own"] / one["whole"] for one in found), "parameters": found[0]["parameters"]}


if __name__ == "__main__":
    if sys.argv[1:] == ["all"]:
        sys.stdout.write(json.dumps(every()) + "\n")
        sys.exit(0)
    if len(sys.argv) == 3 and sys.argv[1].isdecimal():
        rank(int(sys.argv[1]), Path(sys.argv[2]))
        sys.exit(0)
    sys.exit(suite().main())
