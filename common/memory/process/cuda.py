"""The second ceiling: the memory of a CUDA device. It is independent of the host's, and off unless asked for.

A process holds three things there: the context (code and CUDA's own buffers, once per process), what PyTorch's caching
allocator has reserved, and libraries' own allocations (NCCL, cuDNN plans), which nothing here sees. The ceiling is
kept by the allocator's own limit, which raises an ``OutOfMemoryError`` that a smaller micro-batch answers, and read
from the allocator's own peak. Written against PyTorch 2.13's documentation; **not run on a device yet**.
"""

import os
import re
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from common.memory.process.budget import AUTO_SHARE, BudgetError, format_size, parse_size

HOST = "cpu"
_NAME = re.compile(r"cpu|auto|cuda(?::(\d+))?")
_DRIVERS = (Path("/dev/nvidiactl"), Path("/dev/dxg"))
"""What the kernel shows where there is an NVIDIA driver, and under WSL."""
_SETTINGS = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
"""The allocator's variable; the second is its older name, which is still read."""


@dataclass(frozen=True, slots=True)
class Device:
    """One CUDA device as it was when it was looked at."""

    index: int
    total_bytes: int
    free_bytes: int
    """With this process's context in place: what it may still allocate."""

    @property
    def name(self) -> str:
        """As PyTorch calls it."""
        return f"cuda:{self.index}"

    def budget(self, text: str | None) -> int:
        """Bytes of ``--gpu-memory``: a size, ``N%`` of the free memory, or ``auto``, nine tenths of it.

        Raises
        ------
        BudgetError
            If it is not a size, or more than is free.
        """
        if text is None or text.strip().lower() == "auto":
            return int(AUTO_SHARE * self.free_bytes)
        size = parse_size(text, total=self.free_bytes)
        if size > self.free_bytes:
            raise BudgetError(
                f"--gpu-memory {text}: {self.name} has {format_size(self.free_bytes)} free"
                f" of {format_size(self.total_bytes)}"
            )
        return size


def parse(text: str) -> str:
    """``--device``'s value, in lower case.

    Raises
    ------
    BudgetError
        If it is none of ``cpu``, ``cuda``, ``cuda:N``, ``auto``.
    """
    name = text.strip().lower()
    if not _NAME.fullmatch(name):
        raise BudgetError(f"--device {text}: choose cpu, cuda, cuda:N or auto")
    return name


def discover(text: str) -> Device | None:
    """The device that ``--device`` stands for; ``None`` is the host.

    ``auto`` is the first CUDA device where there is one. PyTorch is imported only where a driver may be at hand.

    Raises
    ------
    BudgetError
        If a CUDA device was asked for by name and cannot be used.
    """
    name = parse(text)
    if name == HOST or (name == "auto" and not any(path.exists() for path in _DRIVERS)):
        return None
    problem = unusable()
    if problem is None:
        return _look(int(name.partition(":")[2] or 0), text)
    if name == "auto":
        return None
    raise BudgetError(f"--device {text}: {problem}")


def open_device(text: str, gpu_memory: str | None) -> tuple[Device | None, int | None]:
    """The device of ``--device`` and the ceiling of ``--gpu-memory``, with the limit set and the peak begun.

    Raises
    ------
    BudgetError
        If the device or that much of it is not there, or a ceiling was given for none.
    """
    found = discover(text)
    if found is None:
        if gpu_memory is not None:
            raise BudgetError(f"--gpu-memory {gpu_memory}: no CUDA device is used; add --device cuda")
        return None, None
    size = found.budget(gpu_memory)
    limit(found, size)
    reset_peak(found)
    return found, size


def unusable() -> str | None:
    """Why no CUDA device can be used here; ``None`` where one can."""
    if find_spec("torch") is None:
        return "PyTorch is not installed"
    import torch

    if torch.version.cuda is None:
        return f"this PyTorch ({torch.__version__}) is built without CUDA"
    if not torch.cuda.is_available():
        return "no CUDA device is visible (no driver, or CUDA_VISIBLE_DEVICES hides it)"
    return None


def _look(index: int, text: str) -> Device:
    import torch

    count = torch.cuda.device_count()
    if index >= count:
        raise BudgetError(f"--device {text}: there are {count} devices, cuda:0 to cuda:{count - 1}")
    free, total = torch.cuda.mem_get_info(index)
    return Device(index, total, free)


def environment() -> dict[str, str]:
    """Variables that a child must start with: the allocator reads them when PyTorch is loaded.

    Expandable segments grow in place, so reserved memory follows what is allocated: what ``glibc.pin_thresholds`` is to
    the host. What the user has set stays.
    """
    if any(os.environ.get(name) for name in _SETTINGS):
        return {}
    return {_SETTINGS[0]: "expandable_segments:True"}


def limit(device: Device, size: int) -> None:
    """Let the allocator reserve at most ``size`` bytes; beyond it raises ``torch.OutOfMemoryError``.

    The context is not in it: it exists already, and ``free_bytes`` is what is left beside it.
    """
    import torch

    torch.cuda.set_per_process_memory_fraction(min(1.0, size / device.total_bytes), device.index)


def reset_peak(device: Device) -> None:
    """Start a new peak: unused reserved blocks go back first, so that it starts at what is in use."""
    import torch

    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device.index)


def peak(device: Device) -> int:
    """The most bytes that the allocator has reserved since the last reset, as the device's other users see it."""
    import torch

    return torch.cuda.max_memory_reserved(device.index)
