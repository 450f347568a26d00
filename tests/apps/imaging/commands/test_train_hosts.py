"""``imaging train`` over two hosts: network namespaces, each with a launcher of its own, and a cable between them."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from common.training.distributed.connections import SILENT_SECONDS
from tests.apps.imaging.commands.test_train_ranks import cases, options
from tests.machine import patience, wait_until
from tests.messages import says
from tests.ranks import children, ended, launch

__all__ = ["cases"]
HOSTS = ("10.77.24.1", "10.77.24.2")
LEAVING_SECONDS = 20
"""For a rank that has noticed: it writes a checkpoint, and the launcher stops the others."""


def ip(*words: str) -> None:
    """Run ``ip``."""
    subprocess.run(["ip", *words], check=True, capture_output=True)


@pytest.fixture
def hosts() -> Iterator[list[str]]:
    """Names of two namespaces that reach each other by one pair of interfaces, which are called as they are."""
    names = [f"peakline-{os.getpid()}-{number}" for number in range(2)]
    interfaces = [f"pk{os.getpid() % 10**8}{letter}" for letter in "ab"]
    try:
        try:
            for name in names:
                ip("netns", "add", name)
            ip("link", "add", interfaces[0], "type", "veth", "peer", "name", interfaces[1])
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"network namespaces are not permitted here: {error}")
        for name, interface, address in zip(names, interfaces, HOSTS, strict=True):
            ip("link", "set", interface, "netns", name)
            inside = ("-n", name)
            ip(*inside, "link", "set", interface, "name", "cable")
            ip(*inside, "address", "add", f"{address}/24", "dev", "cable")
            for device in ("lo", "cable"):
                ip(*inside, "link", "set", device, "up")
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)


def test_a_cable_that_is_cut_ends_the_job_in_time(cases: Path, hosts: list[str], tmp_path: Path) -> None:
    """The ranks train together until then. The first one says so in one line, and has written a checkpoint."""
    out = tmp_path / "out"
    launched = []
    for number, (name, address) in enumerate(zip(hosts, HOSTS, strict=True)):
        # By their names, which both take from this machine, the launchers would not know which of them is the host.
        host = ("--rdzv-conf", f"is_host={number == 0}", "--local-addr", address)
        meeting = ("--nnodes", "2", "--rdzv-backend", "c10d", "--rdzv-endpoint", f"{HOSTS[0]}:29544", *host)
        before = ("ip", "netns", "exec", name)
        folder = out if number == 0 else tmp_path / "other"
        arguments = options(cases, folder, steps=400)
        launched.append(launch(1, "apps.imaging", arguments, rendezvous=meeting, before=before, interface="cable"))
    last = out / ".training" / "last.safetensors"
    wait_until(last.is_file, seconds=120, alive=launched[0])
    saved = last.stat().st_mtime_ns
    ip("-n", hosts[1], "link", "set", "cable", "down")
    began = time.monotonic()
    code, said = ended(launched[0])
    took = time.monotonic() - began
    assert code != 0 and said.count("\n") == 0, said
    says(said, "another rank", "step")
    assert took <= SILENT_SECONDS + patience(LEAVING_SECONDS), took
    assert last.stat().st_mtime_ns > saved
    try:  # its launcher waits for the first one's words, for minutes
        wait_until(lambda: not list(children(tmp_path / "other")), seconds=LEAVING_SECONDS)
    finally:
        os.killpg(launched[1].pid, signal.SIGKILL)
    assert json.loads((out / "run.json").read_text())["error"]["kind"] == "lost rank"
