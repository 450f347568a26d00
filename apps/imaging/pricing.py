"""The probe behind ``imaging train``'s plan: its own step, traced on fake tensors (``common.memory.trace``)."""

from collections.abc import Mapping
from typing import Any


def measure(
    *,
    recipe: Mapping[str, Any],
    micro_batch: int,
    parts: int,
    amp: str,
    checkpoint: str,
    step_in_backward: str,
    workers: int,
) -> dict[str, float]:
    """Price a training step and the forward pass of one tile; called in a probe's child.

    Parameters
    ----------
    recipe
        ``apps.imaging.train.Recipe`` as a dictionary.
    parts
        Micro-batches to trace: 1, or 2 where gradients are held while another one runs.

    Returns
    -------
    dict
        What ``trace.price`` says of the step, and ``forward``: bytes of a tile's forward pass with its workspace.
    """
    import torch

    from apps.imaging import warm
    from apps.imaging.train import Recipe, make_step
    from common.memory import trace

    torch.set_num_threads(workers)
    warm.train()
    what = Recipe(**{**recipe, "patch": tuple(recipe["patch"])})
    channels = what.arguments["in_channels"]

    def step() -> trace.Prepared:
        network, optimizer, one = make_step(
            what,
            micro_batch=micro_batch,
            amp=amp,
            checkpoint=checkpoint,
            step_in_backward=step_in_backward == "on",
        )
        images = torch.zeros(micro_batch * parts, channels, *what.patch)
        classes = torch.zeros(micro_batch * parts, *what.patch, dtype=torch.uint8)
        return network, optimizer, lambda: one([images, classes])

    def forward() -> trace.Prepared:
        network, optimizer, _ = make_step(what, micro_batch=1, amp="off", checkpoint="none")
        tile = torch.zeros(1, channels, *what.patch)

        def infer() -> None:
            with torch.no_grad():
                network(tile)

        return network, optimizer, infer

    priced = trace.price(step)
    tile = trace.price(forward)
    return {
        **priced,
        "forward": tile["activations"] + tile["workspace"],
        "kernels": priced["kernels"] + tile["kernels"],
    }
