"""`shimctl logs`: the log as its shim keeps it, asked of the shim itself so that following survives the daemon."""

import argparse
import os
import sys
import time

from daemon.ctl.commands import Command
from daemon.ctl.errors import CtlError, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from daemon.ctl.client import Daemon
    from ttrpc.api import shim

SHIM = "shimd.shim.v1.Shim"
SHIM_PATIENCE_S = 10.0
RETRY_S = 0.05


def request_of(args: argparse.Namespace, now_ns: int) -> "shim.LogsRequest":
    """The options as the shim's request.

    Raises: UsageError for a moment that is none.
    """
    from daemon.ctl.units import parse_moment
    from ttrpc.api import shim, wkt

    request = shim.LogsRequest(follow=args.follow)
    if args.tail is not None:
        request.tail = args.tail
    for name, text in (("since", args.since), ("until", args.until)):
        if text:
            try:
                getattr(request, name).CopyFrom(wkt.timestamp(parse_moment(text, now_ns)))
            except ValueError as error:
                raise UsageError(f"--{name}: {error}") from None
    return request


def follow_shim(address: str, request: "shim.LogsRequest", metadata: dict[str, str]) -> "Iterator[shim.LogRecord]":
    """Records of a shim's log. Where records have times, following goes on after a shim was replaced.

    Raises: StatusError; ConnectionLost or OSError when the shim is not there (any more).
    """
    from ttrpc.api import shim, wkt
    from ttrpc.blocking import BlockingClient
    from ttrpc.errors import ConnectionLost

    last_ns: int | None = None
    told = 0  # records with that time: one write of the container may make several
    skip = 0
    lost_at: float | None = None
    while True:
        try:
            with BlockingClient.connect(address) as client:
                for record in client.open_stream(SHIM, "Logs", request, metadata=metadata):
                    lost_at = None
                    at_ns = wkt.nanoseconds(record.at)
                    if skip and at_ns == last_ns:
                        skip -= 1
                        continue
                    skip = 0
                    told = told + 1 if at_ns == last_ns else 1
                    last_ns = at_ns
                    yield record
                return
        except (ConnectionLost, OSError):
            lost_at = lost_at if lost_at is not None else time.monotonic()
            may_go_on = request.follow and last_ns is not None
            if not may_go_on or time.monotonic() - lost_at > SHIM_PATIENCE_S:
                raise
            time.sleep(RETRY_S)
            skip = told
            again = shim.LogsRequest(follow=True)
            again.since.CopyFrom(wkt.timestamp(last_ns))
            if request.HasField("until"):
                again.until.CopyFrom(request.until)
            request = again


def records_of(daemon: "Daemon", container_id: str, request: "shim.LogsRequest") -> "Iterator[shim.LogRecord]":
    """The container's log, from its shim, or through the daemon when the shim cannot be reached from here."""
    from daemon.ctl import foreground, resume
    from daemon.ctl.client import SHIMD
    from ttrpc.api import shimd

    resume.require_container(daemon, container_id)
    try:
        address = foreground.shim_address(daemon, container_id)
    except CtlError:
        address = ""
    if address and os.path.exists(address):
        yield from follow_shim(address, request, daemon.metadata)
        return
    yield from daemon.follow(SHIMD, "Logs", lambda: shimd.LogsRequest(container_id=container_id, options=request))


def write_records(
    records: "Iterator[shim.LogRecord]", *, timestamps: bool, stream: str = "both", as_json: bool = False
) -> None:
    """Write records to our stdout and stderr, each to the stream it came from.

    Raises: BrokenPipeError when nobody reads any more.
    """
    from daemon.ctl.units import rfc3339
    from ttrpc.api import shim, wkt

    # Both in order on two streams: nothing may wait in a buffer of ours.
    out, err = sys.stdout.buffer, sys.stderr.buffer
    for record in records:
        is_error = record.stream == shim.LOG_STREAM_STDERR
        if stream != "both" and is_error != (stream == "stderr"):
            continue
        stamp = rfc3339(wkt.nanoseconds(record.at))
        if as_json:
            out.write(_json_line(stamp, record) + b"\n")
            out.flush()
            continue
        target = err if is_error else out
        target.write((stamp.encode() + b" " if timestamps and stamp else b"") + record.data)
        target.flush()


def _json_line(stamp: str, record: "shim.LogRecord") -> bytes:
    import json

    from ttrpc.api import shim

    name = {shim.LOG_STREAM_STDOUT: "stdout", shim.LOG_STREAM_STDERR: "stderr"}.get(record.stream, "")
    return json.dumps({"log": record.data.decode("utf-8", "replace"), "stream": name, "time": stamp}).encode()


def logs(args: argparse.Namespace) -> int:
    """`shimctl logs`."""
    from daemon.ctl.client import open_daemon

    request = request_of(args, time.time_ns())
    with open_daemon(args) as daemon:
        records = records_of(daemon, args.id, request)
        write_records(records, timestamps=args.timestamps, stream=args.stream, as_json=args.json)
    return 0


def _lines(text: str) -> int | None:
    if text == "all":
        return None
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is no number of lines; write 100, or all")
    return int(text)


def logs_options(parser: argparse.ArgumentParser) -> None:
    """The options of logs, which `shim logs` takes as well."""
    parser.add_argument("id", metavar="ID")
    parser.add_argument(
        "-f", "--follow", action="store_true", help="go on with what is written from now on, until the end"
    )
    parser.add_argument("--tail", type=_lines, metavar="N", help="only the last N lines, or all (default)")
    parser.add_argument("--since", metavar="TIME", help="10m (ago), RFC 3339, or Unix seconds")
    parser.add_argument("--until", metavar="TIME", help="the same")
    parser.add_argument(
        "-t", "--timestamps", action="store_true", help="begin each line with its time (json-file logs)"
    )
    parser.add_argument("--stream", choices=("both", "stdout", "stderr"), default="both", help="only one of the two")
    parser.add_argument("--json", action="store_true", help="JSON lines: log, stream, time")


LOGS = Command(
    logs,
    description="""\
What a container has written, oldest first, from its log and the rotated files before it; stderr goes to our stderr.
Following asks the shim directly, so the daemon may be restarted meanwhile, and ends when the container does.
""",
    examples="""\
  shimctl logs --tail 20 -f web
  shimctl logs --since 10m --timestamps web
  shimctl logs --since 2026-11-24T05:00:00Z --until 2026-11-24T06:00:00Z web
""",
    options=logs_options,
)
