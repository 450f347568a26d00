"""The cases ``fsdp-states`` and ``fsdp-bf16`` of the suite ``scaling``: parameters, gradients and states of a rank of
two.

A SegResNet of 20 million parameters makes a few steps on noise, whose values do not matter for bytes.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from common.bench.harness import Bound, Suite

RANKS, STEPS, FILTERS = 2, 3, 88


def suite() -> Suite:
    """Declare the case."""
    scaling = Suite("scaling")
    share = (Bound("result.over_whole", at_most=0.55), Bound("result.parameters", at_least=20e6))
    predicted = Bound("result.predicted_over_own", at_least=1.0, at_most=1.051)
    loss = Bound("result.loss_difference", at_most=1e-2)
    module = ["-m", "apps.imaging.bench.scaling.states"]
    scaling.case("fsdp-states", [*module, "off"], bounds=(*share, predicted))
    scaling.case("fsdp-bf16", [*module, "bf16"], bounds=(*share, predicted, loss))
    return scaling


def rank(number: int, folder: Path, amp: str, filters: int) -> None:
    """Make some steps, and print the bytes that this rank has of all, and the losses."""
    import torch
    import torch.distributed as dist

    from apps.imaging.bench.one_step import one_step
    from apps.imaging.training.recipe import make_step
    from common.training.distributed.group import Group
    from common.training.distributed.world import World

    torch.set_num_threads(1)
    torch.manual_seed(0)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=number, world_size=RANKS)
    recipe = one_step("segresnet", {"init_filters": filters}, side=16, batch=RANKS)
    group = Group(World(number, RANKS, RANKS))
    network, optimizer, step = make_step(
        recipe, micro_batch=1, amp=amp, checkpoint="none", group=group, shared=True
    )  # fmt: skip
    update = optimizer.step
    gradients: list[Any] = []

    def stepped() -> None:
        gradients[:] = [parameter.grad for parameter in network.parameters()]
        update()

    optimizer.step = stepped  # type: ignore[method-assign,assignment]
    image = torch.rand(1, 1, *recipe.patch, generator=torch.Generator().manual_seed(number))
    classes = (image[0] > 0.7).to(torch.uint8)
    losses = [float(step([image, classes])) for _ in range(STEPS)]
    tensors: list[Any] = [*network.parameters(), *gradients]
    tensors += [value for state in optimizer.state.values() for value in state.values() if value.dim()]
    own = sum(tensor.to_local().nbytes for tensor in tensors)
    whole = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    count = sum(parameter.numel() for parameter in network.parameters())
    found = {"own": own, "whole": whole, "parameters": count, "losses": losses}
    sys.stdout.write(json.dumps(found) + "\n")
    sys.stdout.flush()


def every(amp: str, filters: int = FILTERS) -> list[dict[str, Any]]:
    """Start the ranks; returns what each printed."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "apps.imaging.bench.scaling.states"]
        started = [
            subprocess.Popen([*command, str(number), folder, amp, str(filters)], stdout=subprocess.PIPE, text=True)
            for number in range(RANKS)
        ]
        return [json.loads(each.communicate()[0].splitlines()[-1]) for each in started]


def predicted(parameters: int) -> int:
    """Bytes of a rank's parameters, gradients and states of AdamW, as the plan has them."""
    from apps.imaging.planning import sharing
    from common.training.distributed.world import World

    size = 4 * parameters
    cost = {"parameters": size, "gradients": size, "optimizer": 2 * size, "largest": 0}
    terms = sharing.terms(World(0, RANKS, RANKS), cost, average=0)
    return sum(term.bytes for term in terms if term.name.startswith("part of"))


def judged(amp: str, filters: int = FILTERS) -> dict[str, float]:
    """Read the larger rank's share (``over_whole``), and the largest relative difference of its losses from those of
    float32."""
    found = every(amp, filters)
    losses, expected = (each[0]["losses"] for each in (found, found if amp == "off" else every("off", filters)))
    return {
        "over_whole": max(one["own"] / one["whole"] for one in found),
        "parameters": found[0]["parameters"],
        "predicted_over_own": predicted(found[0]["parameters"]) / max(one["own"] for one in found),
        "loss_difference": max(abs(one / other - 1) for one, other in zip(losses, expected, strict=True)),
    }


if __name__ == "__main__":
    if sys.argv[1:] in (["off"], ["bf16"]):
        sys.stdout.write(json.dumps(judged(sys.argv[1])) + "\n")
        sys.exit(0)
    if len(sys.argv) == 5 and sys.argv[1].isdecimal():
        rank(int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]))
        sys.exit(0)
    sys.exit(suite().main())
