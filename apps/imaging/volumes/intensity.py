"""Intensity operations, shared by training and inference so that both see the same numbers.

An operation is a row of a model's ``intensity`` list, ``{"op": NAME, ...}``. ``resolve`` replaces statistics by
numbers, in passes over the volume; ``apply`` is then element-wise and works on a tile as on a volume.

``{"op": "zscore"}``                            (v - mean) / standard deviation, over all voxels
``{"op": "zscore", "nonzero": true}``           statistics over voxels that are not zero; zero voxels stay zero
``{"op": "clip", "low": A, "high": B}``
``{"op": "scale", "low": A, "high": B}``        A -> 0, B -> 1, linear
``{"op": "percentiles", "low": P, "high": Q}``  clip to these percentiles (0 to 100) of the volume
``{"op": "range", "low": A, "high": B}``        least value -> A, largest -> B, linear; ``"from": [P, Q]``: percentiles
``{"op": "resample"}``                          the place of the resampling to the network's grid; without it,
                                                statistics are of the file's grid, and all operations come after it
``{"op": "crop", "margin": [X, Y, Z]}``         the place of a crop to the box of positive voxels and a margin along the
                                                network's axes, zeros beyond the image; ``"smaller": true``: none there
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]
Operation = Mapping[str, Any]
Blocks = Callable[[], Iterable[npt.NDArray[Any]]]
"""Makes a pass over the volume: blocks of any shape, in the image's own scale."""

_LIMITS = {"low", "high"}
_FIELDS = {
    "zscore": {"nonzero"},
    "clip": _LIMITS,
    "scale": _LIMITS,
    "percentiles": _LIMITS,
    "range": {*_LIMITS, "from"},
    "resample": set(),
    "crop": {"margin", "smaller"},
}
_OPTIONAL = {"nonzero", "from", "smaller"}
RESAMPLE: Operation = {"op": "resample"}

HISTOGRAM_BINS = 1 << 16
"""Bins between the extremes, of the histogram from which percentiles are read."""

MOST_MARGIN = 4096
"""Voxels around a box, at most."""
LEAST_DEVIATION = 1e-8
"""Standard deviation below which a volume counts as constant, and is only centred."""


def check_operations(operations: Sequence[Operation]) -> None:
    """Check the operations of a model.

    Raises
    ------
    ValueError
        An unknown operation or field, a low limit that is not below the high one, or two resamplings.
    """
    for operation in operations:
        name = operation["op"]
        if name not in _FIELDS:
            raise ValueError(f"unknown intensity operation {name!r}; known: {', '.join(_FIELDS)}")
        present = set(operation) - {"op"}
        if present - _FIELDS[name] or _FIELDS[name] - present - _OPTIONAL:
            raise ValueError(f"intensity operation {name!r} takes {', '.join(sorted(_FIELDS[name]))}")
        if "low" in present and not float(operation["low"]) < float(operation["high"]):
            raise ValueError(f"intensity operation {name!r}: low must be below high")
        first, last = operation.get("from", (0, 100))
        if not 0 <= float(first) < float(last) <= 100:
            raise ValueError(f"intensity operation {name!r}: {first} and {last} are not two percentiles")
        margin = operation.get("margin", [0, 0, 0])
        if len(margin) != 3 or not all(isinstance(one, int) and 0 <= one <= MOST_MARGIN for one in margin):
            raise ValueError(f"intensity operation {name!r}: margin {margin!r}")
    names = [str(operation["op"]) for operation in operations]
    if twice := [name for name in ("resample", "crop") if names.count(name) > 1]:
        raise ValueError(f"intensity operation {twice[0]!r} twice")
    if "crop" in names and "resample" not in names[: names.index("crop")]:
        raise ValueError("intensity operation 'crop' without 'resample' before it")


def split(operations: Sequence[Operation], name: str = "resample") -> tuple[Sequence[Operation], Sequence[Operation]]:
    """The operations before resampling, or another one, and those after it; all are after it if it is not there."""
    names = [operation["op"] for operation in operations]
    if name not in names:
        return (), operations
    index = names.index(name)
    return operations[:index], operations[index + 1 :]


def is_fixed(operations: Sequence[Operation]) -> bool:
    """True if no operation asks for a pass over the image first."""
    return all(operation["op"] in ("clip", "scale", "resample") for operation in operations)


def crop_of(operations: Sequence[Operation]) -> Operation | None:
    """The crop among operations."""
    return next((operation for operation in operations if operation["op"] == "crop"), None)


def margin_of(crop: Operation) -> tuple[int, int, int]:
    """Voxels around the box of a crop, along the network's axes."""
    x, y, z = crop["margin"]
    return int(x), int(y), int(z)


def resolve(operations: Sequence[Operation], blocks: Blocks) -> tuple[Operation, ...]:
    """Replace statistics by numbers, in one or two passes over the volume for each operation that needs them.

    Parameters
    ----------
    blocks
        Makes a pass over the volume.

    Returns
    -------
    tuple
        Operations for ``apply``: ``clip``, and ``affine`` with ``shift``, ``factor`` and ``nonzero``.
    """
    done: list[Operation] = []
    for operation in operations:
        name = operation["op"]
        so_far = tuple(done)

        def passed(so_far: tuple[Operation, ...] = so_far) -> Iterator[Array]:
            for block in blocks():
                values = np.asarray(block, np.float32)
                yield apply(so_far, values.copy() if values is block else values)

        if name == "clip":
            done.append(operation)
        elif name == "scale":
            low, high = float(operation["low"]), float(operation["high"])
            done.append({"op": "affine", "shift": low, "factor": 1 / (high - low), "nonzero": False})
        elif name == "zscore":
            nonzero = bool(operation.get("nonzero", False))
            mean, deviation = moments(passed(), nonzero=nonzero)
            done.append({"op": "affine", "shift": mean, "factor": 1 / deviation, "nonzero": nonzero})
        elif name == "range":
            low, high = (float(operation[key]) for key in ("low", "high"))
            least, largest = percentiles(passed, operation["from"]) if "from" in operation else extremes(passed())
            factor = (high - low) / (largest - least) if largest > least else 0.0
            shift = least - low / factor if factor else 0.0
            done.append({"op": "affine", "shift": shift, "factor": factor, "nonzero": False})
        else:
            low, high = percentiles(passed, (float(operation["low"]), float(operation["high"])))
            done.append({"op": "clip", "low": low, "high": high})
    return tuple(done)


def apply(resolved: Sequence[Operation], values: Array) -> Array:
    """Apply resolved operations in place and return the array; values that are not finite count as zero."""
    if not np.isfinite(values.sum(dtype=np.float64)):  # one pass without masks, if there is nothing to mend
        np.nan_to_num(values, copy=False, nan=0.0, posinf=0.0, neginf=0.0)
    for operation in resolved:
        if operation["op"] == "clip":
            np.clip(values, np.float32(operation["low"]), np.float32(operation["high"]), out=values)
        else:
            zero = values == 0 if operation["nonzero"] else None
            values -= np.float32(operation["shift"])
            values *= np.float32(operation["factor"])
            if zero is not None:
                values[zero] = 0
    return values


def moments(blocks: Iterable[Array], *, nonzero: bool) -> tuple[float, float]:
    """Mean and standard deviation in double precision; (0, 1) if there is no value.

    Parameters
    ----------
    nonzero
        True: leave out zeros.
    """
    count, mean, squares = 0, 0.0, 0.0
    for block in blocks:
        chosen = block[block != 0] if nonzero else block.reshape(-1)
        if not chosen.size:
            continue
        # Chan's update: exact where the plain sum of squares cancels.
        block_mean = float(chosen.mean(dtype=np.float64))
        block_squares = float(np.square(chosen - np.float32(block_mean), dtype=np.float32).sum(dtype=np.float64))
        total = count + chosen.size
        squares += block_squares + (block_mean - mean) ** 2 * count * chosen.size / total
        mean += (block_mean - mean) * chosen.size / total
        count = total
    deviation = (squares / count) ** 0.5 if count else 1.0
    return mean, deviation if deviation > LEAST_DEVIATION else 1.0


def extremes(blocks: Iterable[Array]) -> tuple[float, float]:
    """Least and largest value."""
    low, high = np.inf, -np.inf
    for block in blocks:
        low, high = min(low, float(block.min())), max(high, float(block.max()))
    return low, high


def percentiles(blocks: Callable[[], Iterable[Array]], shares: tuple[float, float]) -> tuple[float, float]:
    """Two percentiles of a volume, from a histogram between its extremes: off by one bin's width at most.

    Parameters
    ----------
    blocks
        Makes a pass over the volume.
    shares
        The two, from 0 to 100.
    """
    low, high = extremes(blocks())
    if not low < high:
        return low, low + 1.0
    counts = np.zeros(HISTOGRAM_BINS, np.int64)
    for block in blocks():
        counts += np.histogram(block, HISTOGRAM_BINS, (low, high))[0]
    cumulated = np.cumsum(counts)
    edges = np.linspace(low, high, HISTOGRAM_BINS + 1)
    first, last = (float(edges[np.searchsorted(cumulated, share / 100 * cumulated[-1])]) for share in shares)
    return first, last if last > first else first + (high - low) / HISTOGRAM_BINS
