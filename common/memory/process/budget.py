"""The ceiling: parse the size that the user states, or read what the machine and its containers leave free.

``auto`` on the host is the smaller of 90 % of MemAvailable and, over all ancestors of our cgroup (v1 and v2),
limit - (usage - inactive_file): reclaimable page cache does not count against us.
"""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30

AUTO_SHARE = 0.9
"""Share of MemAvailable that ``auto`` takes; other programs keep a tenth."""

_UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}
_UNITS |= {"k": KIB, "kib": KIB, "m": MIB, "mib": MIB, "g": GIB, "gib": GIB, "t": GIB << 10, "tib": GIB << 10}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([a-z]*)")
_UNLIMITED = 1 << 60
"""cgroup v1 writes "no limit" as a number near 2^63."""


class BudgetError(ValueError):
    """A ceiling that cannot be used (exit 2)."""


def parse_size(text: str, *, total: int | None = None) -> int:
    """Parse a size.

    Parameters
    ----------
    text
        An integer is bytes; ``K M G T`` and ``KiB MiB GiB TiB`` are powers of 1024, ``KB MB GB TB`` of 1000.
    total
        Bytes that ``N%`` is of; ``None`` to accept no percentage.

    Returns
    -------
    int
        Bytes, at least 1.

    Raises
    ------
    BudgetError
        If the text is not a size, or not at least one byte.

    Examples
    --------
    >>> parse_size("1GiB"), parse_size("1.5G"), parse_size("10MB"), parse_size("50%", total=1000)
    (1073741824, 1610612736, 10000000, 500)
    """
    cleaned = text.strip().lower()
    if cleaned.endswith("%") and total is not None:
        share = re.fullmatch(r"(\d+(?:\.\d+)?)\s*%", cleaned)
        size = int(total * float(share[1]) / 100) if share and float(share[1]) <= 100 else 0
    else:
        match = _SIZE.fullmatch(cleaned)
        unit = _UNITS.get(match[2]) if match else None
        size = int(float(match[1]) * unit) if match and unit else 0
        if match and unit == 1:
            size = int(match[1]) if match[1].isdigit() else 0
    if size < 1:
        raise BudgetError(f"{text!r} is not a size: write bytes, or a number with K M G KiB MiB GiB KB MB GB, or N%")
    return size


def format_size(size: int) -> str:
    """Format bytes in binary units.

    Examples
    --------
    >>> format_size(1 << 30), format_size(332_608_307), format_size(512)
    ('1.00 GiB', '317.2 MiB', '512 bytes')
    """
    if abs(size) >= GIB:
        return f"{size / GIB:.2f} GiB"
    if abs(size) >= MIB:
        return f"{size / MIB:.1f} MiB"
    return f"{size / KIB:.1f} KiB" if abs(size) >= KIB else f"{size} bytes"


def _read_int(path: Path) -> int | None:
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def _inactive_file(path: Path) -> int:
    """Read the page cache that the kernel reclaims first; ``total_`` is the v1 name that includes child cgroups."""
    try:
        fields = dict(line.split() for line in path.read_text().splitlines())
    except (OSError, ValueError):
        return 0
    return int(fields.get("total_inactive_file", fields.get("inactive_file", 0)))


def memory_cgroups(root: Path = Path("/sys/fs/cgroup"), membership: str | None = None) -> Iterator[Path]:
    """Iterate over the directories of this process's memory cgroup and its ancestors, v1 and v2, innermost first.

    Parameters
    ----------
    root
        Folder where cgroups are mounted.
    membership
        The text of ``/proc/self/cgroup``; ``None`` to read it.
    """
    if membership is None:
        try:
            membership = Path("/proc/self/cgroup").read_text()
        except OSError:
            return
    for line in membership.splitlines():
        number, controllers, name = line.split(":", 2)
        if "memory" in controllers.split(","):
            base = root / "memory"
        elif number == "0":
            base = root / "unified" if (root / "unified").is_dir() else root
        else:
            continue
        cgroup = base / name.lstrip("/")
        yield cgroup
        # In a container the path may be the host's; the container's own limit is then at the root of the mount.
        while cgroup != base:
            cgroup = cgroup.parent
            yield cgroup


def _cgroup_limit(cgroup: Path) -> int | None:
    for name in ("memory.max", "memory.limit_in_bytes"):
        limit = _read_int(cgroup / name)
        if limit is not None and limit < _UNLIMITED:
            return limit
    return None


def _cgroup_free(cgroup: Path) -> int | None:
    limit = _cgroup_limit(cgroup)
    if limit is None:
        return None
    usage = _read_int(cgroup / "memory.current") or _read_int(cgroup / "memory.usage_in_bytes") or 0
    return limit - max(0, usage - _inactive_file(cgroup / "memory.stat"))


def _meminfo(field: str) -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        name, value, *_ = line.split()
        if name == f"{field}:":
            return int(value) * KIB
    raise BudgetError(f"/proc/meminfo has no {field}; state the ceiling with --memory")


def total_memory() -> int:
    """Return the bytes that ``N%`` is of: the smaller of MemTotal and the tightest container limit."""
    limits = [limit for cgroup in memory_cgroups() if (limit := _cgroup_limit(cgroup)) is not None]
    return min([_meminfo("MemTotal"), *limits])


def available_memory() -> int:
    """Return the bytes that ``auto`` means (see the module's docstring), at least 1."""
    free = [free for cgroup in memory_cgroups() if (free := _cgroup_free(cgroup)) is not None]
    return max(1, min([int(AUTO_SHARE * _meminfo("MemAvailable")), *free]))


@dataclass(frozen=True, slots=True)
class MemoryBudget:
    """The ceiling of one command."""

    host_bytes: int
    """For the whole process tree, page cache excluded."""
    device_bytes: int | None = None
    """For the CUDA device, where one is used."""
    source: str = "--memory"
    """Origin of the host ceiling: ``"--memory"`` or ``"auto"``."""

    @classmethod
    def parse(
        cls, memory: str = "auto", gpu_memory: str | None = None, *, device_free: int | None = None
    ) -> "MemoryBudget":
        """Build from the values of the command line.

        Parameters
        ----------
        memory, gpu_memory
            Sizes as ``parse_size`` reads them, or ``auto``.
        device_free
            Free bytes of the CUDA device; ``None`` if none is used.

        Raises
        ------
        BudgetError
            If a text is not a size.
        """
        auto = memory.strip().lower() == "auto"
        host = available_memory() if auto else parse_size(memory, total=total_memory())
        device: int | None = None
        if device_free is not None:
            gpu_auto = gpu_memory in (None, "auto")
            device = int(AUTO_SHARE * device_free) if gpu_auto else parse_size(str(gpu_memory), total=device_free)
        return cls(host, device, "auto" if auto else "--memory")

    @property
    def warning(self) -> str:
        """Warning to the user about a ceiling above the machine's memory; empty for any other."""
        total = total_memory()
        if self.host_bytes <= total:
            return ""
        return f"--memory {format_size(self.host_bytes)} is more than this machine has ({format_size(total)})"


def page_size() -> int:
    """Return the kernel's page size in bytes."""
    return os.sysconf("SC_PAGE_SIZE")
