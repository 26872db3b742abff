"""`shimctl inspect`."""

import argparse
import json

from daemon.ctl.commands import Command
from daemon.ctl.errors import CtlError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from daemon.ctl.client import Daemon
    from ttrpc.api import shim


EXITS_SHOWN = 1000  # of one container: those of years of execs fit no message


def exit_as_json(record: "shim.ExitRecord") -> "dict[str, Any]":
    """An exit record with the exit code a shell would see; null when the status is unknown."""
    from daemon.ctl import exits
    from daemon.ctl.jsonable import jsonable

    made: dict[str, Any] = jsonable(record)
    made.setdefault("exec_id", "")
    made["source"] = exits.source_name(record)
    made["exit_code"] = exits.exit_code(record)
    made["oom"] = record.oom
    return made


def describe(daemon: "Daemon", container_id: str) -> "dict[str, Any]":
    """Everything the daemon knows about a container."""
    from daemon.ctl import exits, foreground, resume
    from daemon.ctl.jsonable import jsonable

    record = resume.require_container(daemon, container_id)
    made: dict[str, Any] = {"container": jsonable(record)}
    made["container"].setdefault("labels", {})
    task = resume.find_task(daemon, container_id)
    made["task"] = None
    if task is not None:
        made["task"] = {**jsonable(task), "status": resume.STATUS_WORDS.get(task.status, "unknown")}
    newest = exits.find_exits(daemon, container_id, None, limit=EXITS_SHOWN)
    made["exits"] = [exit_as_json(each) for each in newest]
    found = foreground.find_shim(daemon, container_id)
    made["shim"] = None if found is None else shim_as_json(found)
    return made


def shim_as_json(record: "Any") -> "dict[str, Any]":
    """A ShimRecord with its health as one word."""
    from daemon.ctl.jsonable import jsonable
    from ttrpc.api import shimd

    health = str(shimd.Health.Name(record.health)).removeprefix("HEALTH_").lower()
    return {**jsonable(record), "health": health, "restarts": record.restarts}


def inspect(args: argparse.Namespace) -> int:
    """`shimctl inspect`: one array, also for one id."""
    from daemon.ctl.client import open_daemon
    from daemon.ctl.each import for_each

    found: list[Any] = []
    with open_daemon(args) as daemon:
        failed = for_each(
            args.ids, lambda name: found.append(_part(describe(daemon, name), args.part or "")), quiet=True
        )
    if args.part:
        for part in found:
            print(part if isinstance(part, str) else json.dumps(part, indent=2))
    else:
        print(json.dumps(found, indent=2))
    return failed


def _part(found: "Any", path: str) -> "Any":
    """A value by its dotted path; a key with dots in it is found when the rest of the path is the key."""
    if not path:
        return found
    head, _, rest = path.partition(".")
    if isinstance(found, dict):
        if path in found:
            return found[path]
        if head in found:
            return _part(found[head], rest)
    if isinstance(found, list) and head.lstrip("-").isdecimal() and -len(found) <= int(head) < len(found):
        return _part(found[int(head)], rest)
    known = (
        ", ".join(found)
        if isinstance(found, dict)
        else f"0 to {len(found) - 1}"
        if isinstance(found, list) and found
        else "nothing"
    )
    raise CtlError(f"nothing is at {path!r} there; known: {known}", exit_code=1)


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("ids", nargs="+", metavar="ID")
    parser.add_argument(
        "--part", metavar="PATH", help="only this part, such as task.pid or exits.-1.exit_code; text without quotes"
    )
    parser.add_argument("--json", action="store_true", help="accepted for likeness: inspect prints JSON anyway")


INSPECT = Command(
    inspect,
    description="""\
Everything known about containers, as one JSON array: the record with its OCI spec, the task, the last thousand exits
with how each became known (source waitid, keeper, pidfd, or unknown), and the shim with its health.
""",
    examples="""\
  shimctl inspect web
  shimctl inspect --part task.pid web
  shimctl inspect --part exits.-1.source job
""",
    options=_options,
)
