"""`shimctl stats`: what containers use, once or live."""

import argparse
import json
import sys
import time

from daemon.ctl.commands import Command
from daemon.ctl.errors import UsageError
from daemon.ctl.stop import seconds

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from daemon.ctl.client import Daemon

# A cgroup v1 limit above this is none: the kernel's PAGE_COUNTER_MAX; in v2 `max` travels as the largest uint64.
NO_LIMIT = 1 << 62
ONE_SHOT_S = 0.5  # apart: long enough that a busy CPU shows as 100 % within a few percent
LIVE_S = 2.0


class Usage:
    """One container's counters at one moment, the same for both cgroup versions. None: not measured."""

    __slots__ = (
        "at_ns", "cpu_ns", "id", "memory_bytes", "memory_limit", "oom_kills", "pids", "pids_limit", "read_bytes",
        "throttled_ns", "written_bytes",
    )  # fmt: skip

    def __init__(self, container_id: str, at_ns: int) -> None:
        self.id = container_id
        self.at_ns = at_ns
        self.cpu_ns: int | None = None
        self.throttled_ns: int | None = None
        self.memory_bytes: int | None = None
        self.memory_limit: int | None = None
        self.pids: int | None = None
        self.pids_limit: int | None = None
        self.read_bytes: int | None = None
        self.written_bytes: int | None = None
        self.oom_kills: int | None = None

    def cpu_percent(self, before: "Usage | None") -> float | None:
        """Of one CPU, between two moments; None without an earlier one."""
        if before is None or self.cpu_ns is None or before.cpu_ns is None or self.at_ns <= before.at_ns:
            return None
        return max(0.0, (self.cpu_ns - before.cpu_ns) * 100.0 / (self.at_ns - before.at_ns))


def usage_of(metric: "Any", now_ns: int) -> Usage | None:
    """A Metric of either cgroup version as our counters; None for data of a type we do not know."""
    from daemon.ctl.jsonable import decode
    from ttrpc.api import wkt

    found = decode(metric.data)
    made = Usage(metric.id, wkt.nanoseconds(metric.timestamp) or now_ns)
    if metric.data.type_url == "io.containerd.cgroups.v1.Metrics" and found is not None:
        _read_v1(made, found)
    elif metric.data.type_url == "io.containerd.cgroups.v2.Metrics" and found is not None:
        _read_v2(made, found)
    else:
        return None
    return made


def _read_v1(made: Usage, found: "Any") -> None:
    if found.HasField("cpu"):
        made.cpu_ns, made.throttled_ns = found.cpu.usage.total, found.cpu.throttling.throttled_time
    if found.HasField("memory"):
        # The page cache that can be dropped at once is not what a container needs: as docker, less inactive files.
        made.memory_bytes = max(0, found.memory.usage.usage - found.memory.total_inactive_file)
        made.memory_limit = found.memory.usage.limit
    if found.HasField("pids"):
        made.pids, made.pids_limit = found.pids.current, found.pids.limit
    if found.HasField("blkio"):
        moved = {"read": 0, "write": 0}
        for entry in found.blkio.io_service_bytes_recursive:
            if entry.op.lower() in moved:
                moved[entry.op.lower()] += entry.value
        made.read_bytes, made.written_bytes = moved["read"], moved["write"]
    if found.HasField("memory_oom_control"):
        made.oom_kills = found.memory_oom_control.oom_kill


def _read_v2(made: Usage, found: "Any") -> None:
    if found.HasField("cpu"):
        made.cpu_ns, made.throttled_ns = found.cpu.usage_usec * 1000, found.cpu.throttled_usec * 1000
    if found.HasField("memory"):
        made.memory_bytes = max(0, found.memory.usage - found.memory.inactive_file)
        made.memory_limit = found.memory.usage_limit
    if found.HasField("pids"):
        made.pids, made.pids_limit = found.pids.current, found.pids.limit
    if found.HasField("io"):
        made.read_bytes = sum(entry.rbytes for entry in found.io.usage)
        made.written_bytes = sum(entry.wbytes for entry in found.io.usage)
    if found.HasField("memory_events"):
        made.oom_kills = found.memory_events.oom_kill


def measure(daemon: "Daemon", names: "Sequence[str]") -> dict[str, Usage]:
    """The counters of these containers, or of all that run."""
    from daemon.ctl.client import TASKS
    from ttrpc.api import tasks

    request = tasks.MetricsRequest(filters=[f'id=="{name}"' for name in names])
    now_ns = time.time_ns()
    found = (usage_of(metric, now_ns) for metric in daemon.call(TASKS, "Metrics", request).metrics)
    return {usage.id: usage for usage in found if usage is not None}


def host_memory_bytes() -> int:
    """The machine's memory: the limit of whatever has none. Source: proc(5), meminfo."""
    with open("/proc/meminfo", encoding="ascii") as file:
        for line in file:
            if line.startswith("MemTotal:"):
                return int(line.split()[1]) * 1024
    return 0


def as_json(usage: Usage, before: Usage | None) -> "dict[str, Any]":
    """One object per container: counters as they are, the derived percentage rounded, null for what is not measured."""
    from daemon.ctl.units import rfc3339

    percent = usage.cpu_percent(before)
    made: dict[str, Any] = {
        "id": usage.id,
        "at": rfc3339(usage.at_ns),
        "cpu_percent": None if percent is None else round(percent, 2),
    }
    for name in Usage.__slots__:
        if name not in ("id", "at_ns"):
            made[name] = getattr(usage, name)
    for name in ("memory_limit", "pids_limit"):
        if made[name] is not None and (made[name] >= NO_LIMIT or made[name] == 0):
            made[name] = None
    return made


def table_lines(now: dict[str, Usage], before: dict[str, Usage], width: int | None) -> list[str]:
    """The table, busiest first."""
    from daemon.ctl.tables import Column, layout
    from daemon.ctl.units import binary_bytes

    host = host_memory_bytes()

    def size(count: int | None) -> str:
        return "--" if count is None else binary_bytes(count)

    rows = []
    for usage in sorted(now.values(), key=lambda each: (-(each.cpu_percent(before.get(each.id)) or 0.0), each.id)):
        percent = usage.cpu_percent(before.get(usage.id))
        limit = usage.memory_limit if usage.memory_limit is not None and 0 < usage.memory_limit < NO_LIMIT else host
        share = "--" if usage.memory_bytes is None or not limit else f"{usage.memory_bytes * 100 / limit:.2f}%"
        pids_limit = f" / {usage.pids_limit}" if usage.pids_limit and usage.pids_limit < NO_LIMIT else ""
        rows.append(
            [
                usage.id,
                "--" if percent is None else f"{percent:.2f}%",
                f"{size(usage.memory_bytes)} / {size(limit)}",
                share,
                f"{size(usage.read_bytes)} / {size(usage.written_bytes)}",
                "--" if usage.pids is None else f"{usage.pids}{pids_limit}",
            ]
        )
    columns = [
        Column("ID", least=12),
        Column("CPU %", right=True),
        Column("MEM USAGE / LIMIT"),
        Column("MEM %", right=True),
    ]
    return layout([*columns, Column("BLOCK READ / WRITTEN"), Column("PIDS", right=True)], rows, width)


def stats(args: argparse.Namespace) -> int:
    """`shimctl stats`."""
    from daemon.ctl import resume
    from daemon.ctl.client import open_daemon
    from daemon.ctl.each import for_each
    from daemon.ctl.tables import is_tty, terminal_width

    if args.interval <= 0:
        raise UsageError("--interval must be more than 0")
    is_live = not args.no_stream
    is_redrawn = is_live and not args.json and is_tty(sys.stdout)
    with open_daemon(args) as daemon:
        ids: list[str] = []
        failed = for_each(args.ids, lambda name: ids.append(resume.require_container(daemon, name).id), quiet=True)
        if failed and not ids:
            return failed
        before = measure(daemon, ids)
        time.sleep(min(ONE_SHOT_S, args.interval))
        while True:
            now = measure(daemon, ids)
            if args.json and not is_live:
                print(json.dumps([as_json(each, before.get(each.id)) for each in now.values()], indent=2))
            elif args.json:
                for each in now.values():
                    print(json.dumps(as_json(each, before.get(each.id))))
            else:
                # Home, each line cleared to its end, and what was below: no flicker. Source: ECMA-48 CUP, EL, ED.
                lines = table_lines(now, before, terminal_width(sys.stdout))
                print("\x1b[H" + "\x1b[K\n".join(lines) + "\x1b[K\n\x1b[J" if is_redrawn else "\n".join(lines))
            sys.stdout.flush()
            if not is_live:
                return failed
            before = now
            time.sleep(args.interval)


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("ids", nargs="*", metavar="ID")
    parser.add_argument("--no-stream", action="store_true", help="once, then end")
    parser.add_argument(
        "--interval",
        type=seconds,
        default=LIVE_S,
        metavar="SECONDS",
        help=f"between two measurements (default {LIVE_S:g})",
    )
    parser.add_argument("--json", action="store_true", help="one array with --no-stream, else JSON lines")


STATS = Command(
    stats,
    description="""\
CPU, memory, block I/O and processes of running containers, measured by their cgroups (v1 or v2), again and again until
Ctrl-C. CPU counts in percent of one CPU; memory leaves out page cache that can be dropped at once.
""",
    examples="""\
  shimctl stats
  shimctl stats --no-stream web database
  shimctl stats --json --interval 10s >> usage.jsonl
""",
    options=_options,
)
