"""Commands whose standard streams are closed, full or broken: they end quietly, or say so in one line."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from common.memory.process.child import python_environment
from common.terminal import cell, escaped
from tests.machine import patience
from tests.messages import says

COMMAND = [sys.executable, "-P", "-m", "apps.recsys"]


def shell(command: str, *arguments: object, **streams: Any) -> subprocess.CompletedProcess[bytes]:
    """Run a shell line in which ``$0`` is Python's command line for ``recsys`` with the arguments."""
    words = [*COMMAND, *map(str, arguments)]
    return subprocess.run(
        ["sh", "-c", command, *words], env=python_environment(), timeout=patience(60), check=False, **streams
    )


@pytest.mark.parametrize("command", ['"$0" "$@" >&-', '"$0" "$@" <&-', '"$0" "$@" 2>&-'])
def test_a_closed_stream(command: str) -> None:
    done = shell(command, "--version", capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")
    assert (done.stdout == b"") is (">&-" in command and "2>" not in command)


@pytest.mark.parametrize("json", [(), ("--json",)])
def test_a_full_device(json: tuple[str, ...], tmp_path: Path) -> None:
    with Path("/dev/full").open("wb") as full:
        done = shell('"$0" "$@"', "recommend", tmp_path, "--user", 1, *json, stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == 4 and b"Traceback" not in done.stderr
    assert done.stderr.count(b"\n") == 1 + len(json)


def test_a_reader_that_has_gone(tmp_path: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    done = shell('"$0" "$@"', "recommend", tmp_path, "--user", 1, "--json", stdout=write, stderr=subprocess.PIPE)
    os.close(write)
    assert done.returncode == 4 and done.stderr.count(b"\n") == 1


def test_control_characters_of_data_are_shown(run: Callable[..., Any], tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("user,item,\x1b]0;marked\x07\x1b[2Jstars\n1,2,3\n")
    done = run("apps.recsys", "train", path, "--value-col", "no", "-o", tmp_path / "m")
    assert done.code == 4 and "\x1b" not in done.err and "\x07" not in done.err
    says(done.err, "\\x1b[2Jstars")


def test_escaped() -> None:
    assert escaped("a\r\nb\x9b\u202e\udcff é") == "a\\r\\nb\\x9b\\u202e\\udcff é"
    assert [cell(text) for text in ("=A1", "+1", "-1", "@x", "a=b", "")] == ["'=A1", "'+1", "'-1", "'@x", "a=b", ""]


def test_no_room_is_said_with_the_place(run: Callable[..., Any], tmp_path: Path) -> None:
    """Files may not grow beyond 3,000 bytes: the supervisor's code, which is larger, included."""
    path = tmp_path / "a.csv"
    path.write_text("user,item\n" + "".join(f"{n % 97},{n % 89}\n" for n in range(5000)))
    words = [*COMMAND, "train", str(path), "-o", str(tmp_path / "m"), "--memory", "400MiB"]
    done = subprocess.run(
        ["sh", "-c", 'ulimit -f 3; exec "$0" "$@"', *words],
        env=python_environment(),
        capture_output=True,
        timeout=patience(120),
        check=False,
    )
    assert done.returncode == 1 and done.stderr.count(b"\n") == 1, done.stderr
    says(done.stderr.decode(), "room", tmp_path)
    assert not (tmp_path / "m" / "model.json").exists() and not list(tmp_path.glob(".*"))


def test_names_that_are_not_utf8(run: Callable[..., Any], tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("user,item\n" + "".join(f"{n % 17},{n * 7 % 23}\n" for n in range(300)))
    model = os.fsencode(tmp_path) + b"/\xff\xfe"
    words = [os.fsencode(word) for word in COMMAND]
    common = {"env": python_environment(), "capture_output": True, "timeout": patience(120), "check": False}
    made = subprocess.run([*words, b"train", os.fsencode(path), b"-o", model, b"--memory", b"400MiB"], **common)
    assert made.returncode == 0, made.stderr
    asked = subprocess.run([*words, b"recommend", model, b"--user", b"3", b"-k", b"2"], **common)
    assert asked.returncode == 0 and asked.stdout.count(b"\n") == 3, asked.stderr
    unknown = subprocess.run([*words, b"recommend", model, b"--user", b"\xff"], **common)
    assert unknown.returncode == 4 and unknown.stderr.count(b"\n") == 1, unknown.stderr
