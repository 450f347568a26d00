"""The ceiling on a CUDA device (``--gpu-memory``), which is independent of the host's.

A process occupies device memory in three ways: its context (code and CUDA's own buffers), the reserve of PyTorch's
caching allocator, and allocations of libraries (NCCL, cuDNN plans), which PyTorch does not count. The ceiling is a
limit of PyTorch's allocator: beyond it an ``OutOfMemoryError`` is raised, and training retries with a smaller
micro-batch. The peak is the allocator's. Written against the documentation of PyTorch 2.13; **not run on a device
yet**.
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
"""Device files of an NVIDIA driver, and of one under WSL."""
_SETTINGS = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
"""The allocator's environment variable and its older name, which PyTorch still reads."""


@dataclass(frozen=True, slots=True)
class Device:
    """A CUDA device and its memory at the time of reading."""

    index: int
    total_bytes: int
    free_bytes: int
    """Free bytes, without this process's context."""

    @property
    def name(self) -> str:
        """PyTorch's name of the device: ``"cuda:0"``."""
        return f"cuda:{self.index}"

    def budget(self, text: str | None) -> int:
        """Return the bytes of ``--gpu-memory``: a size, ``N%`` of the free memory, or ``auto`` for 90 % of it.

        Raises
        ------
        BudgetError
            If the text is not a size, or is more than the free memory.
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
    """Return the value of ``--device`` in lower case.

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
    """Return the device that ``--device`` names; ``None`` is the host.

    ``auto`` is the first CUDA device, or the host if there is none. PyTorch is imported only if a driver is present.

    Raises
    ------
    BudgetError
        If a CUDA device is named that cannot be used.
    """
    name = parse(text)
    if name == HOST or (name == "auto" and not any(path.exists() for path in _DRIVERS)):
        return None
    problem = unusable()
    if problem is None:
        return _read_device(int(name.partition(":")[2] or 0), text)
    if name == "auto":
        return None
    raise BudgetError(f"--device {text}: {problem}")


def open_device(text: str, gpu_memory: str | None) -> tuple[Device | None, int | None]:
    """Choose the device, set its limit and reset its peak.

    Parameters
    ----------
    text
        Value of ``--device``.
    gpu_memory
        Value of ``--gpu-memory``; ``None`` if it was not given.

    Returns
    -------
    tuple
        The device and its ceiling in bytes, both ``None`` for the host.

    Raises
    ------
    BudgetError
        If there is no such device, if it has less free memory, or if a ceiling was given without a device.
    """
    device = discover(text)
    if device is None:
        if gpu_memory is not None:
            raise BudgetError(f"--gpu-memory {gpu_memory}: no CUDA device is used; add --device cuda")
        return None, None
    size = device.budget(gpu_memory)
    limit(device, size)
    reset_peak(device)
    return device, size


def unusable() -> str | None:
    """Return the reason why no CUDA device can be used; ``None`` if one can."""
    if find_spec("torch") is None:
        return "PyTorch is not installed"
    import torch

    if torch.version.cuda is None:
        return f"this PyTorch ({torch.__version__}) is built without CUDA"
    if not torch.cuda.is_available():
        return "no CUDA device is visible (no driver, or CUDA_VISIBLE_DEVICES hides it)"
    return None


def _read_device(index: int, text: str) -> Device:
    import torch

    count = torch.cuda.device_count()
    if index >= count:
        raise BudgetError(f"--device {text}: there are {count} devices, cuda:0 to cuda:{count - 1}")
    free, total = torch.cuda.mem_get_info(index)
    return Device(index, total, free)


def environment() -> dict[str, str]:
    """Return environment variables for a child: PyTorch's allocator reads them when it is loaded.

    Expandable segments grow in place, so that reserved memory equals allocated memory, as ``glibc.pin_thresholds`` does
    on the host. A user's own setting is kept.
    """
    if any(os.environ.get(name) for name in _SETTINGS):
        return {}
    return {_SETTINGS[0]: "expandable_segments:True"}


def limit(device: Device, size: int) -> None:
    """Limit PyTorch's allocator to ``size`` bytes, the context excluded.

    Beyond it an allocation raises ``torch.OutOfMemoryError``.
    """
    import torch

    torch.cuda.set_per_process_memory_fraction(min(1.0, size / device.total_bytes), device.index)


def reset_peak(device: Device) -> None:
    """Reset the allocator's peak to the memory in use, after returning its unused blocks."""
    import torch

    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device.index)


def peak(device: Device) -> int:
    """Return the largest number of bytes that the allocator has reserved since the last ``reset_peak``."""
    import torch

    return torch.cuda.max_memory_reserved(device.index)
