"""`shimctl ps`."""

import argparse
import json
import os
import time

from daemon.ctl.commands import Command
from daemon.ctl.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from daemon.ctl.client import Daemon
    from ttrpc.api import containers, process, shim, shimd

FILTERS = ("id", "name", "status", "label", "exited", "runtime")
STATES = ("created", "running", "paused", "pausing", "restarting", "exited", "unknown", "no task")
NS = 1_000_000_000


class Row:
    """One container as ps shows it, out of its record, its task, its shim and, without a task, its last exit."""

    def __init__(
        self,
        record: "containers.Container",
        task: "process.Process | None",
        health: "shimd.ShimRecord | None",
        last: "shim.ExitRecord | None",
    ) -> None:
        from daemon.ctl import exits
        from daemon.ctl.units import rfc3339
        from ttrpc.api import wkt

        self.id = record.id
        self.labels = dict(record.labels)
        self.runtime = record.runtime.name
        self.created_ns = wkt.nanoseconds(record.created_at)
        self.command = _command_of(record)
        self.pid = task.pid if task is not None and task.status != 3 else 0
        self.exit_code: int | None = None
        self.exited_ns: int | None = None
        self.health = health
        self.is_status_known = True
        self.restarts = health.restarts if health is not None else 0
        self.next_restart_ns = wkt.nanoseconds(health.next_restart_at) if health is not None else None
        if task is not None and task.status == 3:
            self.exit_code, self.exited_ns = int(task.exit_status), wkt.nanoseconds(task.exited_at)
        if last is not None:
            self.exit_code, self.exited_ns = exits.exit_code(last), wkt.nanoseconds(last.exited_at)
            self.is_status_known = self.exit_code is not None
        self.state = self._state(task, last)
        self.created = rfc3339(self.created_ns)

    def _state(self, task: "process.Process | None", last: "shim.ExitRecord | None") -> str:
        if self.next_restart_ns is not None and (task is None or task.status == 3):
            return "restarting"
        if task is None:
            return "no task" if last is None else "exited"
        return {1: "created", 2: "running", 3: "exited", 4: "paused", 5: "pausing"}.get(task.status, "unknown")

    def status(self, now_ns: int) -> str:
        """The state in words, with how long."""
        from daemon.ctl.units import span_words

        code = "unknown" if not self.is_status_known else str(self.exit_code)
        ago = f" {span_words((now_ns - self.exited_ns) / NS)} ago" if self.exited_ns is not None else ""
        if self.state == "exited":
            return f"Exited ({code}){ago}"
        if self.state == "restarting":
            return f"Restarting ({code}){ago}"
        if self.state in ("running", "paused", "pausing"):
            up_s = uptime_s(self.pid)
            text = "Up" if up_s is None else f"Up {span_words(up_s)}"
            return text + {"paused": " (paused)", "pausing": " (pausing)"}.get(self.state, "") + self._sick()
        return self.state.capitalize() + self._sick()

    def _sick(self) -> str:
        from ttrpc.api import shimd

        if self.health is None or self.health.health in (shimd.HEALTH_SERVING, shimd.HEALTH_UNKNOWN):
            return ""
        word = str(shimd.Health.Name(self.health.health)).removeprefix("HEALTH_").lower()
        return f" (shim {word})"

    def colour(self) -> str:
        if self.state == "exited":
            return "red" if self.exit_code else "grey"
        return {"running": "green", "paused": "yellow", "restarting": "yellow", "unknown": "red"}.get(self.state, "")

    def as_json(self) -> "dict[str, Any]":
        """What --json shows: stable names, RFC 3339 times, null for what is not there."""
        from daemon.ctl.units import rfc3339

        return {
            "id": self.id,
            "command": self.command,
            "created_at": self.created or None,
            "state": self.state,
            "pid": self.pid or None,
            "exit_code": self.exit_code,
            "exited_at": rfc3339(self.exited_ns) or None,
            "restarts": self.restarts,
            "next_restart_at": rfc3339(self.next_restart_ns) or None,
            "runtime": self.runtime,
            "labels": self.labels,
        }


def _command_of(record: "containers.Container") -> list[str]:
    try:
        return [str(word) for word in json.loads(record.spec.value)["process"]["args"]]
    except (ValueError, KeyError, TypeError):
        return []


def uptime_s(pid: int) -> float | None:
    """How long a process has run; None when it cannot be seen. Source: proc(5), stat field 22, in ticks since boot."""
    if not pid:
        return None
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
            started_ticks = int(file.read().rpartition(")")[2].split()[19])
    except (OSError, IndexError, ValueError):
        return None
    return time.clock_gettime(time.CLOCK_BOOTTIME) - started_ticks / os.sysconf("SC_CLK_TCK")


def rows_of(daemon: "Daemon", *, everything: bool) -> list[Row]:
    """The containers of the namespace, newest first; those that neither run nor will, only with ``everything``."""
    from daemon.ctl.client import CALL_S, CONTAINERS, SHIMD, TASKS
    from daemon.ctl.exits import last_exits
    from ttrpc.api import containers, process, shimd, tasks

    # A stream: the specs of a thousand containers do not fit one message.
    listed = daemon.follow(CONTAINERS, "ListStream", containers.ListContainersRequest, timeout_s=CALL_S)
    records = {each.container.id: each.container for each in listed}.values()
    found = {task.container_id or task.id: task for task in daemon.call(TASKS, "List", tasks.ListTasksRequest()).tasks}
    shims = {each.container_id: each for each in daemon.call(SHIMD, "Shims", shimd.ShimsRequest()).shims}
    ended: dict[str, shim.ExitRecord] = {}
    if everything and any(_is_down(found.get(record.id)) for record in records):
        ended = last_exits(daemon)  # only they know signal from code, and unknown from either
    rows = []
    for record in records:
        task = found.get(record.id)
        last = ended.get(record.id) if _is_down(task) else None
        if last is not None and task is not None and last.pid != task.pid:
            last = None  # of an earlier task
        row = Row(record, task, shims.get(record.id), last)
        if everything or row.state not in ("exited", "created", "no task"):
            rows.append(row)
    assert process.STOPPED == 3
    return sorted(rows, key=lambda row: row.created_ns or 0, reverse=True)


def _is_down(task: "process.Process | None") -> bool:
    return task is None or task.status == 3


def parse_filters(items: "Sequence[str]") -> list[tuple[str, str]]:
    """KEY=VALUE pairs of the known keys.

    Raises: UsageError.
    """
    pairs = []
    for item in items:
        key, equals, value = item.partition("=")
        if key not in FILTERS or not equals:
            raise UsageError(f"filter {item!r} is not known", hint=f"write KEY=VALUE with one of {', '.join(FILTERS)}")
        if key == "status" and value not in STATES:
            raise UsageError(f"status {value!r} is not known: {', '.join(STATES)}")
        pairs.append((key, value))
    return pairs


def matches(row: Row, filters: "Sequence[tuple[str, str]]") -> bool:
    """Whether a row passes: filters of one key are alternatives, different keys must all match; labels all, too."""
    for wanted in {key for key, _ in filters}:
        values = [value for key, value in filters if key == wanted]
        judge = all if wanted == "label" else any
        if not judge(_match(row, wanted, value) for value in values):
            return False
    return True


def _match(row: Row, key: str, value: str) -> bool:
    if key in ("id", "name"):
        return value in row.id
    if key == "label":
        name, equals, wanted = value.partition("=")
        return name in row.labels and (not equals or row.labels[name] == wanted)
    if key == "exited":
        return row.state == "exited" and str(row.exit_code) == value
    return value == (row.state if key == "status" else row.runtime)


def ps(args: argparse.Namespace) -> int:
    """`shimctl ps`."""
    from daemon.ctl.client import open_daemon

    filters = parse_filters(args.filter)
    everything = args.all or any(key in ("status", "exited") for key, _ in filters)
    with open_daemon(args) as daemon:
        rows = [row for row in rows_of(daemon, everything=everything) if matches(row, filters)]
    if args.quiet:
        for row in rows:
            print(row.id)
    elif args.json or args.format == "json":
        print(json.dumps([row.as_json() for row in rows], indent=2))
    else:
        _print_rows(rows, cut=not args.no_trunc)
    return 0


def _print_rows(rows: list[Row], *, cut: bool) -> None:
    import shlex

    from daemon.ctl.tables import Cell, Column, print_table
    from daemon.ctl.units import span_words

    now_ns = time.time_ns()
    columns = [
        Column("ID", least=12),
        Column("COMMAND", least=12),
        Column("CREATED"),
        Column("STATUS", least=16),
        Column("PID", right=True),
    ]
    cells = [
        [
            row.id,
            _shortened(shlex.join(row.command), cut=cut),
            f"{span_words((now_ns - row.created_ns) / NS)} ago" if row.created_ns is not None else "",
            Cell(row.status(now_ns), row.colour()),
            str(row.pid or ""),
        ]
        for row in rows
    ]
    print_table(columns, cells, cut=cut)


def _shortened(text: str, *, cut: bool, limit: int = 60) -> str:
    """A command line in one cell; also into a pipe, where a script of a hundred lines would be one row."""
    return text if not cut or len(text) <= limit else text[: limit - 1] + "…"


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-a", "--all", action="store_true", help="those that do not run, too")
    parser.add_argument("-q", "--quiet", action="store_true", help="only ids")
    parser.add_argument("--no-trunc", action="store_true", help="cut nothing off")
    parser.add_argument(
        "-f", "--filter", action="append", default=[], metavar="KEY=VALUE", help=f"keys: {', '.join(FILTERS)}"
    )
    parser.add_argument("--format", choices=("table", "json"), default="table", help="how to print it")
    parser.add_argument("--json", action="store_true", help="the same as --format json: one array")


PS = Command(
    ps,
    description="""\
List the containers of the namespace that run or will be started again; with -a all of them, ended ones with their exit
code. `(unknown)` is a status that was lost for good, `(shim unreachable)` says nothing about the container.
Filters: id and name take a part of the id; label NAME or NAME=VALUE; status one of created, running, paused, exited,
restarting, unknown; exited an exit code; runtime its name.
""",
    examples="""\
  shimctl ps -a
  shimctl ps -aq --filter status=exited --filter label=team=web
  shimctl ps --json | jq -r '.[].id'
""",
    options=_options,
)
