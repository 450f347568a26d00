"""Row formats that can be trained in place: float32, and int8 and int4 codes with stochastic rounding.

Rounding to nearest would lose every update smaller than half a code. Rounding up with the probability of the remainder
is unbiased (Gupta et al. 2015, arXiv 1502.02551). A row's scale does not change while its numbers fit it, so that a
number without update keeps its code exactly and only updates add noise. The noise is smaller with thresholds that are
spread evenly over a number's steps than with random ones: a number that one step rounds down the next rounds up.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

BLOCK_ROWS = 1 << 14
"""Rows encoded at a time when a table is initialised, so that no float32 copy of it exists."""
SCALE_BYTES = 2
"""Bytes of a row's float16 scale."""
_RESOLUTION = 24
"""Bits of a threshold: those of a float32's significand."""
_ROW, _COLUMN, _STEP = (int(share * (1 << _RESOLUTION)) | 1 for share in (0.7548776662, 0.5698402910, 0.6180339887))
"""The multiples of each are evenly spread: powers of the plastic number (Roberts 2018), over time the golden ratio."""
TOO_SMALL, TOO_LARGE = 0.7, 1.5
"""A row gets a new scale when its spread relative to the present scale leaves this range."""


@dataclass(frozen=True, slots=True)
class Format:
    """The storage format of a row.

    Attributes
    ----------
    bits
        Bits per number: 32 (float32, no scale), 8 or 4.
    spread
        Largest magnitude that can be stored, in standard deviations of the row; numbers beyond are clipped.
    """

    bits: int
    spread: float = 0.0

    @property
    def levels(self) -> int:
        """Largest code; codes run from ``-levels`` to ``levels``."""
        return (1 << (self.bits - 1)) - 1

    def bytes_per_row(self, width: int) -> int:
        """Return the stored bytes of one row."""
        return 4 * width if self.bits == 32 else width * self.bits // 8 + SCALE_BYTES


FORMATS = {"full": Format(32), "int8": Format(8, spread=3.0), "int4": Format(4, spread=2.5)}


def empty(rows: int, width: int, form: Format) -> tuple[Tensor, Tensor | None]:
    """Allocate ``rows`` rows: codes (or float32 numbers) and scales.

    Raises
    ------
    ValueError
        An odd number of 4-bit codes does not fill whole bytes.
    """
    import torch

    if form.bits == 32:
        return torch.empty(rows, width), None
    if width * form.bits % 8:
        raise ValueError(f"{width} numbers of {form.bits} bits do not fill whole bytes")
    kind = torch.int8 if form.bits == 8 else torch.uint8
    return torch.empty(rows, width * form.bits // 8, dtype=kind), torch.empty(rows, dtype=torch.float16)


def decode(codes: Tensor, scales: Tensor | None, form: Format) -> Tensor:
    """Return stored rows as float32, shape (..., width)."""
    import torch

    if scales is None:
        return codes
    if form.bits == 4:
        codes = torch.stack([codes & 15, codes >> 4], -1).flatten(-2).to(torch.int8) - 8
    return codes.float() * scales.float()[..., None]


def rounding_thresholds(ids: Tensor, width: int, step_count: Tensor) -> Tensor:
    """Return thresholds in [0, 1) for ``encode``, float32 (rows, width), spread evenly over each number's steps."""
    import torch

    sequence = (ids * _ROW + step_count * _STEP)[:, None] + torch.arange(width) * _COLUMN
    return sequence.bitwise_and_((1 << _RESOLUTION) - 1).float().div_(1 << _RESOLUTION)


def encode(
    values: Tensor, scales: Tensor | None, form: Format, thresholds: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """Encode rows; a number is rounded up if remainder plus threshold is at least one.

    Parameters
    ----------
    values
        float32 (rows, width).
    scales
        The rows' present scales, float16 (rows,), kept where they still fit; ``None`` for new rows.
    thresholds
        From ``rounding_thresholds``, float32 (rows, width); ``None``: random ones.

    Returns
    -------
    codes, scales
        Arguments for ``decode``.
    """
    import torch

    if form.bits == 32:
        return values, None
    wanted = values.square().mean(1).sqrt().clamp(min=1e-7) * (form.spread / form.levels)
    if scales is not None:
        present = scales.float()
        fits = (wanted < TOO_LARGE * present) & (wanted > TOO_SMALL * present)
        wanted = torch.where(fits, present, wanted)
    chosen = wanted.to(torch.float16)
    codes = values / chosen.float()[:, None]
    codes += torch.rand_like(codes) if thresholds is None else thresholds
    codes = codes.floor_().clamp_(-form.levels, form.levels).to(torch.int8)
    if form.bits == 4:
        pairs = (codes + 8).to(torch.uint8)
        codes = pairs[:, 0::2] | (pairs[:, 1::2] << 4)
    return codes, chosen
