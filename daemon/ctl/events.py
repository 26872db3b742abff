"""`shimctl events`: the daemon's event journal, from any point on."""

import argparse
import json

from daemon.ctl.commands import Command
from daemon.ctl.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ttrpc.api import shimd


SEQ_MAX = (1 << 63) - 1


def as_json(record: "shimd.EventRecord") -> "dict[str, Any]":
    """One event as one object; a gap in the journal is one too."""
    from daemon.ctl.describe import exit_as_json
    from daemon.ctl.jsonable import unpack
    from daemon.ctl.units import rfc3339
    from ttrpc.api import wkt

    if record.gap:
        return {"seq": record.seq, "gap": True}
    made = {
        "seq": record.seq,
        "time": rfc3339(wkt.nanoseconds(record.timestamp)),
        "namespace": record.namespace,
        "topic": record.topic,
        "event": unpack(record.event),
    }
    if record.HasField("exit"):
        made["exit"] = exit_as_json(record.exit)
    return made


def as_line(record: "shimd.EventRecord") -> str:
    """One event for people: what is most asked for of it, as name=value."""
    from daemon.ctl.tables import plain

    found = as_json(record)
    facts = dict(found["event"]) if isinstance(found["event"], dict) else {}
    for noise in ("@type", "spec", "rootfs", "bundle", "io", "exited_at", "runtime"):
        facts.pop(noise, None)
    if "exit" in found:
        exit_record = found["exit"]
        facts.pop("exit_status", None)
        how = "signal" if "signal" in exit_record else "code"
        facts[how] = exit_record.get(how, "unknown")
        facts["source"] = exit_record["source"]
        if exit_record["oom"]:
            facts["oom"] = "yes"
    words = " ".join(
        f"{name}={value if isinstance(value, (str, int)) else json.dumps(value)}" for name, value in facts.items()
    )
    return plain(f"{found['seq']:>6} {found['time']} {found['namespace']} {found['topic']} {words}".rstrip())


def events(args: argparse.Namespace) -> int:
    """`shimctl events`."""
    from daemon.ctl.client import SHIMD, open_daemon, say
    from ttrpc.api import shimd

    if args.since is not None and not 0 <= args.since <= SEQ_MAX:
        raise UsageError("--since takes a sequence number, 0 for everything that is stored")
    follows = args.follow or args.since is None
    with open_daemon(args) as daemon:
        # A number rather than "from now": what happens while the daemon is replaced is then not missed either.
        seen = (
            args.since if args.since is not None else daemon.call(SHIMD, "Info", shimd.InfoRequest()).newest_event_seq
        )

        def request() -> "shimd.EventsRequest":
            return shimd.EventsRequest(
                after_seq=seen, follow=follows, filters=args.filter, all_namespaces=args.all_namespaces
            )

        for record in daemon.follow(SHIMD, "Events", request):
            if args.json:
                print(json.dumps(as_json(record)), flush=True)
            elif record.gap:
                say(f"events {seen + 1} to {record.seq - 1} are no longer stored")
            else:
                print(as_line(record), flush=True)
            # A gap names the first event that is still there.
            seen = record.seq - 1 if record.gap else record.seq
    return 0


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--since", type=int, metavar="SEQ", help="stored events after this number, 0 for all; then end")
    parser.add_argument("-f", "--follow", action="store_true", help="with --since: go on with new ones")
    parser.add_argument(
        "--filter", action="append", default=[], metavar="FILTER", help="containerd's filter syntax; any one may match"
    )
    parser.add_argument("-A", "--all-namespaces", action="store_true", help="not only those of our namespace")
    parser.add_argument("--json", action="store_true", help="JSON lines")


EVENTS = Command(
    events,
    description="""\
What happened to containers and tasks. Every event has a number, kept across restarts of the daemon: without --since
new ones are shown as they come, with --since SEQ those after it, nothing twice and nothing left out. What is no longer
stored is told as a gap.

Filters compare fields: topic==/tasks/exit, namespace!=test, event.container_id==web, topic~=^/tasks/; several joined
by a comma must all match.
""",
    examples="""\
  shimctl events
  shimctl events --since 0 --filter topic==/tasks/exit
  shimctl events --since 1042 --follow --json >> events.jsonl
""",
    options=_options,
)
