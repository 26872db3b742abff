"""`shimctl shim …`: straight to the shims, by their sockets in the state directory. No daemon is asked."""

import argparse
import contextlib
import json
import os

from daemon.ctl.bundles import CALL_S, NAMESPACE_KEY, Bundle, bundles, find, read
from daemon.ctl.commands import Command
from daemon.ctl.errors import CtlError, sentence_of
from daemon.ctl.logs import logs_options

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

ASK_S = 1.0  # a healthy shim answers in a millisecond; a sick one must not hold up the list
SIGKILL = 9


def state_of(bundle: Bundle, exec_id: str = "", *, timeout_s: float = CALL_S) -> "dict[str, Any]":
    """What the shim says of its container and of itself, and the exit records it keeps."""
    from daemon.ctl.describe import exit_as_json
    from daemon.ctl.jsonable import jsonable
    from daemon.ctl.resume import STATUS_WORDS
    from daemon.ctl.session import SHIM, TASK
    from ttrpc.api import shim, task
    from ttrpc.errors import StatusError
    from ttrpc.status import Code

    asked = task.StateRequest(id=bundle.container_id, exec_id=exec_id)
    try:
        reply = bundle.call(TASK, "State", asked, timeout_s=timeout_s)
        state = {**jsonable(reply), "status": STATUS_WORDS.get(reply.status, "unknown")}
    except StatusError as error:
        if error.code != Code.NOT_FOUND or exec_id:
            raise
        state = {"status": "no task"}
    made: dict[str, Any] = {"namespace": bundle.namespace, "id": bundle.container_id, "address": bundle.address}
    made["state"] = state
    made["shim"], made["exits"] = None, []
    if bundle.is_foreign:
        connected = bundle.call(TASK, "Connect", task.ConnectRequest(id=bundle.container_id), timeout_s=timeout_s)
        made["shim"] = {"pid": connected.shim_pid, "version": f"not shimd's ({connected.version})"}
        return made
    made["shim"] = jsonable(bundle.call(SHIM, "Info", shim.InfoRequest(), timeout_s=timeout_s))
    exits = bundle.call(SHIM, "Exits", shim.ExitsRequest(), timeout_s=timeout_s).exits
    made["exits"] = [exit_as_json(each) for each in exits]
    return made


def list_shims(args: argparse.Namespace) -> int:
    """`shimctl shim list`: a sick shim is listed as such and delays the list by `ASK_S`."""
    from ttrpc.errors import StatusError

    found: list[dict[str, Any]] = []
    for bundle in bundles(args.state):
        try:
            made = {**state_of(bundle, timeout_s=ASK_S), "health": "serving", "reason": ""}
        except (CtlError, StatusError) as error:
            made = {"namespace": bundle.namespace, "id": bundle.container_id, "address": bundle.address}
            made |= {"health": "unreachable", "reason": sentence_of(error)[0] + _how_it_is(bundle)}
        noted = read(os.path.join(bundle.path, "shim.pid")).strip()
        made["pid"] = int(noted) if noted.isdecimal() else (made.get("shim") or {}).get("pid")
        found.append(made)
    if args.json:
        print(json.dumps(found, indent=2))
    elif args.quiet:
        for made in found:
            print(made["id"])
    else:
        _print_list(found)
    return 0


def _how_it_is(bundle: Bundle) -> str:
    """What can be seen of a shim that does not answer; nothing if there is none."""
    import time

    from daemon.ctl.shim_stack import describe
    from ttrpc.api import pulse

    pid = read(os.path.join(bundle.path, "shim.pid")).strip()
    look = pulse.look(bundle.path, int(pid), time.monotonic_ns()) if pid.isdecimal() else None
    return f" ({describe(look)})" if look is not None and look.busy_since_ns is not None else ""


def _print_list(found: "list[dict[str, Any]]") -> None:
    from daemon.ctl.tables import Cell, Column, print_table

    rows = []
    for made in found:
        health = made["health"]
        state = made.get("state") or {}
        rows.append(
            [
                made["namespace"],
                made["id"],
                str(made["pid"] or ""),
                Cell(health, "green" if health == "serving" else "red"),
                state.get("status", ""),
                str(state.get("pid") or ""),
                (made.get("shim") or {}).get("version", ""),
                made["reason"],
            ]
        )
    columns = [Column("NAMESPACE"), Column("ID", least=12), Column("SHIM PID", right=True), Column("HEALTH")]
    columns += [Column("TASK"), Column("INIT PID", right=True), Column("VERSION"), Column("REASON", least=16)]
    print_table(columns, rows)


def state(args: argparse.Namespace) -> int:
    """`shimctl shim state`."""
    print(json.dumps(state_of(find(args, args.id), args.exec_id), indent=2))
    return 0


def kill(args: argparse.Namespace) -> int:
    """`shimctl shim kill`."""
    from daemon import spec_parse
    from daemon.ctl.session import TASK
    from ttrpc.api import task

    number = spec_parse.parse_signal(args.signal)
    request = task.KillRequest(id=args.id, exec_id=args.exec_id, signal=number, all=args.all)
    find(args, args.id).call(TASK, "Kill", request)
    return 0


def logs(args: argparse.Namespace) -> int:
    """`shimctl shim logs`."""
    import time

    from daemon.ctl.logs import Cursor, follow_shim, request_of, write_records

    bundle = find(args, args.id)
    if bundle.is_foreign:
        raise CtlError(f"the shim of {args.id} is not shimd's and keeps no log", hint=f"shimctl logs {args.id}")
    cursor = Cursor(request_of(args, time.time_ns()))
    records = follow_shim(bundle.address, cursor, {NAMESPACE_KEY: bundle.namespace})
    write_records(records, timestamps=args.timestamps, stream=args.stream, as_json=args.json)
    return 0


def wait(args: argparse.Namespace) -> int:
    """`shimctl shim wait`."""
    from daemon.ctl import exits
    from daemon.ctl.session import SHIM, TASK
    from ttrpc.api import shim, task

    bundle = find(args, args.id)
    reply = bundle.call(TASK, "Wait", task.WaitRequest(id=args.id, exec_id=args.exec_id), timeout_s=None)
    code: int | None = reply.exit_status
    for record in [] if bundle.is_foreign else bundle.call(SHIM, "Exits", shim.ExitsRequest()).exits:
        if record.exec_id == args.exec_id:
            code = exits.exit_code(record)
    print("unknown" if code is None else code)
    return exits.answer(code, args.exec_id or args.id)


def delete(args: argparse.Namespace) -> int:
    """`shimctl shim delete`."""
    from daemon.ctl.session import TASK
    from ttrpc.api import task
    from ttrpc.errors import StatusError
    from ttrpc.status import Code

    bundle = find(args, args.id)
    if args.force:
        with contextlib.suppress(StatusError):  # already over, which Delete will see for itself
            bundle.call(TASK, "Kill", task.KillRequest(id=args.id, signal=SIGKILL, all=True))
            bundle.call(TASK, "Wait", task.WaitRequest(id=args.id))
    try:
        reply = bundle.call(TASK, "Delete", task.DeleteRequest(id=args.id))
        print(f"{args.id} deleted, exit status {reply.exit_status}")
    except StatusError as error:
        if error.code != Code.NOT_FOUND:
            raise CtlError(error.message, hint=f"if it runs: shimctl shim delete -f {args.id}") from None
    bundle.call(TASK, "Shutdown", task.ShutdownRequest(id=args.id))
    return 0


def _list_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-q", "--quiet", action="store_true", help="only container ids")
    parser.add_argument("--json", action="store_true", help="one array")


def _state_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("id", metavar="ID")
    parser.add_argument("--exec", dest="exec_id", default="", metavar="EXEC_ID", help="an exec of it instead")
    parser.add_argument("--json", action="store_true", help="accepted for likeness: it prints JSON anyway")


def _kill_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("id", metavar="ID")
    parser.add_argument("-s", "--signal", default="KILL", metavar="SIGNAL", help="name or number (default KILL)")
    parser.add_argument("-a", "--all", action="store_true", help="every process of the container")
    parser.add_argument("--exec", dest="exec_id", default="", metavar="EXEC_ID", help="an exec of it instead")


def _wait_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("id", metavar="ID")
    parser.add_argument("--exec", dest="exec_id", default="", metavar="EXEC_ID", help="an exec of it instead")


def _delete_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("id", metavar="ID")
    parser.add_argument("-f", "--force", action="store_true", help="kill it first if it runs")


_DIRECT = "Asks the shim itself, so it works with the daemon down. "

LIST = Command(
    list_shims,
    description=_DIRECT + "Every shim with a bundle below the state directory, of every namespace, with its health.\n",
    examples="  shimctl shim list\n  shimctl --state /run/other shim list --json\n",
    options=_list_options,
)
STATE = Command(
    state,
    description=_DIRECT + "State of the container, the shim's own counters, and its exit records, as JSON.\n",
    examples="  shimctl shim state web\n",
    options=_state_options,
)
KILL = Command(
    kill,
    description=_DIRECT + "Send a signal to the container's first process, to all of them, or to an exec.\n",
    examples="  shimctl shim kill -s TERM web\n",
    options=_kill_options,
)
LOGS = Command(
    logs,
    description=_DIRECT + "What the container has written, from its log; see `shimctl logs --help`.\n",
    examples="  shimctl shim logs --tail 20 -f web\n",
    options=logs_options,
)
WAIT = Command(
    wait,
    description=_DIRECT + "Wait for the container (or an exec) to end; print its exit code, and exit with it.\n",
    examples="  shimctl shim wait web\n",
    options=_wait_options,
    passes_code=True,
)
DELETE = Command(
    delete,
    description=_DIRECT
    + "Delete the task and end its shim. The record stays with the daemon, which learns of it when it is back.\n",
    examples="  shimctl shim delete -f web\n",
    options=_delete_options,
)
