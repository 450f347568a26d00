"""The device's ceiling: names, sizes and refusals here; what only a device can show is marked ``cuda``."""

from types import SimpleNamespace

import pytest
import torch

from common.memory.process import cuda
from common.memory.process.budget import GIB, MIB, BudgetError
from common.memory.process.cuda import Device
from tests.messages import refused

CARD = Device(index=1, total_bytes=80 * GIB, free_bytes=70 * GIB)


@pytest.mark.parametrize("text", ["cpu", "auto", "cuda", "cuda:0", "CUDA:12", " cpu "])
def test_names_of_devices(text: str) -> None:
    assert cuda.parse(text) == text.strip().lower()


@pytest.mark.parametrize("text", ["gpu", "cuda:", "cuda:-1", "cuda:x", "0", "", "cuda:0,1", "mps"])
def test_other_names_are_refused_in_one_line(text: str) -> None:
    with refused(BudgetError, "--device", "cpu", "cuda", "cuda:N", "auto") as caught:
        cuda.parse(text)
    assert "\n" not in str(caught.value)


def test_sizes_are_of_what_is_free() -> None:
    assert CARD.name == "cuda:1"
    assert CARD.budget(None) == CARD.budget("auto") == 63 * GIB
    assert CARD.budget("10GiB") == 10 * GIB
    assert CARD.budget("50%") == 35 * GIB
    with refused(BudgetError, "--gpu-memory 71GiB", "cuda:1", "70.00 GiB", "80.00 GiB"):
        CARD.budget("71GiB")
    with refused(BudgetError, "'plenty'", "size"):
        CARD.budget("plenty")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a device here")
def test_asking_for_what_is_not_there() -> None:
    assert cuda.discover("cpu") is None
    assert cuda.discover("auto") is None
    with refused(BudgetError, "--device cuda:0", "CUDA"):
        cuda.discover("cuda:0")


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A stand-in for ``torch.cuda`` with two devices, which remembers what it was told."""
    calls: list[tuple[object, ...]] = []
    fake = SimpleNamespace(
        calls=calls,
        is_available=lambda: True,
        device_count=lambda: 2,
        mem_get_info=lambda index: (60 * GIB, 80 * GIB),
        set_per_process_memory_fraction=lambda fraction, index: calls.append(("limit", fraction, index)),
        empty_cache=lambda: calls.append(("empty",)),
        reset_peak_memory_stats=lambda index: calls.append(("reset", index)),
        max_memory_reserved=lambda index: 512 * MIB,
    )
    monkeypatch.setattr(torch, "cuda", fake)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(cuda, "_DRIVERS", (cuda.Path("/dev/null"),))
    return fake


def test_discovery_limit_and_peak(card: SimpleNamespace) -> None:
    assert cuda.discover("auto") == cuda.discover("cuda") == Device(0, 80 * GIB, 60 * GIB)
    found = cuda.discover("cuda:1")
    assert found == Device(1, 80 * GIB, 60 * GIB)
    with refused(BudgetError, "cuda:2", "2 devices", "cuda:0", "cuda:1"):
        cuda.discover("cuda:2")
    cuda.limit(found, 20 * GIB)
    cuda.limit(found, 100 * GIB)
    cuda.reset_peak(found)
    assert card.calls == [("limit", 0.25, 1), ("limit", 1.0, 1), ("empty",), ("reset", 1)]
    assert cuda.peak(found) == 512 * MIB


def test_allocator_settings_of_the_user_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"):
        monkeypatch.delenv(name, raising=False)
    assert cuda.environment() == {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "max_split_size_mb:64")
    assert cuda.environment() == {}


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_real_device_keeps_its_ceiling() -> None:
    found = cuda.discover("cuda")
    assert found is not None and 0 < found.free_bytes <= found.total_bytes
    cuda.limit(found, 256 * MIB)
    cuda.reset_peak(found)
    block = torch.zeros(64 * MIB, dtype=torch.uint8, device=found.name)
    assert 64 * MIB <= cuda.peak(found) <= 256 * MIB
    with pytest.raises(torch.OutOfMemoryError):
        torch.zeros(512 * MIB, dtype=torch.uint8, device=found.name)
    del block
    cuda.limit(found, found.total_bytes)
