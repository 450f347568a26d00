"""Both command lines on systems that are not Linux: one line and exit 2, whatever such a system lacks."""

import subprocess
import sys

import pytest

from tests.machine import patience

START = """
import sys
sys.platform = {platform!r}
for name in {absent!r}:
    sys.modules[name] = None  # an import of it raises
from apps.{application}.__main__ import main
sys.argv = ["{application}", "--help"]
sys.exit(main())
"""


def _start(application: str, platform: str, *absent: str) -> "subprocess.CompletedProcess[str]":
    code = START.format(application=application, platform=platform, absent=absent)
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=patience(60))


@pytest.mark.parametrize("platform", ["win32", "darwin", "freebsd14"])
@pytest.mark.parametrize("application", ["recsys", "imaging"])
def test_other_systems_are_refused_in_one_line(application: str, platform: str) -> None:
    ended = _start(application, platform, "fcntl", "resource", "numpy")
    assert (ended.returncode, ended.stdout) == (2, "")
    [line] = ended.stderr.splitlines()
    assert line.startswith(f"{application}: ") and "Linux" in line and platform in line


@pytest.mark.parametrize("application", ["recsys", "imaging"])
def test_linux_is_not_refused(application: str) -> None:
    ended = _start(application, "linux")
    assert (ended.returncode, ended.stderr) == (0, "") and ended.stdout.startswith(f"usage: {application}")
