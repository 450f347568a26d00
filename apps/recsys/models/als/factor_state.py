"""State of a training of two factor matrices, which its checkpoint keeps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(slots=True)
class FactorState:
    """Factors and progress of a training."""

    users: NDArray[np.float32]
    """Factors, shape (users, factors)."""
    items: NDArray[np.float32]
    """Factors, shape (items, factors)."""
    sweep: int = 0
    """Sweeps that are done; even ones solve the users, odd ones the items. For ``bpr``: epochs."""
    row: int = 0
    """Rows of the next sweep that are already done."""
