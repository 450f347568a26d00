"""The parent of a running command, as small as an interpreter gets: run by path with ``python -I -S``.

It waits for the child that ``child.supervise`` started, passes SIGINT and SIGTERM on, and says in one line when the
child was killed or crashed. It imports nothing of the suite, because its memory counts against the user's ceiling.
"""

import os
import signal
import sys

FORESEEN = (0, 1, 2, 3, 4, 130)
"""The exit codes of ``common.errors``."""


def main(pid: int, cgroup: str, name: str, ceiling: int, json: bool, path: str) -> int:
    """Wait for ``pid``; returns its exit code, and 1 where it ended in a way that no command means to end in."""

    def pass_on(number: int, frame: object) -> None:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            pass

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, pass_on)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGINT, signal.SIGTERM))
    _, status, usage = os.wait4(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    if cgroup:
        try:
            os.rmdir(cgroup)
        except OSError:
            pass
    if code in FORESEEN:
        return code
    if -code in (signal.SIGINT, signal.SIGTERM):
        return 130
    message = f"ended with exit code {code}" if code > 0 else f"ended by {signal_name(-code)}"
    if -code == signal.SIGKILL:
        peak, limit = usage.ru_maxrss / 1024, ceiling / 2**20
        message = (
            f"killed at {peak:.1f} MiB of {limit:.1f} MiB; finished work is kept, the same command goes on from there"
        )
    sys.stderr.write(f"{name}: {message}\n")
    record = f'{{"command": "{name}", "exit_code": 1, "error": {{"kind": "killed", "message": "{message}"}}}}\n'
    if json:
        sys.stdout.write(record)
    if path:
        keep(path, record)
    return 1


def signal_name(number: int) -> str:
    """``SIGSEGV``; real-time signals have no name."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def keep(path: str, record: str) -> None:
    """Write the record, unless there is no folder for it, or one of a run that ended well stands there."""
    try:
        with open(path, encoding="utf-8") as stream:
            if '"exit_code": 0,' in stream.read():
                return
    except OSError:
        pass
    try:
        with open(f"{path}.part", "w", encoding="utf-8") as stream:
            stream.write(record)
        os.replace(f"{path}.part", path)
    except OSError:
        pass


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4]), sys.argv[5] == "json", sys.argv[6]))
