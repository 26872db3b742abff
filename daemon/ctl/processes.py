"""`shimctl top`: the processes of a container, by what /proc says about them."""

import argparse
import json
import os
import time

from daemon.ctl.commands import Command
from daemon.ctl.errors import CtlError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from daemon.ctl.client import Daemon


class Process:
    """One process as /proc shows it. Source: proc(5), stat, status and cmdline."""

    __slots__ = (
        "command",
        "cpu_s",
        "exec_id",
        "inner_pid",
        "pid",
        "ppid",
        "rss_bytes",
        "state",
        "threads",
        "uid",
        "up_s",
    )

    def __init__(self, pid: int, exec_id: str, proc: str = "/proc") -> None:
        with open(f"{proc}/{pid}/stat", encoding="utf-8", errors="replace") as file:
            head, _, tail = file.read().rpartition(")")
        fields = tail.split()
        ticks = os.sysconf("SC_CLK_TCK")
        self.pid = pid
        self.exec_id = exec_id
        self.state = fields[0]
        self.ppid = int(fields[1])
        self.cpu_s = (int(fields[11]) + int(fields[12])) / ticks
        self.threads = int(fields[17])
        self.up_s = time.clock_gettime(time.CLOCK_BOOTTIME) - int(fields[19]) / ticks
        self.rss_bytes = int(fields[21]) * os.sysconf("SC_PAGESIZE")
        self.uid = 0
        self.inner_pid = pid
        with open(f"{proc}/{pid}/status", encoding="utf-8", errors="replace") as file:
            for line in file:
                if line.startswith("Uid:"):
                    self.uid = int(line.split()[2])
                elif line.startswith("NSpid:"):
                    self.inner_pid = int(line.split()[-1])
        with open(f"{proc}/{pid}/cmdline", "rb") as raw:
            words = raw.read().rstrip(b"\0").split(b"\0")
        # A zombie or kernel thread has no command line: its name in brackets, as ps shows it.
        self.command = b" ".join(words).decode("utf-8", "replace") or f"[{head.partition('(')[2]}]"

    @property
    def user(self) -> str:
        """The host's name for the effective user, which is whom the kernel checks; the number if it has none."""
        import pwd

        try:
            return pwd.getpwuid(self.uid).pw_name
        except KeyError:
            return str(self.uid)

    @property
    def cpu_percent(self) -> float:
        """Over its whole life, as ps counts it."""
        return self.cpu_s * 100 / self.up_s if self.up_s > 0 else 0.0


def processes_of(daemon: "Daemon", container_id: str) -> list[Process]:
    """The container's processes in the order of their pids; those that end while we look are left out."""
    from daemon.ctl.client import TASKS
    from daemon.ctl.jsonable import decode
    from ttrpc.api import tasks

    found = []
    for info in daemon.call(TASKS, "ListPids", tasks.ListPidsRequest(container_id=container_id)).processes:
        details = decode(info.info) if info.info.type_url else None
        exec_id = getattr(details, "exec_id", "")
        try:
            found.append(Process(info.pid, "" if exec_id == container_id else exec_id))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return sorted(found, key=lambda process: process.pid)


def as_json(process: Process) -> "dict[str, Any]":
    """Raw values: seconds, bytes, numbers."""
    made: dict[str, Any] = {name: getattr(process, name) for name in Process.__slots__}
    made["user"] = process.user
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
memory, CPU time, and which exec a process is the first of.
""",
    examples="""\
  shimctl top web
  shimctl top --json web | jq '.[].command'
""",
    options=_options,
)
