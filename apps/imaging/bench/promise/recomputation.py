"""Compare recomputation chosen by block with policies that treat all blocks alike: memory and time of a step.

``make bench-promise ONLY='recomputation-*'``. One process runs a step with each policy in turn, in one thread, and
reads its own processor time, which others on the machine change little.
"""

import argparse
import json
import statistics
import sys
import time
from typing import TYPE_CHECKING, Any

from common.bench.harness import Bound, Suite

if TYPE_CHECKING:
    from torch import Tensor

    from common.training.step import TrainingStep

MODULE = "apps.imaging.bench.promise.recomputation"
NETWORKS = ("segresnet", "dynunet", "unet")
ALIKE = ("none", "cheap", "alternate", "blocks")
"""``alternate`` recomputes every other block."""
LESS_TIME = Bound("result.most_saved", at_least=0.15)


def suite() -> Suite:
    """Declare the cases."""
    made = Suite("promise")
    for network in NETWORKS:
        made.case(f"recomputation-{network}", ("-m", MODULE, network), bounds=(LESS_TIME,))
    return made


def compare(network: str, *, side: int, rounds: int, amp: str) -> dict[str, Any]:
    """Predict the bytes of a step with each policy and measure its time.

    Returns
    -------
    dict
        ``policies``: bytes, and processor seconds, the median of the rounds. ``saved``: under the ceiling that each
        policy needs, the share of time that the best policy saves against the best uniform one; ``most_saved``.
    """
    import torch

    from apps.imaging import warm_up
    from common.memory.process import glibc
    from common.training.activation_checkpointing import POLICIES

    glibc.pin_thresholds()
    warm_up.train()
    torch.set_num_threads(1)
    names = [*ALIKE, *POLICIES[1:]]
    needed = {name: _bytes(network, side, name, amp) for name in names}
    batch = [torch.randn(1, 1, side, side, side), torch.randint(0, 3, (1, side, side, side), dtype=torch.uint8)]
    steps = {name: _made(network, side, name, amp)[2] for name in names}
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(rounds):
        for name in names:
            began = time.process_time()
            steps[name](batch)
            seconds[name].append(time.process_time() - began)
    # The first round compiles kernels.
    medians = {name: statistics.median(values[1:]) for name, values in seconds.items()}
    least = min(needed[name] for name in ALIKE)
    saved = {name: _saved(size, needed, medians) for name, size in needed.items() if size >= least}
    policies = {name: {"bytes": needed[name], "seconds": round(medians[name], 3)} for name in names}
    return {"policies": policies, "saved": saved, "most_saved": max(saved.values())}


def _saved(ceiling: int, needed: dict[str, int], seconds: dict[str, float]) -> float:
    """Share of time that the fastest policy under a ceiling saves against the fastest uniform one."""
    fitting = [name for name, size in needed.items() if size <= ceiling]
    return round(
        1 - min(seconds[name] for name in fitting) / min(seconds[name] for name in fitting if name in ALIKE), 4
    )


def _recipe(network: str, side: int) -> Any:
    from apps.imaging.models.networks import registry
    from apps.imaging.training.recipe import Recipe

    complete = registry.arguments(network, {}, in_channels=1, out_channels=3)
    return Recipe(network, complete, (side,) * 3, 1, 1, None, 1e-3, 0.0, 1.0, "", 0, None, 0)


def _made(network: str, side: int, policy: str, amp: str) -> tuple[Any, Any, "TrainingStep"]:
    """Network, optimiser and step with a policy."""
    from apps.imaging.models.networks import registry
    from apps.imaging.training.recipe import make_step
    from common.training.activation_checkpointing import set_levels
    from common.training.recomputation import Level

    alternate = policy == "alternate"
    made = make_step(_recipe(network, side), micro_batch=1, amp=amp, checkpoint="none" if alternate else policy)
    if alternate:
        blocks = registry.blocks(network, made[0])
        set_levels(blocks, [Level.KEEP if number % 2 else Level.RECOMPUTE for number in range(len(blocks))])
    return made


def _bytes(network: str, side: int, policy: str, amp: str) -> int:
    """Predicted bytes of the step's tensors and of its operators' workspace."""
    from common.memory.costs import trace

    def prepare() -> trace.Prepared:
        import torch

        made, optimizer, step = _made(network, side, policy, amp)
        batch: list[Tensor] = [torch.zeros(1, 1, side, side, side), torch.zeros(1, side, side, side, dtype=torch.uint8)]
        return made, optimizer, lambda: step(batch)

    price = trace.price(prepare)
    return int(sum(price[name] for name in ("parameters", "gradients", "optimizer", "activations", "workspace")))


def main() -> int:
    """Compare the policies for one network in this process and print the result as JSON."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("network", choices=NETWORKS)
    parser.add_argument("--side", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--amp", choices=["off", "bf16"], default="off")
    args = parser.parse_args()
    result = compare(args.network, side=args.side, rounds=args.rounds, amp=args.amp)
    sys.stdout.write(json.dumps(result) + "\n")
    return 0


if __name__ == "__main__":
    if sys.argv[1:2] and not sys.argv[1].startswith("-"):
        sys.exit(main())
    sys.exit(suite().main())
