"""The parent of a running command, as small as an interpreter gets: run by path with ``python -I -S``.

It waits for the child that ``guard.supervise`` started, passes SIGINT and SIGTERM on, and says in one line when the
kernel killed it. It imports nothing of the suite, because everything it holds counts against the user's ceiling.
"""

import os
import signal
import sys


def main(pid: int, cgroup: str, name: str, ceiling: int, json: bool) -> int:
    """Wait for ``pid``; returns the exit code of DESIGN 1."""

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
    if code >= 0:
        return code
    if -code in (signal.SIGINT, signal.SIGTERM):
        return 130
    message = f"ended by signal {-code}"
    if -code == signal.SIGKILL:
        peak, limit = usage.ru_maxrss / 1024, ceiling / 2**20
        message = (
            f"killed at {peak:.1f} MiB of {limit:.1f} MiB; finished work is kept, the same command goes on from there"
        )
    sys.stderr.write(f"{name}: {message}\n")
    if json:
        record = f'{{"command": "{name}", "exit_code": 1, "error": {{"kind": "killed", "message": "{message}"}}}}\n'
        sys.stdout.write(record)
    return 1


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4]), sys.argv[5] == "json"))
