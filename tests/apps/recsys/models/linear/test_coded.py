"""A spectrum as codes: scores are those of the decoded rows, near those of the numbers; damaged codes are refused."""

from pathlib import Path

import numpy as np
import pytest

from apps.recsys.models import weights
from apps.recsys.models.linear import coded as coded_module
from apps.recsys.models.linear.coded import CodedScorer, code_tensors, read_codes
from apps.recsys.models.linear.filter import code_weights, linear_scorer
from apps.recsys.models.linear.log import Log
from apps.recsys.models.linear.spectral import Spectrum
from common.compression.codes import Codes
from common.errors import BadInput
from tests.apps.recsys.models.linear.test_filter import Matrix, interactions, normalised, stored

HYPER = {"degree_power": 0.3, "saturation": 0.5}
FACTORS = 24


def made(directory: Path, form: str, bits: int) -> tuple[Matrix, Log, Spectrum, Codes]:
    """Interactions, their log and their spectrum, as numbers and as codes."""
    dense = interactions(7)
    log = stored(directory, dense)
    values, vectors = np.linalg.eigh(normalised(dense))
    largest = np.argsort(-values)[:FACTORS]
    spectrum = Spectrum(vectors[:, largest].astype(np.float32), np.clip(values[largest], 0, 1).astype(np.float32))
    parts = code_weights(spectrum.eigenvalues, form, HYPER["saturation"])
    return dense, log, spectrum, Codes.of(spectrum.vectors, bits, seed=1, weights=parts)


@pytest.mark.parametrize("form", ["filter", "spectral"])
@pytest.mark.parametrize("bits", [8, 2, 1])
def test_scores_are_those_of_the_decoded_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str, bits: int
) -> None:
    monkeypatch.setattr(coded_module, "BLOCK_ROWS", 7)
    dense, log, spectrum, codes = made(tmp_path, form, bits)
    rows = codes.decode(slice(None)).astype(np.float64)
    matrix = rows @ rows.T if form == "spectral" else normalised(dense) - rows @ rows.T
    degrees = np.maximum(dense.sum(0), 1)
    histories = [(np.flatnonzero(row), np.ones(0, np.float32)) for row in (dense[0], dense[5], dense[-1])]
    questions = np.stack([np.isin(np.arange(40), items) for items, _ in histories]).astype(np.float64)
    expected = degrees**0.3 * ((questions * degrees**-0.3) @ matrix)
    counts = log.counts()
    scorer = linear_scorer(log, counts, {"form": form, **HYPER}, codes)
    got = scorer.scores(histories, scorer.workspace(5))
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-6)
    parts = scorer.contributions(*histories[1], np.array([3, 0, 39]))
    assert parts is not None
    np.testing.assert_allclose(parts.sum(1), expected[1, [3, 0, 39]], rtol=1e-4, atol=1e-6)
    if bits == 8:
        numbers = linear_scorer(log, counts, {"form": form, **HYPER}, spectrum)
        near = numbers.scores(histories, numbers.workspace(3))
        assert np.abs(near - got).max() < 0.01 * np.abs(near).max()
    if isinstance(scorer, CodedScorer):
        lengths = np.maximum(np.linalg.norm(rows, axis=1), 1e-20)
        np.testing.assert_allclose(scorer.similarities(4), rows @ rows[4] / lengths / lengths[4], atol=1e-5)
        some = np.array([4, 0, 9])
        np.testing.assert_allclose(scorer.closeness(some)[0], scorer.similarities(4)[some], atol=1e-5)
        np.testing.assert_allclose(scorer.item_vectors(), rows * degrees[:, None] ** 0.3, rtol=1e-5)


@pytest.mark.parametrize("bits", [8, 4, 2, 1])
def test_codes_are_read_as_they_were_written(tmp_path: Path, bits: int) -> None:
    _, log, spectrum, codes = made(tmp_path, "spectral", bits)
    path = tmp_path / weights.WEIGHTS
    tensors = {weights.COUNTS: log.counts(), weights.EIGENVALUES: spectrum.eigenvalues, **code_tensors(codes)}
    weights.write(path, tensors)
    weights.check(path, items=40, factors=FACTORS, linear=True, bits=bits)
    again = read_codes(path, factors=FACTORS, bits=bits)
    np.testing.assert_array_equal(again.decode(slice(None)), codes.decode(slice(None)))
    for factors, other in ((FACTORS + 8, bits), (FACTORS, 32), (FACTORS, 4 if bits == 8 else 8)):
        with pytest.raises(BadInput, match=r"spectrum|eigenvalues"):
            weights.check(path, items=40, factors=factors, linear=True, bits=other)
    for name, wrong in (
        (weights.SCALES, np.full(40, np.nan, np.float16)),
        (weights.SCALES, np.full(40, -1, np.float16)),
        (weights.UNIT, np.full(1, np.inf, np.float32)),
        (weights.UNIT, np.full(1, 3e38, np.float32)),
    ):
        weights.write(path, {**tensors, name: wrong})
        with pytest.raises(BadInput, match="scales") as refused:
            read_codes(path, factors=FACTORS, bits=bits)
        assert "\n" not in str(refused.value)
    weights.write(path, tensors)
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(BadInput):
        weights.check(path, items=40, factors=FACTORS, linear=True, bits=bits)
