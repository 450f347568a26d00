from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.memory.process import budget
from common.memory.process.budget import BudgetError, MemoryBudget, format_size, parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1", 1),
        ("1073741824", 1 << 30),
        ("4K", 4096),
        ("4KiB", 4096),
        ("4KB", 4000),
        ("400MiB", 400 << 20),
        ("1.5G", 3 << 29),
        ("2 GB", 2 * 10**9),
        ("1tib", 1 << 40),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


def test_percent_is_of_the_total() -> None:
    assert parse_size("50%", total=1 << 30) == 1 << 29


@pytest.mark.parametrize(
    "text", ["", "0", "-1", "-5GiB", "1.5", "3XB", "GiB", "1e9", "nan", "120%", "0%", "12 34", "½G"]
)
def test_not_sizes(text: str) -> None:
    with pytest.raises(BudgetError, match="size"):
        parse_size(text, total=1 << 30)


@given(st.integers(1, 1 << 50))
def test_an_integer_is_bytes(size: int) -> None:
    assert parse_size(str(size)) == size


def test_format() -> None:
    assert [format_size(n) for n in (5, 2048, 317 << 20, 3 << 29)] == ["5 bytes", "2.0 KiB", "317.0 MiB", "1.50 GiB"]


def _cgroup(place: Path, **files: object) -> None:
    place.mkdir(parents=True, exist_ok=True)
    for name, value in files.items():
        (place / name.replace("__", ".")).write_text(str(value))


def test_cgroup_v1_ancestors_count_without_page_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outer, inner = tmp_path / "memory" / "outer", tmp_path / "memory" / "outer" / "inner"
    _cgroup(
        outer,
        memory__limit_in_bytes=1000,
        memory__usage_in_bytes=700,
        memory__stat="inactive_file 10\ntotal_inactive_file 400",
    )
    _cgroup(inner, memory__limit_in_bytes=2000, memory__usage_in_bytes=100, memory__stat="total_inactive_file 0")
    places = list(budget.memory_cgroups(tmp_path, "4:memory:/outer/inner\n0::/"))
    assert places[:3] == [inner, outer, tmp_path / "memory"]
    monkeypatch.setattr(budget, "memory_cgroups", lambda: iter(places))
    assert budget.available_memory() == 1000 - (700 - 400)
    assert budget.total_memory() == 1000


def test_cgroup_v2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "app"
    _cgroup(place, memory__max=5000, memory__current=4000, memory__stat="inactive_file 1500")
    places = list(budget.memory_cgroups(tmp_path, "0::/app"))
    monkeypatch.setattr(budget, "memory_cgroups", lambda: iter(places))
    assert budget.available_memory() == 5000 - (4000 - 1500)


def test_no_limit_is_no_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _cgroup(tmp_path / "app", memory__max="max", memory__limit_in_bytes=9223372036854771712)
    monkeypatch.setattr(budget, "memory_cgroups", lambda: iter([tmp_path / "app"]))
    assert budget.total_memory() == budget._meminfo("MemTotal")
    assert budget.available_memory() == int(0.9 * budget._meminfo("MemAvailable")) or budget.available_memory() > 0


def test_device_budget_is_independent() -> None:
    stated = MemoryBudget.parse("1GiB", "2GiB", device_free=8 << 30)
    assert (stated.host_bytes, stated.device_bytes, stated.source) == (1 << 30, 2 << 30, "--memory")
    assert MemoryBudget.parse("auto", device_free=1000).device_bytes == 900
    assert MemoryBudget.parse("1GiB").device_bytes is None
