"""Scores of a spectrum alone: item vectors ``D^b V h(l)^1/2``, whose sums over histories are user vectors.

V are eigenvectors of P with eigenvalues l, and D the items' numbers of users (see ``filter``). In memory the vectors
take the place of V; on disk they are made of the rows that are read, so that a large catalogue can be scanned
(``apps.recsys.models.scan``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apps.recsys.models import weights
from apps.recsys.models.embedding.user_encoders import Encoder
from apps.recsys.models.scan.rows import ItemRows, Rows
from apps.recsys.models.scorers import FactorScorer

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def response(eigenvalues: NDArray[np.float32], saturation: float) -> NDArray[np.float32]:
    """``l c / (l + c)``, c relative to the largest eigenvalue: how much of each eigenvector passes.

    Examples
    --------
    >>> import numpy as np
    >>> response(np.array([1, 0.5], np.float32), 1.0)
    array([0.5       , 0.33333334], dtype=float32)
    """
    ridge = saturation * max(float(eigenvalues.max(initial=0)), 1e-30)
    passed: NDArray[Any] = eigenvalues * ridge / (eigenvalues + ridge)
    return passed.astype(eigenvalues.dtype)


@dataclass(frozen=True, slots=True)
class Spectrum:
    """Eigenvectors of P, shape (items, factors), and their eigenvalues, shape (factors,)."""

    vectors: NDArray[np.float32]
    eigenvalues: NDArray[np.float32]


def encoder(vectors: NDArray[np.float32] | Rows, counts: NDArray[np.int32], *, degree_power: float) -> Encoder:
    """The user's vector: the sum of the items' vectors, each divided by the item's number of users to the power 2 b.

    Parameters
    ----------
    vectors
        ``D^b V h(l)^1/2``, shape (items, factors).
    counts
        Users of each item, shape (items,).
    degree_power
        b.
    """
    import numpy as np

    def fold_in(items: NDArray[Any], values: NDArray[np.float32]) -> NDArray[np.float32]:
        vector: NDArray[np.float32] = powers(counts[items], -2 * degree_power) @ vectors[items]
        return vector

    def contributions(items: NDArray[Any], values: NDArray[np.float32]) -> NDArray[np.float64]:
        shares = powers(counts[items], -2 * degree_power)
        parts: NDArray[np.float64] = shares[:, None].astype(np.float64) * vectors[items]
        return parts

    return Encoder(fold_in, contributions)


def powers(counts: NDArray[np.int32], power: float) -> NDArray[np.float32]:
    """Numbers of users, at least 1, to a power."""
    import numpy as np

    raised: NDArray[np.float32] = np.maximum(counts, 1).astype(np.float32) ** np.float32(power)
    return raised


def spectral_scorer(
    counts: NDArray[np.int32], spectrum: Spectrum, *, degree_power: float, saturation: float
) -> FactorScorer:
    """Make a scorer by item vectors, changed in place from V; parameters as in ``encoder`` and ``response``."""
    import numpy as np

    vectors = spectrum.vectors
    vectors *= np.sqrt(response(spectrum.eigenvalues, saturation))
    vectors *= powers(counts, degree_power)[:, None]
    made = encoder(vectors, counts, degree_power=degree_power)
    return FactorScorer(vectors, made.fold_in, made.contributions)


def spectral_rows(path: Path, counts: NDArray[np.int32], hyper: Mapping[str, Any]) -> ItemRows:
    """The item vectors of a model of the form ``spectral``, made of the rows of V in its weights; raises as
    ``ItemRows``."""
    import numpy as np

    rows, power = ItemRows(path, weights.SPECTRUM), float(hyper["degree_power"])
    passed = np.sqrt(response(weights.read_eigenvalues(path), float(hyper["saturation"])))
    rows.scale(passed, lambda some: powers(counts[some], power))
    return rows
