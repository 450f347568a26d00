"""The parent of a running command, as small as an interpreter gets: run by path with ``python -I -S``.

It waits for the child that ``child.supervise`` started, passes SIGINT, SIGTERM and SIGHUP on, and says in one line when
the child was killed or crashed. Where no memory cgroup can be written, it is the hard wall: it reads what the process
tree holds, and ends it above the ceiling. It imports nothing of peakline, because its memory counts against the user's
ceiling.
"""

import os
import signal
import sys
import time

FORESEEN = (0, 1, 2, 3, 4, 130)
"""The exit codes of ``common.errors``."""
PLANNED, UNWALLED = signal.SIGUSR1, signal.SIGUSR2
"""Signals of the child: its plan stands, so the ceiling counts from now on; it measures outside the walls, in order to
refuse."""
LEAST_WALL = 128 << 20
"""``guard.LEAST_WALL``: the limit in bytes until there is a plan, where the ceiling is lower."""

PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Signals that the child gets."""

LOOK, RARELY = 0.005, 0.05
"""Seconds between two readings of resident sizes, the least and the most: 1.3 % and 0.4 % of a core."""
GROWTH = 6 * (os.cpu_count() or 1) << 30
"""Bytes by which a tree may grow in a second: 5.4 GiB a core were measured. The next reading comes before the room that
is left could be filled."""
SHARE = 0.01
"""Share of a core that searching for new children may take, and reading PSS too: each is repeated only after as many
times its own duration."""
NEAR = 0.9
"""Share of the ceiling from which PSS is read. That takes 21 ms a GiB of small pages; resident sizes alone count what
processes share several times, and some kernels miscount them by up to 128 pages a core."""
PAGE = os.sysconf("SC_PAGE_SIZE")

HEARD_SECONDS = 5
"""For how long the first rank may take to notice that this one is gone, before this one's end is told from here."""
STOPPED_SECONDS = 20
"""For how long a rank of several may be stopped (SIGSTOP) before it is ended: all others wait for it."""
STOPPED = f"after {STOPPED_SECONDS} s in which it was stopped"
STUCK_SECONDS = 10
"""For how long a tree may do little else than read its own program again. Pages of mapped libraries are reclaimed
before anything is killed, so a full cgroup can slow a command down a thousandfold instead of ending it."""
STUCK_FAULTS = 50
"""Major page faults in each of these seconds; the slowest of disks serves about a hundred."""
STUCK_PAGES = 1600
"""Or pages that were read again in each of these seconds, where the kernel reads many at a fault: 160,000 and 25 faults
measured on a fast disk, where a loop over its own 50 MiB took 370 times as long."""


def main(pid: int, cgroup: str, name: str, ceiling: int, json: bool, path: str) -> int:
    """Wait for ``pid``; returns its exit code, and 1 where it ended in a way that no command means to end in."""

    def pass_on(number: int, frame: object) -> None:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            pass

    watch = Cgroup(cgroup) if cgroup else Tree(pid, ceiling)
    for number in PASSED_ON:
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # as ``nohup`` leaves it
            signal.signal(number, pass_on)
    for number in (PLANNED, UNWALLED):
        signal.signal(number, watch.told)
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGCHLD,))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (*PASSED_ON, PLANNED, UNWALLED))
    status, largest, why = wait(pid, watch)
    if cgroup:
        try:
            os.rmdir(cgroup)
        except OSError:
            pass
    code = os.waitstatus_to_exitcode(status)
    if code in FORESEEN:
        return code
    if -code in PASSED_ON:
        return 130
    message = f"ended with exit code {code}" if code > 0 else f"ended by {signal_name(-code)}"
    if -code == signal.SIGKILL:
        at = why or f"at {mib(largest)} of {mib(ceiling)}"
        message = f"killed {at}; finished work is kept, the same command continues from there"
    if heard(message.partition(";")[0]):
        return 1
    tell(name, "killed" if why in ("", STOPPED) else "above the ceiling", message, json, path)
    return 1


def wait(pid: int, watch: "Tree | Cgroup") -> tuple[int, int, str]:
    """Wait for ``pid``, and kill the tree below it when ``watch`` says why.

    Returns
    -------
    tuple
        Its status, its peak in bytes, and why it was killed from here; an empty text if it was not.
    """
    why, rank = "", Rank(pid) if os.environ.get("WORLD_SIZE", "1") != "1" else None
    while True:
        ended, status, usage = os.wait4(pid, os.WNOHANG)
        if ended:
            return status, usage.ru_maxrss << 10, why
        if not why and (why := watch.look() or (rank.look() if rank else "")):
            send(signal.SIGKILL, descendants(pid))
        signal.sigtimedwait((signal.SIGCHLD,), watch.pause)


def heard(message: str) -> bool:
    """Tell the first rank of a training on this machine how this rank ended; returns whether it will say so.

    The first rank listens at ``common.training.distributed.last_words``.
    """
    rank, port = os.environ.get("RANK", "0"), os.environ.get("MASTER_PORT", "")
    if rank == "0" or os.environ.get("GROUP_RANK") != "0":
        return False
    import socket  # not before it is needed: its memory counts

    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as own:
            own.bind("")  # the kernel finds a name, for the answer
            own.settimeout(HEARD_SECONDS)
            own.sendto(f"rank {rank} was {message}".encode(), f"\0peakline.{os.getuid()}.{port}")
            return own.recv(1) == b"1"
    except OSError:
        return False


def tell(name: str, kind: str, message: str, json: bool, path: str) -> None:
    """Say how the command ended, and write the record that it could not write."""
    sys.stderr.write(f"{name}: {message}\n")
    record = f'{{"command": "{name}", "exit_code": 1, "error": {{"kind": "{kind}", "message": "{message}"}}}}\n'
    if json:
        sys.stdout.write(record)
    if path:
        keep(path, record)


class Tree:
    """The hard wall where there is no cgroup: the processes below ``pid``, and this one.

    Resident sizes are read every 5 ms, and less often while they are far below the limit. Their sum is never less than
    what the tree holds, apart from miscounted pages; the difference is known from the last reading of PSS.
    """

    def __init__(self, pid: int, ceiling: int) -> None:
        self.pid, self.ceiling = pid, ceiling
        self.limit = max(ceiling, LEAST_WALL)
        self.statm: dict[int, int] = {}
        """Open files by pid: reading one takes a fifth of the time of opening it too."""
        self.own = 0
        self.pause = LOOK
        self.surplus = 0
        """By how much the sum of resident sizes is too large."""
        self.search = self.measure = 0.0
        """When new children may be searched for, and PSS read."""

    def told(self, number: int, frame: object) -> None:
        """Take the child's word on what it may hold."""
        self.limit = self.ceiling if number == PLANNED else sys.maxsize

    def look(self) -> str:
        """Return how much the tree holds if that is above its limit, else nothing; it is stopped then."""
        now = time.monotonic()
        if now >= self.search:
            self.find()
            self.search = time.monotonic() + max(10 * LOOK, (time.monotonic() - now) / SHARE)
        size = self.resident()
        above = size - self.surplus > self.limit
        self.pause = min(RARELY, max(LOOK, (self.limit - size) / GROWTH))
        if not above and (size <= NEAR * self.limit or now < self.measure):
            return ""
        if above:  # nothing may grow while it is measured, or be between fork and exec
            self.find()
            send(signal.SIGSTOP, self.statm)
            size = self.resident()
        began = time.monotonic()
        held = self.held()
        self.surplus = size - held
        self.measure = time.monotonic() + (time.monotonic() - began) / SHARE
        if above and held > self.limit:
            return f"at {mib(held)} of {mib(self.limit)}, {mib(held - self.limit)} above its ceiling"
        if above:
            send(signal.SIGCONT, self.statm)
        return ""

    def find(self) -> None:
        """Find new children, and forget those that have ended."""
        pids = descendants(self.pid)
        for pid in set(self.statm).difference(pids):
            os.close(self.statm.pop(pid))
            self.surplus = 0
        for pid in pids:
            if pid not in self.statm:
                try:
                    self.statm[pid] = os.open(f"/proc/{pid}/statm", os.O_RDONLY)
                except OSError:
                    pass
        with open("/proc/self/statm", "rb") as stream:
            fields = stream.read().split()
        self.own = (int(fields[1]) - int(fields[2])) * PAGE

    def resident(self) -> int:
        """Return the sum of resident sizes in bytes, with this process's private pages."""
        return self.own + sum(int(text.split()[1]) for text in self.sizes().values()) * PAGE

    def sizes(self) -> dict[int, bytes]:
        """Return the first numbers of each process's ``statm``."""
        sizes = {}
        for pid, file in self.statm.items():
            try:
                sizes[pid] = os.pread(file, 64, 0) or b"0 0"
            except OSError:
                pass
        return sizes

    def held(self) -> int:
        """Return what the tree holds, as ``meter.together`` does; the resident size of a process that hides its PSS."""
        proportional, private, shared = 0, 0, 0
        # Between ``vfork`` and ``exec`` a child has the very memory of its parent, to the page.
        distinct = {text: pid for pid, text in self.sizes().items() if not text.startswith(b"0 ")}
        for pid in (*distinct.values(), "self"):
            sizes = {b"Pss:": 0, b"Private": 0, b"Shared": 0}
            try:
                with open(f"/proc/{pid}/smaps_rollup", "rb") as stream:
                    for line in stream:
                        field, *values = line.split()
                        field = field.partition(b"_")[0]
                        if field in sizes and values[1:] == [b"kB"]:
                            sizes[field] += int(values[0]) << 10
            except OSError:
                pass
            proportional += sizes[b"Pss:"]
            private += sizes[b"Private"]
            shared = max(shared, sizes[b"Shared"])
        return max(proportional, private + shared)


class Cgroup:
    """A memory cgroup, in which the kernel is the hard wall."""

    pause = 1.0

    def __init__(self, path: str) -> None:
        self.path = path
        self.planned = False
        self.mapped = -1
        """Bytes of libraries that were mapped when the plan stood; -1 before that."""
        self.faults, self.again, self.seconds = 0, 0, 0

    def told(self, number: int, frame: object) -> None:
        """Take the child's word that it has loaded its libraries."""
        self.planned = self.planned or number == PLANNED

    def look(self) -> str:
        """Return how much the tree needs if it has been short of that for too long, else nothing."""
        try:
            with open(f"{self.path}/memory.stat", encoding="ascii") as stream:
                fields = {name: size for name, size in map(str.split, stream)}
            limit = self.limit()
        except (OSError, ValueError):
            return ""
        private = int(fields.get("total_rss") or fields["anon"])
        mapped = int(fields.get("total_mapped_file") or fields["file_mapped"])
        faults = int(fields.get("total_pgmajfault") or fields["pgmajfault"])
        again = int(fields.get("total_workingset_refault_file") or fields.get("workingset_refault_file") or 0)
        if self.planned and self.mapped < 0:
            self.mapped = mapped
        # Data files that it maps cause faults too; only what it had mapped before is missing.
        full = self.mapped >= 0 and private + self.mapped > limit
        reading = faults - self.faults >= STUCK_FAULTS or again - self.again >= STUCK_PAGES
        self.seconds = self.seconds + 1 if full and reading else 0
        self.faults, self.again = faults, again
        if self.seconds < STUCK_SECONDS:
            return ""
        excess = private + self.mapped - limit
        return f"after {STUCK_SECONDS} s of reading its own libraries again, for which {mib(excess)} were missing"

    def limit(self) -> int:
        """Return the limit in bytes, of version 1 or 2."""
        for name in ("memory.max", "memory.limit_in_bytes"):
            try:
                with open(f"{self.path}/{name}", encoding="ascii") as stream:
                    text = stream.read().strip()
                return int(text) if text.isdigit() else sys.maxsize
            except OSError:
                pass
        return sys.maxsize


class Rank:
    """One of several processes that wait for each other, and would wait for one that is stopped."""

    def __init__(self, pid: int) -> None:
        self.pid, self.next, self.seconds = pid, 0.0, 0

    def look(self) -> str:
        """Say that the rank has been stopped for too long, else nothing. Seconds in which nobody looked, as this
        process was stopped too, do not count."""
        if (now := time.monotonic()) < self.next:
            return ""
        self.next = now + 1
        try:
            with open(f"/proc/{self.pid}/stat", "rb") as stream:
                state = stream.read().rpartition(b") ")[2][:1]
        except OSError:
            return ""
        self.seconds = self.seconds + 1 if state == b"T" else 0
        return STOPPED if self.seconds > STOPPED_SECONDS else ""


def descendants(pid: int) -> list[int]:
    """Return ``pid`` and the pids of all processes below it."""
    pids = [pid]
    for parent in pids:  # grows meanwhile
        try:
            for task in os.listdir(f"/proc/{parent}/task"):
                with open(f"/proc/{parent}/task/{task}/children", "rb") as stream:
                    pids += map(int, stream.read().split())
        except OSError:
            pass
    return pids


def send(number: int, pids: list[int] | dict[int, int]) -> None:
    """Send a signal to processes, some of which may have ended."""
    for pid in pids:
        try:
            os.kill(pid, number)
        except OSError:
            pass


def mib(size: int) -> str:
    """``12.5 MiB``."""
    return f"{size / 2**20:.1f} MiB"


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
