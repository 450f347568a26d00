"""A library that arrives after the warm-up is found; what was there before is not."""

import subprocess
import sys

import pytest

from common.memory.process.libraries import LARGEST, LateLibrary, Libraries, check


def test_only_what_is_new_and_large_is_late() -> None:
    warm = Libraries({"/a.so": 1, "/b.so": 9 * LARGEST}, {"json": 10})
    now = Libraries({"/a.so": 9 * LARGEST, "/b.so": 9 * LARGEST, "/c.so": LARGEST}, {"json": 10 + LARGEST})
    assert now.beyond(warm) == []
    late = Libraries({"/x/d.so": LARGEST + 1}, {"json": 11 + LARGEST})
    assert [text.partition(" ")[0] for text in late.beyond(warm)] == ["d.so", "json"]


def test_a_library_imported_after_the_warm_up_fails_the_check() -> None:
    code = "import numpy; from common.memory.process import libraries as l; w = l.Libraries.now(); l.check(w);"
    done = subprocess.run([sys.executable, "-c", code + "import pyarrow; l.check(w)"], capture_output=True, text=True)
    assert done.returncode == 1
    assert "LateLibrary" in done.stderr and "libarrow.so" in done.stderr and "numpy" not in done.stderr.splitlines()[-1]


def test_nothing_is_late_at_once() -> None:
    check(Libraries.now())
    with pytest.raises(LateLibrary):
        check(Libraries({}, {}))
