"""Columns of every Arrow type that can hold ids, numbers and times."""

from datetime import UTC, date, datetime

import pyarrow as pa
import pytest

from apps.recsys.data.formats import kinds
from tests.messages import refused

TEXTS = (pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.large_binary())
NOON = datetime(2024, 3, 1, 12, 0, 5, tzinfo=UTC).timestamp()


def texts(values: list[str | None]) -> list[pa.Array]:
    """The values in every type of text."""
    plain = pa.array(values, pa.string())
    return [*(plain.cast(kind) for kind in TEXTS), plain.dictionary_encode()]


def test_ids_of_every_type_of_text_are_alike() -> None:
    for column in texts(["a", "", None, " b ", "\t"]):
        found = kinds.ids(column)
        assert found.to_pylist() == ["a", "", None, "b", ""], column.type
        assert kinds.present(found).tolist() == [True, False, False, True, False], column.type


def test_nan_is_no_id() -> None:
    for kind in (pa.float32(), pa.float64()):
        assert kinds.present(kinds.ids(pa.array([1.0, float("nan"), None], kind))).tolist() == [True, False, False]
    assert kinds.texts(pa.array([float("nan"), None, 2.5])) == [None, None, "2.5"]


def test_numbers_of_every_type_of_text_are_alike() -> None:
    for column in texts(["1.5", "", None, " 2"]):
        assert kinds.numbers(column).to_pylist() == [1.5, None, None, 2.0], column.type
    for column in texts(["1,5"]):
        assert kinds.numbers(column, ",").to_pylist() == [1.5]
        with refused(kinds.Unreadable, "'1,5'", "number"):
            kinds.numbers(column)
    with refused(kinds.Unreadable, "date32", "number"):
        kinds.numbers(pa.array([date(2024, 1, 1)]))


@pytest.mark.parametrize(
    "written",
    [
        "2024-03-01T12:00:05",
        "2024-03-01 12:00:05",
        "2024-03-01T12:00:05Z",
        "2024-03-01T12:00:05z",
        "2024-03-01 12:00:05 UTC",
        "2024-03-01 12:00:05+00:00",
        "2024-03-01T14:00:05+02:00",
        "2024-03-01 14:00:05 +0200",
        "2024-03-01T07:00:05-05",
        " 2024-03-01T12:00:05.000000000 ",
        "2024-03-01T12:00:05,000",
        f"{NOON:.0f}",
    ],
)
def test_an_instant_is_the_same_however_it_is_written(written: str) -> None:
    for column in texts([written, "", None]):
        assert kinds.times(column).to_pylist() == [NOON, None, None], column.type


def test_nanoseconds_are_kept_to_the_microsecond() -> None:
    found = kinds.times(pa.array(["2024-03-01T12:00:05.123456789Z", "2024-03-01T12:00:05.5"])).to_pylist()
    assert found == pytest.approx([NOON + 0.123456, NOON + 0.5], abs=1e-6)


def test_arrows_own_times_are_seconds_too() -> None:
    stamp = pa.array([datetime(2024, 3, 1, 12, 0, 5)])
    for unit in ("s", "ms", "us", "ns"):
        assert kinds.times(stamp.cast(pa.timestamp(unit))).to_pylist() == [NOON]
        assert kinds.times(stamp.cast(pa.timestamp(unit, "Europe/Berlin"))).to_pylist() == [NOON]
    assert kinds.times(pa.array([date(1970, 1, 2)])).to_pylist() == [86400.0]
    assert kinds.times(pa.array([7, None])).to_pylist() == [7.0, None]


@pytest.mark.parametrize("written", ["yesterday", "2024-13-01", "12:00"])
def test_what_is_no_time_is_named(written: str) -> None:
    for column in texts(["2024-03-01", written]):
        with refused(kinds.Unreadable, f"'{written}'", "ISO"):
            kinds.times(column)
