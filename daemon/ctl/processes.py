"""`shimctl top`: the processes of a container, as the host sees them."""

import argparse
import json
import time

from daemon.ctl.commands import Command
from daemon.ctl.errors import CtlError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from daemon.ctl.client import Daemon


# psutil's words as ps(1) has them.
_LETTERS = {
    "running": "R",
    "sleeping": "S",
    "disk-sleep": "D",
    "stopped": "T",
    "tracing-stop": "t",
    "zombie": "Z",
    "dead": "X",
    "idle": "I",
    "parked": "P",
}


class Process:
    """One process as the host sees it. None where the kernel tells nothing, as of a zombie.

    Raises: psutil.NoSuchProcess.
    """

    __slots__ = (
        "command",
        "cpu_s",
        "exec_id",
        "fds",
        "inner_pid",
        "pid",
        "ppid",
        "read_bytes",
        "rss_bytes",
        "state",
        "threads",
        "uid",
        "up_s",
        "user",
        "written_bytes",
    )

    def __init__(self, pid: int, exec_id: str) -> None:
        import psutil

        found = psutil.Process(pid)
        self.pid = pid
        self.exec_id = exec_id
        self.fds: int | None = None
        self.read_bytes: int | None = None
        self.written_bytes: int | None = None
        with found.oneshot():
            times, word = found.cpu_times(), found.status()
            self.state = _LETTERS.get(word, word)
            self.ppid = found.ppid()
            self.cpu_s = times.user + times.system
            self.threads = found.num_threads()
            self.up_s = max(0.0, time.time() - found.create_time())
            self.rss_bytes = found.memory_info().rss
            # Whom the kernel checks, under the host's name if it has one.
            self.uid = found.uids().effective
            self.user = _name_of(self.uid)
            try:
                words = found.cmdline()
                self.fds = found.num_fds()
                moved = found.io_counters()
                self.read_bytes, self.written_bytes = moved.read_bytes, moved.write_bytes
            except psutil.ZombieProcess:
                words = []
            # A zombie or kernel thread has no command line: its name in brackets, as ps shows it.
            self.command = " ".join(words) or f"[{found.name()}]"
        self.inner_pid = _inner_pid(pid)

    @property
    def cpu_percent(self) -> float:
        """Over its whole life, as ps counts it."""
        return self.cpu_s * 100 / self.up_s if self.up_s > 0 else 0.0


def _name_of(uid: int) -> str:
    import pwd

    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _inner_pid(pid: int) -> int:
    """The pid it knows itself by. Source: proc_pid_status(5), NSpid; psutil has it not."""
    try:
        with open(f"/proc/{pid}/status", encoding="utf-8", errors="replace") as file:
            for line in file:
                if line.startswith("NSpid:"):
                    return int(line.split()[-1])
    except (FileNotFoundError, ProcessLookupError):
        pass
    return pid


def processes_of(daemon: "Daemon", container_id: str) -> list[Process]:
    """The container's processes in the order of their pids; those that end while we look are left out."""
    import psutil

    from daemon.ctl.client import TASKS
    from daemon.ctl.jsonable import decode
    from ttrpc.api import tasks

    found = []
    for info in daemon.call(TASKS, "ListPids", tasks.ListPidsRequest(container_id=container_id)).processes:
        details = decode(info.info) if info.info.type_url else None
        exec_id = getattr(details, "exec_id", "")
        try:
            found.append(Process(info.pid, "" if exec_id == container_id else exec_id))
        except psutil.NoSuchProcess:
            continue
    return sorted(found, key=lambda process: process.pid)


def as_json(process: Process) -> "dict[str, Any]":
    """Raw values: seconds, bytes, numbers."""
    made: dict[str, Any] = {name: getattr(process, name) for name in Process.__slots__}
    made["cpu_s"], made["up_s"] = round(process.cpu_s, 2), round(process.up_s, 2)
    return made


def top(args: argparse.Namespace) -> int:
    """`shimctl top`."""
    from daemon.ctl import resume
    from daemon.ctl.client import open_daemon
    from ttrpc.api import process as states

    with open_daemon(args) as daemon:
        resume.require_container(daemon, args.id)
        task = resume.find_task(daemon, args.id)
        if task is None or task.status == states.STOPPED:
            raise CtlError(f"{args.id} is not running", hint="shimctl ps -a")
        found = processes_of(daemon, args.id)
    if args.json:
        print(json.dumps([as_json(each) for each in found], indent=2))
    else:
        _print(found, cut=not args.no_trunc)
    return 0


def _print(found: list[Process], *, cut: bool) -> None:
    from daemon.ctl.tables import Column, print_table
    from daemon.ctl.units import binary_bytes, clock_words

    def size(count: int | None) -> str:
        return "--" if count is None else binary_bytes(count)

    has_execs = any(each.exec_id for each in found)
    columns = [
        Column("PID", right=True),
        Column("PPID", right=True),
        Column("INSIDE", right=True),
        Column("USER"),
        Column("STATE"),
        Column("THREADS", right=True),
        Column("CPU %", right=True),
        Column("MEMORY", right=True),
        Column("FILES", right=True),
        Column("READ / WRITTEN"),
        Column("TIME"),
        *([Column("EXEC")] if has_execs else []),
        Column("COMMAND", least=12),
    ]
    rows = [
        [
            str(each.pid),
            str(each.ppid),
            str(each.inner_pid),
            each.user,
            each.state,
            str(each.threads),
            f"{each.cpu_percent:.1f}",
            binary_bytes(each.rss_bytes),
            "--" if each.fds is None else str(each.fds),
            f"{size(each.read_bytes)} / {size(each.written_bytes)}",
            clock_words(each.cpu_s),
            *([each.exec_id] if has_execs else []),
            each.command,
        ]
        for each in found
    ]
    print_table(columns, rows, cut=cut)


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("id", metavar="ID")
    parser.add_argument("--no-trunc", action="store_true", help="cut nothing off")
    parser.add_argument("--json", action="store_true", help="one array")


TOP = Command(
    top,
    description="""\
The processes of a container: pid on the host and inside, the host's name for the user, state, CPU over its life,
memory, open files, what it moved from and to disks, CPU time, and which exec a process is the first of.
""",
    examples="""\
  shimctl top web
  shimctl top --json web | jq '.[].command'
""",
    options=_options,
)
