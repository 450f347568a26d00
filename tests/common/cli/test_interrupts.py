"""Ctrl-C in a terminal, which reaches a command twice, is one interrupt; and it prints no traceback."""

import ctypes
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from common.cli import interrupts
from common.cli.session import Session
from tests.machine import patience


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


class SignalStack(ctypes.Structure):
    """``stack_t`` of sigaltstack(2)."""

    _fields_ = (("place", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))


@pytest.fixture(autouse=True)
def ordinary_stack() -> None:
    """Signals arrive on the ordinary stack, as in a command.

    In a process that had run a quarter of all tests the alternate one, of ``faulthandler``, could not be written to:
    the kernel then ends it by SIGSEGV without a word. What the reason was is not known.
    """
    disabled = 2
    ctypes.CDLL(None).sigaltstack(ctypes.byref(SignalStack(None, disabled, 0)), None)


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    made = Clock()
    monkeypatch.setattr(interrupts, "time", made)
    monkeypatch.setattr(interrupts, "_counted", {})
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield made
    for number, handler in handlers.items():
        signal.signal(number, handler)


def test_a_copy_is_the_same_signal_a_moment_later(clock: Clock) -> None:
    assert not interrupts.is_copy(signal.SIGINT)
    clock.now += 0.9 * interrupts.COPY_SECONDS
    assert interrupts.is_copy(signal.SIGINT)
    assert not interrupts.is_copy(signal.SIGTERM)
    clock.now += 0.2 * interrupts.COPY_SECONDS  # from the first on, not from its copy
    assert not interrupts.is_copy(signal.SIGINT)


def test_the_terminals_copy_does_not_interrupt_a_checkpoint(clock: Clock) -> None:
    session = Session(None, None, None, 1, 0)  # type: ignore[arg-type]
    with session.deferred_signals():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        assert session.stopping
        clock.now += 1
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_handlers_raise_once(clock: Clock) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    interrupts.handle()
    for number in (signal.SIGINT, signal.SIGTERM):
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)
        signal.raise_signal(number)


def test_an_ignored_interrupt_stays_ignored() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    interrupts.handle()
    signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


STARTING = """
import sys, time
from apps.recsys import __main__ as program
program.require_linux = lambda name: (print("starting", flush=True), time.sleep(60))
sys.exit(program.main())
"""


def test_an_interrupt_while_a_command_starts_is_130_without_a_traceback() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", STARTING],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == "starting\n"
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=patience(30))
    assert (process.returncode, err) == (130, "")
