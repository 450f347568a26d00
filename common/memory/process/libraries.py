"""Find libraries that a command loads after its warm-up: no plan has counted them.

The tests set ``CHECK`` for every command that they run, so that such a command fails.
"""

import os
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from common.memory.process.budget import KIB, format_size

CHECK = "PEAKLINE_CHECK_LIBRARIES"
"""Environment variable; if it is set, a command fails that loads a large library after its warm-up."""
LARGEST = 512 * KIB
"""Bytes that a library may take without having been loaded in the warm-up."""


_priced: set[str] = set()
"""Packages that may come late, because a term of the plan contains them."""


def priced(*packages: str) -> None:
    """Let packages, or parts of one (``torch.onnx``), come after the warm-up: a term of the plan contains them."""
    _priced.update(packages)


class LateLibrary(RuntimeError):
    """A command loaded libraries after its warm-up; the message names them."""


@dataclass(frozen=True, slots=True)
class Libraries:
    """What this process has loaded: resident bytes by shared library, bytes of compiled code by Python package."""

    shared: Mapping[str, int]
    packages: Mapping[str, int]

    @classmethod
    def now(cls) -> "Libraries":
        """Read the maps of this process and ``sys.modules``."""
        packages: Counter[str] = Counter()
        for name, module in list(sys.modules.items()):
            code = getattr(getattr(module, "__spec__", None), "cached", None)
            part = next((part for part in _priced if f"{name}.".startswith(f"{part}.")), name.partition(".")[0])
            packages[part] += _size(code) if code else 0
        return cls(_mapped(), packages)

    def beyond(self, warm: "Libraries") -> list[str]:
        """Return a text for each large library that is not in ``warm``."""
        late = [
            (Path(path).name, size)
            for path, size in self.shared.items()
            if path not in warm.shared and not _priced & set(Path(path).parts)
        ]
        late += [
            (name, size - warm.packages.get(name, 0)) for name, size in self.packages.items() if name not in _priced
        ]
        return [f"{name} ({format_size(size)})" for name, size in sorted(late) if size > LARGEST]


def check(warm: Libraries) -> None:
    """Compare what is loaded now with what the warm-up had loaded.

    Raises
    ------
    LateLibrary
        If a library of more than ``LARGEST`` came later.
    """
    if late := Libraries.now().beyond(warm):
        raise LateLibrary(f"loaded after the warm-up: {', '.join(late)}")


@contextmanager
def none_late() -> Iterator[None]:
    """Run a command's work, and check it if ``CHECK`` is set.

    Raises
    ------
    LateLibrary
        As ``check``.
    """
    warm = Libraries.now() if os.environ.get(CHECK) else None
    yield
    if warm is not None:
        check(warm)


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return 0


def _mapped() -> dict[str, int]:
    """Return the resident bytes of each shared library."""
    sizes: Counter[str] = Counter()
    path = ""
    with open("/proc/self/smaps", encoding="utf-8", errors="replace") as stream:
        for line in stream:
            name, *fields = line.split(maxsplit=5)
            if "-" in name and len(fields) >= 4:
                path = fields[4].strip() if len(fields) > 4 else ""
            elif name == "Rss:" and ".so" in path:
                sizes[path] += int(fields[0]) * KIB
    return dict(sizes)
