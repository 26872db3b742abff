"""`shimctl version` and `shimctl daemon info`."""

import argparse
import time

from daemon.ctl.commands import Command
from daemon.ctl.errors import CtlError, sentence_of
from daemon.version import VERSION as VERSION_OF_SHIMD

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

NS = 1_000_000_000


def version(args: argparse.Namespace) -> int:
    """`shimctl version`: ours always, the daemon's when it answers."""
    from daemon.ctl.__main__ import complain
    from daemon.ctl.client import VERSION as SERVICE
    from daemon.ctl.client import open_daemon
    from ttrpc.api import wkt
    from ttrpc.errors import TtrpcError

    found: dict[str, Any] = {"client": {"version": VERSION_OF_SHIMD}, "server": None}
    failure: Exception | None = None
    try:
        with open_daemon(args) as daemon:
            reply = daemon.call(SERVICE, "Version", wkt.Empty())
        found["server"] = {"version": reply.version, "revision": reply.revision}
    except (CtlError, TtrpcError) as error:
        failure = error
    if args.json:
        _print_json(found)
    else:
        print(f"shimctl {found['client']['version']}")
        if found["server"]:
            print(f"shimd   {found['server']['version']} ({found['server']['revision']}) at {args.address}")
    if failure is not None:
        complain(*sentence_of(failure))
        return 1
    return 0


def daemon_info(args: argparse.Namespace) -> int:
    """`shimctl daemon info`."""
    from daemon.ctl import host
    from daemon.ctl.client import SHIMD, open_daemon
    from daemon.ctl.describe import shim_as_json
    from daemon.ctl.jsonable import jsonable
    from ttrpc.api import shimd

    with open_daemon(args) as daemon:
        info = daemon.call(SHIMD, "Info", shimd.InfoRequest())
        shims = daemon.call(SHIMD, "Shims", shimd.ShimsRequest(all_namespaces=True)).shims
    host_found = host.host_as_json((info.root_dir, info.state_dir))
    process = host.process_as_json(info.pid)
    if args.json:
        messages = ("started_at", "last_upgrade")
        fields = {name: getattr(info, name) for name in info.DESCRIPTOR.fields_by_name if name not in messages}
        found = {
            **fields,
            **{name: jsonable(info).get(name) for name in messages},
            "host": host_found,
            "process": process,
            "shims": [{**shim_as_json(each), "process": host.process_as_json(each.pid)} for each in shims],
        }
        _print_json(found)
    else:
        _print_info(info, list(shims), host_found, process)
    return 0


def _print_info(
    info: "Any", shims: "list[Any]", host_found: "dict[str, Any]", process: "dict[str, Any] | None"
) -> None:
    from daemon.ctl import host
    from daemon.ctl.describe import shim_as_json
    from daemon.ctl.tables import Cell, Column, print_table
    from daemon.ctl.units import span_words
    from ttrpc.api import wkt

    started_ns = wkt.nanoseconds(info.started_at)
    up = f", up {span_words((time.time_ns() - started_ns) / NS)}" if started_ns is not None else ""
    print(f"shimd {info.version}, pid {info.pid}{up}{', still recovering' if info.recovering else ''}")
    print(f"root {info.root_dir}, state {info.state_dir}")
    if info.HasField("last_upgrade"):
        last = info.last_upgrade
        outcome = f"from {last.from_version}, pid {last.from_pid}" if last.done else f"failed: {last.reason}"
        print(f"last upgrade {outcome}")
    print(f"events {info.oldest_event_seq} to {info.newest_event_seq}")
    taken = [found for found in (host.process_as_json(each.pid) for each in shims) if found is not None]
    print("\n".join(host.lines(host_found, process, taken)))
    print(f"shims: {len(shims)}, of them {info.adopted} adopted at its start, {info.unreachable} unreachable\n")
    rows = []
    for each in shims:
        health = shim_as_json(each)["health"]
        rows.append(
            [
                each.namespace,
                each.container_id,
                str(each.pid or ""),
                Cell(health, {"serving": "green", "unreachable": "red", "gone": "red"}.get(health, "yellow")),
                each.version,
                str(each.stored_seq),
                str(each.restarts),
                each.reason,
            ]
        )
    columns = [
        Column("NAMESPACE"),
        Column("CONTAINER", least=12),
        Column("PID", right=True),
        Column("HEALTH"),
        Column("VERSION"),
    ]
    columns += [Column("STORED", right=True), Column("RESTARTS", right=True), Column("REASON", least=16)]
    print_table(columns, rows)


def _print_json(found: "dict[str, Any]") -> None:
    import json

    print(json.dumps(found, indent=2))


def _json_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="one JSON object")


VERSION = Command(
    version,
    description="The version of shimctl, and that of the daemon. Exits with 1 when the daemon does not answer.\n",
    examples="  shimctl version\n",
    options=_json_option,
)
DAEMON_INFO = Command(
    daemon_info,
    description="""\
The daemon: since when, how far its recovery is, which events it stores; what it takes of the machine, and what is left
there: memory, load, the disks of its directories, open files. And every shim it knows in every namespace, with its
health. `unreachable` is a shim whose socket does not answer: its container may well run.
""",
    examples="""\
  shimctl daemon info
  shimctl daemon info --json | jq '.shims[] | select(.health != "serving")'
""",
    options=_json_option,
)
