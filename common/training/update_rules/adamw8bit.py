"""AdamW with both moments in 8 bits: 2.03 bytes per parameter instead of 8.

Values are scaled by the largest of their block of 256 and companded, so that small ones keep some digits: the first
moment by a square root into -127 to 127, the second, which spans twice as many decades, by a fourth root into 0 to
255. The second moment changes by a thousandth per step, far less than a code. It is therefore rounded with thresholds
from a fixed low-discrepancy sequence; rounded to nearest it would never change. A tensor is updated in chunks, so that
a step takes a few MiB whatever the tensor's size.

Block-wise 8-bit states: Dettmers et al., arXiv 2110.02861; companding instead of their code table: arXiv 2602.23349.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from common.training.update_rules.retryable import OneByOne

BLOCK = 256
"""Values of an 8-bit state that share a scale."""
CHUNK = 1 << 18
"""Values of an 8-bit state that are updated at a time; a multiple of ``BLOCK``."""
SMALLEST = 4096
"""Tensors with fewer values (biases, norms) keep float32 moments, as in bitsandbytes."""
SCRATCH = 5
"""Float32 buffers of a chunk's length that a step allocates, besides one for the rounding's thresholds."""
_GOLDEN = 0.6180339887498949
"""The fractional parts of its multiples are spread evenly over [0, 1)."""
_LEAST_SCALE = 1e-30
"""Scale of a block of zeros."""


@dataclass(frozen=True, slots=True)
class _Moment:
    """One moment's 8-bit codes with the scale of each block."""

    codes: Tensor
    scales: Tensor

    def chunk(self, start: int, stop: int) -> "_Moment":
        return _Moment(self.codes[start:stop], self.scales[start // BLOCK : stop // BLOCK])


class AdamW8bit(OneByOne):
    """``torch.optim.AdamW`` with block-wise 8-bit moments.

    Parameters
    ----------
    lr, betas, eps, weight_decay
        As in ``torch.optim.AdamW``.
    """

    def __init__(
        self,
        parameters: Iterable[Tensor],
        *,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
    ) -> None:
        super().__init__(parameters, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state; PyTorch's own method would convert the codes to the parameters' type."""
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        states = state_dict["state"].items()
        floats = {
            index: {name: value for name, value in state.items() if not _is_codes(value)} for index, state in states
        }
        super().load_state_dict({**state_dict, "state": floats})
        for index, state in states:
            parameter = parameters[index]
            codes = {name: value.to(parameter.device) for name, value in state.items() if _is_codes(value)}
            self.state[parameter].update(codes)

    def update(self, parameter: Tensor, group: dict[str, Any]) -> None:
        """Update one tensor chunk by chunk.

        Raises
        ------
        TypeError
            The gradient is sparse.
        """
        gradient = parameter.grad
        assert gradient is not None
        if gradient.is_sparse:
            raise TypeError("adamw8bit takes no sparse gradients; use rowwise_adagrad for sparse tables")
        state = self.state[parameter]
        if not state:
            state.update(_initial(parameter))
        if not _is_codes(state["exp_avg"]):
            spare = torch.empty_like(parameter)
            state["step"] += 1
            _adamw(parameter, gradient, state["exp_avg"], state["exp_avg_sq"], spare, float(state["step"]), group)
            return
        first, second = (_Moment(state[name], state[f"{name}_scale"]) for name in ("exp_avg", "exp_avg_sq"))
        weights, slopes = parameter.view(-1), gradient.reshape(-1)
        length = min(CHUNK, len(first.codes))
        # Everything is allocated here, so that no allocation can fail between the first change and the last.
        scratch = [weights.new_empty(length, dtype=torch.float32) for _ in range(SCRATCH)]
        thresholds = torch.arange(length, dtype=torch.float32, device=weights.device).mul_(_GOLDEN)
        state["step"] += 1
        count = float(state["step"])
        for start in range(0, len(first.codes), length):
            stop = min(start + length, len(first.codes))
            spare, weight, slope, *moments = [buffer[: stop - start] for buffer in scratch]
            kept = first.chunk(start, stop), second.chunk(start, stop)
            _expand(kept, moments, spare)
            _load(weight, weights[start:stop])
            _load(slope, slopes[start:stop])
            _adamw(weight, slope, moments[0], moments[1], spare, count, group)
            weights[start:stop].copy_(weight[: len(weights[start:stop])])
            torch.add(thresholds[: stop - start], count * _GOLDEN, out=slope).frac_()
            _compress(kept, moments, spare, slope)


def _is_codes(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dtype in (torch.int8, torch.uint8)


def _initial(parameter: Tensor) -> dict[str, Tensor]:
    state = {"step": torch.zeros((), dtype=torch.float32)}
    if parameter.numel() < SMALLEST or not parameter.is_contiguous():
        return state | {name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")}
    blocks = -(-parameter.numel() // BLOCK)
    for name, dtype in (("exp_avg", torch.int8), ("exp_avg_sq", torch.uint8)):
        state[name] = parameter.new_zeros(blocks * BLOCK, dtype=dtype)
        state[f"{name}_scale"] = parameter.new_zeros(blocks, dtype=torch.float32)
    return state


def _load(buffer: Tensor, values: Tensor) -> None:
    """Copy into a buffer that may be longer; its end is filled with zeros."""
    buffer[: len(values)].copy_(values)
    buffer[len(values) :].zero_()


def _adamw(
    weight: Tensor, slope: Tensor, first: Tensor, second: Tensor, spare: Tensor, count: float, group: dict[str, Any]
) -> None:
    """Do one AdamW update in place, as ``torch.optim.AdamW`` does; ``spare`` is overwritten."""
    (beta1, beta2), rate = group["betas"], group["lr"]
    first.lerp_(slope, 1 - beta1)
    second.mul_(beta2).addcmul_(slope, slope, value=1 - beta2)
    torch.sqrt(second, out=spare).div_((1 - beta2**count) ** 0.5).add_(group["eps"])
    weight.mul_(1 - rate * group["weight_decay"]).addcdiv_(first, spare, value=-rate / (1 - beta1**count))


def _expand(kept: tuple[_Moment, _Moment], moments: list[Tensor], spare: Tensor) -> None:
    first, second = moments
    first.copy_(kept[0].codes).div_(127)
    first.mul_(torch.abs(first, out=spare))
    second.copy_(kept[1].codes).div_(255).square_().square_()
    for moment, values in zip(kept, moments, strict=True):
        values.view(-1, BLOCK).mul_(moment.scales[:, None])


def _compress(kept: tuple[_Moment, _Moment], moments: list[Tensor], spare: Tensor, thresholds: Tensor) -> None:
    first, second = moments
    for moment, values in zip(kept, moments, strict=True):
        torch.abs(values, out=spare)
        torch.amax(spare.view(-1, BLOCK), 1, out=moment.scales)
        values.view(-1, BLOCK).div_(moment.scales.clamp_(min=_LEAST_SCALE)[:, None])
    torch.abs(first, out=spare).sqrt_().mul_(127).round_().copysign_(first)
    kept[0].codes.copy_(spare)
    torch.sign(second, out=spare)  # nonzero values must not become zero: the next update divides by their root
    second.sqrt_().sqrt_().mul_(255).add_(thresholds).floor_().clamp_(max=255)
    kept[1].codes.copy_(torch.maximum(second, spare, out=spare))
