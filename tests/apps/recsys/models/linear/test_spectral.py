"""Item vectors of a spectrum, in memory and made of rows on disk."""

from pathlib import Path

import numpy as np

from apps.recsys.models import weights
from apps.recsys.models.linear.spectral import Spectrum, encoder, spectral_rows, spectral_scorer
from apps.recsys.models.scan import stored

HYPER = {"form": "spectral", "degree_power": 0.3, "saturation": 0.2, "bits": 32}


def test_vectors_made_of_rows_are_those_in_memory(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    vectors, values = random.normal(size=(2000, 6)).astype("f4"), np.array([1, 0.9, 0.5, 0.2, 0.1, 0], "f4")
    counts = random.integers(0, 90, 2000).astype("i4")
    path = tmp_path / weights.WEIGHTS
    tensors = {weights.COUNTS: counts, weights.SPECTRUM: vectors, weights.EIGENVALUES: values}
    weights.write(path, tensors)
    rows = spectral_rows(path, counts, HYPER)
    whole = spectral_scorer(counts, Spectrum(vectors.copy(), values), degree_power=0.3, saturation=0.2)
    some = np.array([7, 1999, 0, 7])
    np.testing.assert_allclose(rows[some], whole.item_factors[some], rtol=1e-6)
    for span, block in rows.blocks():
        np.testing.assert_allclose(block, whole.item_factors[span], rtol=1e-6)
    made, ones = encoder(rows, counts, degree_power=0.3), np.ones(4, np.float32)
    np.testing.assert_allclose(made(some, ones), whole.fold_in(some, ones), rtol=1e-5, atol=1e-6)
    assert made.contributions is not None
    np.testing.assert_allclose(made.contributions(some, ones).sum(0), made(some, ones), rtol=1e-4, atol=1e-5)


def test_only_a_spectrum_in_float32_is_scanned() -> None:
    assert stored.supports("linear", HYPER)
    for changed in ({"bits": 4}, {"form": "filter"}, {"form": "ease"}, {"form": "auto"}):
        assert not stored.supports("linear", {**HYPER, **changed})
